"""The frozen feature network against torchvision's VGG."""

import pytest
import torch
from torchvision.models import vgg16, vgg19

from inpaint.config import load_run
from inpaint.errors import WeightsError
from inpaint.nn.features import FeatureNetwork, load_feature_network, paired_features

# torchvision's `features` indices of the layers that EdgeConnect's and the PConv paper's losses name.
INDICES = {
    "vgg19": {"relu1_1": 1, "relu2_2": 8, "relu3_4": 17, "relu4_4": 26, "relu5_1": 29, "relu5_2": 31},
    "vgg16": {"pool1": 4, "pool2": 9, "pool3": 16},
}


@pytest.mark.parametrize(("name", "build"), [("vgg19", vgg19), ("vgg16", vgg16)])
def test_layers_equal_those_of_torchvision(name, build):
    torch.manual_seed(0)
    reference = build(weights=None).features.eval()
    own = FeatureNetwork(name)
    own.load_torchvision({f"features.{key}": tensor for key, tensor in reference.state_dict().items()})
    image = torch.rand(1, 3, 32, 32)
    found = own(image, INDICES[name])
    with torch.no_grad():
        for layer, index in INDICES[name].items():
            assert torch.equal(found[layer], reference[: index + 1](image)), layer


def test_nothing_beyond_the_deepest_layer_is_computed():
    network = FeatureNetwork("vgg19")
    network.convs["relu2_2"].forward = None
    assert set(network(torch.rand(1, 3, 16, 16), ("relu1_1", "relu2_1"))) == {"relu1_1", "relu2_1"}


def test_a_layer_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="vgg16 has no layer relu3_4"):
        FeatureNetwork("vgg16")(torch.rand(1, 3, 32, 32), ("relu1_1", "relu3_4"))


def test_true_features_carry_no_graph_and_predicted_ones_do():
    predicted = torch.rand(1, 3, 16, 16, requires_grad=True)
    drawn, true = paired_features(FeatureNetwork("vgg16"), predicted, torch.rand(1, 3, 16, 16), ("relu1_2",))
    assert drawn["relu1_2"].requires_grad
    assert not true["relu1_2"].requires_grad


def test_imagenet_normalisation_changes_the_features_only_when_asked_for():
    torch.manual_seed(0)
    raw, normalised = FeatureNetwork("vgg16"), FeatureNetwork("vgg16", normalise=True)
    normalised.load_state_dict(raw.state_dict())
    image = torch.rand(1, 3, 8, 8)
    expected = raw((image - raw.mean) / raw.std, ("relu1_1",))["relu1_1"]
    assert torch.equal(normalised(image, ("relu1_1",))["relu1_1"], expected)


def test_random_weights_are_the_same_each_time_and_leave_the_global_generator_alone():
    run = load_run("isnet-places2", assignments=["feature_weights.vgg19=random"])
    before = torch.get_rng_state()
    first, second = load_feature_network(run, "vgg19"), load_feature_network(run, "vgg19")
    assert torch.equal(first.convs["relu5_4"].weight, second.convs["relu5_4"].weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_absent_weights_are_an_error_that_says_what_to_set():
    run = load_run("isnet-places2", assignments=["feature_weights.vgg19=/nowhere/vgg19.pth"])
    with pytest.raises(WeightsError, match=r"vgg19.pth is not a file; set feature_weights.vgg19"):
        load_feature_network(run, "vgg19")


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({f"features.{k}": v for k, v in vgg16(weights=None).features.state_dict().items()}, tmp_path / "w.pth")
    run = load_run("isnet-places2", assignments=[f"feature_weights.vgg19={tmp_path / 'w.pth'}"])
    with pytest.raises(WeightsError, match="vgg19 weights: features"):
        load_feature_network(run, "vgg19")


def test_an_altered_file_is_refused_by_its_digest(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"not weights")
    run = load_run(
        "isnet-places2",
        assignments=[f"feature_weights.vgg19={tmp_path / 'w.pth'}", "feature_weights.sha256.vgg19=" + "ab" * 32],
    )
    with pytest.raises(WeightsError, match="has sha256 .*, expected abab"):
        load_feature_network(run, "vgg19")
