"""Loss functions at hand-worked values, at zero, and for what their gradient reaches."""

import pytest
import torch

from inpaint.losses import adversarial, perceptual, reconstruction


def test_hinge_is_zero_for_confident_right_scores_and_two_for_none():
    sure = adversarial.hinge_discriminator(torch.full((2, 1, 3, 3), 2.0), torch.full((2, 1, 3, 3), -2.0))
    unsure = adversarial.hinge_discriminator(torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3))
    assert sum(sure.values()).item() == 0
    assert sum(unsure.values()).item() == 2


def test_hinge_generator_of_scores_three_is_minus_three():
    assert adversarial.hinge_generator(torch.full((1, 1, 2, 2), 3.0)).item() == -3


def test_literal_hinge_generator_has_no_gradient_where_the_discriminator_is_sure():
    scores = torch.tensor([[-2.0, 0.5]], requires_grad=True)
    adversarial.negative_hinge_generator(scores).backward()
    assert scores.grad.tolist() == [[0.0, -0.5]]


def test_cross_entropy_losses_of_undecided_scores_are_the_logarithm_of_two():
    zeros = torch.zeros(1, 1, 2, 2)
    assert sum(adversarial.bce_discriminator(zeros, zeros).values()).item() == pytest.approx(0.6931472)
    assert adversarial.bce_generator(zeros).item() == pytest.approx(0.6931472)


def test_least_squares_losses_at_their_targets_are_zero():
    ones, zeros = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert sum(adversarial.least_squares_discriminator(ones, zeros).values()).item() == 0
    assert adversarial.least_squares_generator(ones).item() == 0
    assert adversarial.least_squares_generator(zeros).item() == 1


def test_gram_of_ones_is_one_over_the_channels():
    result = perceptual.gram(torch.ones(2, 5, 3, 4))
    assert result.shape == (2, 5, 5)
    assert torch.allclose(result, torch.full((2, 5, 5), 0.2))


def test_perceptual_sums_the_mean_difference_of_each_layer():
    drawn = {"a": torch.zeros(1, 2, 2, 2), "b": torch.zeros(1, 4, 1, 1), "c": torch.full((1, 1, 1, 1), 9.0)}
    true = {"a": torch.full((1, 2, 2, 2), 0.5), "b": torch.full((1, 4, 1, 1), 0.25), "c": torch.zeros(1, 1, 1, 1)}
    assert perceptual.perceptual(drawn, true, ("a", "b")).item() == 0.75


def test_style_ignores_where_features_are():
    features = torch.rand(1, 3, 4, 4)
    shuffled = features.flatten(2)[:, :, torch.randperm(16)].view_as(features)
    assert perceptual.style({"a": features}, {"a": shuffled}, ("a",)).item() == pytest.approx(0, abs=1e-6)


def test_feature_matching_sends_no_gradient_to_the_true_image():
    drawn, true = torch.rand(1, 2, 2, 2, requires_grad=True), torch.rand(1, 2, 2, 2, requires_grad=True)
    perceptual.feature_matching([drawn], [true]).backward()
    assert drawn.grad is not None
    assert true.grad is None


def test_l1_by_hole_divides_by_the_share():
    image = torch.rand(1, 3, 4, 4)
    assert reconstruction.l1_by_hole(image + 0.1, image, torch.tensor(0.25)).item() == pytest.approx(0.4, rel=1e-5)
