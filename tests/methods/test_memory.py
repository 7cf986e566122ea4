"""What a training step keeps for its backward pass, counted on tensors without storage."""

import pytest
import torch

from inpaint.config import load_run
from inpaint.imaging import Batch
from inpaint.methods import build_method
from inpaint.nn.features import load_features
from inpaint.training.plan import check_plan, select_gradients, select_modes, trained_parameters

GIB = 1 << 30
CARD = 24 * GIB
WORK_SPACE = 2 * GIB  # CUDA context, convolution work space, gradients of activations in flight
FLOAT = 4  # bytes
SAMPLES = 8


def peaks(preset, *assignments, samples=2):
    """Stage → most bytes that wait for a backward pass, for 8 samples; with the method."""
    random = ["feature_weights.vgg16=random", "feature_weights.vgg19=random"]
    run = load_run(preset, assignments=[*random, *assignments])
    with torch.device("meta"):
        method = build_method(run, load_features(run)).to("meta")
    size = run.data.image_size
    image, mask = torch.empty(samples, 3, size, size, device="meta"), torch.empty(samples, 1, size, size, device="meta")
    batch = Batch(image, mask, hole_share=torch.empty((), device="meta"))
    own = {tensor.untyped_storage()._cdata for tensor in (*method.parameters(), *method.buffers())}
    found = {}
    for stage in check_plan(method):
        kept = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = (storage.nbytes(), tensor)  # alive, so that no other takes its place
            return tensor

        select_gradients(method, stage.trained())
        select_modes(method, stage)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            made = stage.forward(batch)
            of_forward, most = set(kept), 0
            for update in stage.updates:
                select_gradients(method, update.trains)
                terms = update.loss(batch, made, update.active())
                most = max(most, sum(size for size, _ in kept.values()))
                del terms
                for place in set(kept) - of_forward:
                    del kept[place]
        found[stage.name] = most * SAMPLES // samples
    return found, method


def standing(method, stage):
    """Bytes of all weights, and of gradients and two moments of what the stage trains."""
    trained = sum(p.numel() for p in trained_parameters(method, stage.trained()))
    return FLOAT * (sum(p.numel() for p in method.parameters()) + 3 * trained)


@pytest.mark.parametrize(
    "preset",
    ["isnet-places2", "gated-two-stage-places2", "edge-texture-paris", "isfrnet-celeba", "isfrnet-celeba-hq-prior"],
)
def test_eight_images_of_256_pixels_fit_a_card_of_24_gib_even_in_float32(preset):
    found, method = peaks(preset, "training.global_batch=8", "training.precision=float32")

    for stage in check_plan(method):
        needed = found[stage.name] + standing(method, stage) + WORK_SPACE
        assert needed < CARD, f"{stage.name} needs {needed / GIB:.1f} GiB"


def test_the_frozen_prior_costs_no_gradient_memory():
    large, _ = peaks("isfrnet-celeba")
    small, _ = peaks("isfrnet-celeba-hq-prior", "stages.prior.steps=0", "stages.prior.from=other")  # another decoder

    assert large == {"ifr": small["ifr"], "sfr": small["sfr"]}
    trained, _ = peaks("isfrnet-celeba", "stages.prior.steps=1")
    assert trained["prior"] > 10 * large["ifr"]
