"""Attentions I and II against cases worked by hand and against loops that follow the definition."""

import math

import pytest
import torch

from inpaint.nn.contextual_attention import (
    ContextualAttention,
    admissible_keys,
    attend,
    descriptors,
    overlap_counts,
    overlap_mean,
    paste_known,
    value_patches,
)
from inpaint.nn.self_attention import SelfAttention

PRINTED = {"rate": 2, "patch": 3, "scale": 10.0}


def hole(size, rows, columns, batch=1):
    mask = torch.zeros(batch, 1, size, size)
    mask[..., rows[0] : rows[1], columns[0] : columns[1]] = 1
    return mask


def test_one_missing_pixel_is_the_mean_of_the_known_ones_weighted_by_their_cosine():
    # known: (1, 0), (0, 1), (3, 0); missing: (2, 0), cosines 1, 0, 1; at scale ln 2 the weights are 2 : 1 : 2
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [2.0, 0.0]]).T.reshape(1, 2, 2, 2)
    mask = torch.tensor([0.0, 0.0, 0.0, 1.0]).reshape(1, 1, 2, 2)
    pasted = paste_known(features, mask, rate=1, patch=1, scale=math.log(2))
    torch.testing.assert_close(pasted[0, :, 1, 1], torch.tensor([8 / 5, 1 / 5]))
    assert torch.equal(pasted[mask.expand_as(pasted) == 0], features[mask.expand_as(features) == 0])


def paste_by_loops(features, mask, *, rate, patch, scale):
    """Attention I on one sample, position by position, with nothing but indices that stop at the border."""
    _, height, width = features.shape
    rows, columns, reach = height // rate, width // rate, patch // 2

    def at(i, size):
        return min(max(i, 0), size - 1)

    def around(y, x):
        offsets = range(-reach, reach + 1)
        cells = [(rate * at(y + i, rows), rate * at(x + j, columns)) for i in offsets for j in offsets]
        vector = torch.stack([features[:, i, j] for i, j in cells], dim=1).flatten()
        touched = any(mask[0, i : i + rate, j : j + rate].any() for i, j in cells)
        return vector / max(vector.norm().item(), 1e-4), touched

    grid = [(y, x) for y in range(rows) for x in range(columns)]
    patches = {position: around(*position) for position in grid}
    keys = [position for position in grid if not patches[position][1]] or grid
    size, margin = (1, 0) if rate == 1 else (2 * rate, rate // 2)
    total, count = torch.zeros_like(features), torch.zeros(height, width)
    for y, x in grid:
        scores = torch.stack([scale * patches[y, x][0] @ patches[key][0] for key in keys])
        for weight, (ky, kx) in zip(scores.softmax(0), keys, strict=True):
            for i in range(size):
                for j in range(size):
                    to = (rate * y + i - margin, rate * x + j - margin)
                    if 0 <= to[0] < height and 0 <= to[1] < width:
                        source = at(rate * ky + i - margin, height), at(rate * kx + j - margin, width)
                        total[:, to[0], to[1]] += weight * features[:, source[0], source[1]]
        for i in range(size):
            for j in range(size):
                to = (rate * y + i - margin, rate * x + j - margin)
                if 0 <= to[0] < height and 0 <= to[1] < width:
                    count[to] += 1
    return torch.where(mask > 0, total / count, features)


LITERAL, WIDE = {"rate": 1, "patch": 1, "scale": 3.0}, {"rate": 2, "patch": 5, "scale": 1.0}


@pytest.mark.parametrize("setting", [PRINTED, LITERAL, WIDE])
def test_pasting_equals_the_definition_position_by_position(setting):
    torch.manual_seed(0)
    features, mask = torch.randn(2, 3, 12, 12), hole(12, (1, 4), (2, 5), batch=2)
    mask[1] = hole(12, (9, 12), (0, 3))[0]
    pasted = paste_known(features, mask, **setting)
    for i in range(2):
        torch.testing.assert_close(pasted[i], paste_by_loops(features[i], mask[i], **setting), atol=1e-5, rtol=1e-5)


def test_a_constant_surround_fills_any_hole_with_itself():
    torch.manual_seed(0)
    mask = hole(16, (6, 10), (6, 10))
    features = torch.where(mask > 0, torch.randn(1, 4, 16, 16), torch.full((1, 4, 16, 16), 0.7))
    torch.testing.assert_close(paste_known(features, mask, **PRINTED), torch.full((1, 4, 16, 16), 0.7))


def test_without_a_hole_nothing_changes_and_with_nothing_known_nothing_breaks():
    torch.manual_seed(0)
    features = torch.randn(2, 4, 16, 16, requires_grad=True)
    mask = torch.stack((torch.zeros(1, 16, 16), torch.ones(1, 16, 16)))
    pasted = paste_known(features, mask, **PRINTED)
    assert torch.equal(pasted[0], features[0])
    pasted.sum().backward()
    assert pasted.isfinite().all()
    assert features.grad.isfinite().all()


def test_keys_that_touch_the_hole_get_nothing():
    # a 4×4 hole at 6..9 covers cells 3..4 of the 8×8 grid, and 3×3 patches around 2..5 touch it: 64 - 16 = 48
    features, mask = torch.randn(1, 4, 16, 16), hole(16, (6, 10), (6, 10))
    keys = descriptors(features, rate=2, patch=3)
    open_keys = admissible_keys(mask, rate=2, patch=3)
    attention = attend(keys, keys, open_keys, scale=10.0)
    assert open_keys.sum() == 48
    assert attention[:, :, ~open_keys[0]].abs().sum() == 0
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(1, 64))


def test_when_every_patch_touches_the_hole_all_are_keys():
    assert admissible_keys(hole(16, (0, 16), (0, 16)), rate=2, patch=3).all()


def test_patches_laid_back_where_they_came_from_restore_the_features():
    features = torch.randn(1, 3, 8, 8)
    values, size, margin = value_patches(features, rate=2)
    assert values.shape == (1, 16, 3 * 4 * 4)
    torch.testing.assert_close(overlap_mean(values, (8, 8), size=size, stride=2, padding=margin), features)


def test_patches_overlap_four_times_inside_twice_at_edges_and_once_in_corners():
    counts = overlap_counts(torch.zeros(1, 3, 8, 8), size=4, stride=2, padding=1)[0, 0]
    assert set(counts.flatten().tolist()) == {1, 2, 4}
    assert (counts[0, 0], counts[0, 3], counts[3, 3]) == (1, 2, 4)


def test_the_mask_comes_down_so_that_a_touched_cell_is_hole():
    torch.manual_seed(0)
    layer, features = ContextualAttention(8, reduction=4), torch.randn(1, 8, 16, 16)
    thin, whole_cell = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    thin[..., 21, 25] = 1
    whole_cell[..., 20:24, 24:28] = 1
    assert torch.equal(layer(features, thin), layer(features, whole_cell))
    assert not torch.equal(layer(features, thin), layer(features, torch.zeros(1, 1, 64, 64)))


def test_large_images_are_attended_in_pieces_with_the_same_result(monkeypatch):
    features, mask = torch.randn(1, 4, 16, 16), hole(16, (3, 9), (3, 9))
    at_once = paste_known(features, mask, **PRINTED)
    monkeypatch.setattr("inpaint.nn.contextual_attention.QUERIES_AT_ONCE", 10)
    torch.testing.assert_close(paste_known(features, mask, **PRINTED), at_once)


def test_self_attention_starts_as_the_identity_to_the_bit():
    features = torch.randn(2, 16, 8, 8)
    assert torch.equal(SelfAttention(16)(features), features)


def test_self_attention_of_two_positions_by_hand():
    # f(x) = x, g(x) = x ln 2, h(x) = 3x at x = (0, 1): position 0 weighs 1:1, position 1 weighs 1:2, so o = (1.5, 2)
    layer = SelfAttention(1, reduction=1)
    with torch.no_grad():
        for conv, weight in ((layer.key, 1.0), (layer.query, math.log(2)), (layer.value, 3.0)):
            conv.weight.fill_(weight)
            conv.bias.zero_()
        layer.gamma.fill_(0.5)
    features = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    torch.testing.assert_close(layer(features).flatten(), torch.tensor([0.75, 2.0]))


def test_self_attention_equals_the_explicit_softmax():
    torch.manual_seed(0)
    layer, features = SelfAttention(16, reduction=4), torch.randn(2, 16, 6, 5)
    torch.nn.init.ones_(layer.gamma)
    f, g, h = (conv(features).flatten(2) for conv in (layer.key, layer.query, layer.value))
    share = torch.einsum("bci,bcj->bij", f, g).softmax(dim=1)  # over i
    seen = torch.einsum("bij,bci->bcj", share, h).reshape(features.shape)
    torch.testing.assert_close(layer(features), features + seen, atol=1e-5, rtol=0)


def test_attention_in_the_hole_keeps_little_for_the_backward_pass_of_eight_large_images():
    kept = {}
    with torch.device("meta"):
        layer = ContextualAttention(128)
        features, mask = torch.empty(8, 128, 64, 64, requires_grad=True), torch.empty(8, 1, 256, 256)

        def keep(tensor):
            kept[id(tensor.untyped_storage())] = tensor, tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(features, mask)
    assert sum(size for _, size in kept.values()) < 0.5 * 2**30  # of 24 GiB; batch 8 at 256×256


@pytest.mark.gpu
def test_self_attention_of_eight_large_images_never_holds_all_scores():
    layer = SelfAttention(128).cuda()
    features = torch.randn(8, 128, 64, 64, device="cuda", requires_grad=True)
    torch.nn.init.ones_(layer.gamma)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    layer(features).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 8 * 4096**2 * 4  # one float32 score matrix per image
