"""The plain step and ours from one start: what both are built from, and how far they come apart."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from inpaint.bench.plain_isnet import PlainStep
from inpaint.config.run import RunConfig, TrainingConfig
from inpaint.imaging import Batch
from inpaint.methods import Method, build_method
from inpaint.training import Trainer
from inpaint.training.precision import policy

NO_CHECK = 10**9  # steps: the look at the not-finite flag is the caller's choice, not part of a step


def has_plain(run: RunConfig) -> bool:
    """Whether the plain step does what this run does: ISNet as published, with every term of Eq. (5)."""
    method = run.method
    if method.name != "isnet" or method.design != "isnet" or method.gan_loss != "hinge":
        return False
    weights = method.weights
    terms = weights.adversarial and weights.perceptual and weights.style and not weights.feature_matching
    same = (method.generator_adversarial, method.l1_norm, method.vgg_layers, method.vgg_input)
    return bool(terms) and same == ("mean", "hole", "edgeconnect", "raw")


def compare(
    run: RunConfig,
    features: dict[str, nn.Module],
    data: Batch,
    *,
    device: str,
    steps: int = 3,
    channels_last: bool = False,
    compile: bool = False,
) -> dict[str, float]:
    """How far the plain step and ours come apart from one start, both in float32 without TF32.

    Real and filled images are judged under one power iteration in both, which is all that differs in mathematics.
    In another memory layout convolutions round otherwise, and where a feature of the predicted and of the true image
    are equal to rounding the absolute difference of the perceptual term then turns its sign: one in ten million does.
    Compare layouts without that term.

    Returns:
        Relative differences: the largest of the loss terms over `steps` steps; of the generator's gradients in the
        first step (length of the difference over length); of each network's move in all of them, likewise.
    """
    method = method_of(run, features).to(device)
    config = training(channels_last=channels_last, compile=compile, tf32=False)
    trainer = Trainer(method, config, seed=0, device=device)
    plain = PlainStep(method, one_norm=True)
    start = {n: [c.detach().clone() for c in kernels(getattr(plain, n))] for n in ("generator", "discriminator")}
    losses, gradient, ours = [], 0.0, trainer.steps(repeated(data))
    for number in range(steps):
        with policy(config, torch.device(device)):
            theirs = plain(data.image, data.mask)
        mine = next(ours).scalars()
        losses += [abs(mine[k] - value) / max(abs(value), 1e-6) for k, value in theirs.items() if k in mine]
        if number == 0:
            gradient = apart(gradients_of(method, plain, "generator"))
    moved = {}
    for name, before in start.items():
        mine, theirs = kernels(getattr(method, name)), kernels(getattr(plain, name))
        distance = sum((a - b).square().sum() for a, b in zip(mine, theirs, strict=True))
        length = sum((a - b).square().sum() for a, b in zip(theirs, before, strict=True))
        moved[name] = float((distance / length).sqrt().detach())
    return {
        "losses": max(losses),
        "generator_gradients": gradient,
        "generator_moves": moved["generator"],
        "discriminator_moves": moved["discriminator"],
    }


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig(check_every=NO_CHECK, **settings)


def method_of(run: RunConfig, features: dict[str, nn.Module]) -> Method:
    torch.manual_seed(run.seed)
    return build_method(run, {name: copy.deepcopy(network) for name, network in features.items()})


def batch_of(run: RunConfig, batch: int, device: str) -> Batch:
    """Smooth images with a square hole of a quarter of the area, the same in every process."""
    generator, size = torch.Generator().manual_seed(0), run.data.image_size
    coarse = torch.rand(batch, 3, 8, 8, generator=generator)
    image = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    mask = torch.zeros(batch, 1, size, size)
    mask[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return Batch(image, mask).to(device)


def repeated(data: Batch) -> Iterator[Batch]:
    while True:
        yield data


def kernels(network: nn.Module) -> list[Tensor]:
    """The learnable kernels of all convolutions, in order, whatever normalises them."""
    found = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            norm = getattr(getattr(module, "parametrizations", None), "weight", None)
            found.append(norm.original if norm is not None else getattr(module, "weight_orig", None))
            found[-1] = module.weight if found[-1] is None else found[-1]
    return found


def gradients_of(method: Method, plain: PlainStep, name: str) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(kernels(getattr(method, name)), kernels(getattr(plain, name)), strict=True)
    return [(mine.grad, theirs.grad) for mine, theirs in pairs]


def apart(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Length of the difference over the length of the second, over all pairs."""
    distance = sum((a - b).square().sum() for a, b in pairs)
    return float((distance / sum(b.square().sum() for _, b in pairs)).sqrt())


def without_kinks(run: RunConfig) -> RunConfig:
    """The run without the term whose gradient turns with rounding."""
    weights = run.method.weights.model_copy(update={"perceptual": 0.0})
    return run.model_copy(update={"method": run.method.model_copy(update={"weights": weights})})
