"""The health of a GAN in training, on the batch of a step: who is winning, what moves the generator, what a fill shows.

A look costs about a step and changes nothing: buffers, modes, gradients and random numbers are as before. It needs no
more memory than a step: where steps are made in parts, it takes the first one. The values:

    health/score/<network>/real, .../filled     mean output of a discriminator on true and on filled images
    health/gradient_norm/<network>              length of its gradient in the last step
    health/share/<update>/<term>                share of a weighted term in the gradient at what the forward drew
    health/hole_error, health/valid_error       mean |predicted - image| in the hole and outside
    health/checkerboard                         energy of the 2×2 chequered pattern in the hole over the true image's
    health/seam_error                           excess of the step across the hole's edge over the true image's
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inpaint.imaging import Batch, composite
from inpaint.methods.base import Method, Stage, Update, modes_kept, weight_at
from inpaint.training.accumulation import BufferSnapshot
from inpaint.training.plan import select_gradients, select_modes
from inpaint.training.precision import autocast, policy
from inpaint.training.randomness import seed_torch
from inpaint.training.recomputing import blocks_of, recomputed
from inpaint.training.rehearsal import tensors_of
from inpaint.training.trainer import Trainer

TINY = 1e-12
LOOK = 1 << 20  # place of these draws beside those of the step


def look(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """The values above for a trainer between two steps; waits for the device.

    Args:
        trainer: that has made at least one step.
        batch: of the last step, this rank's share.
    """
    batch = batch.to(trainer.device).split(trainer.config.accumulate)[0]
    stage, progress = _last_stage(trainer)
    values = {f"health/gradient_norm/{name}": norm.item() for name, norm in trainer.gradient_norms().items()}
    with _unchanged(trainer.method), policy(trainer.config, trainer.device):
        seed_torch(trainer.seed, trainer.step, LOOK)
        select_modes(trainer.method, stage)
        select_gradients(trainer.method, stage.trained())
        with autocast(trainer.config, trainer.device), _recomputing(trainer, stage):
            made = stage.forward(batch)
            for update in stage.updates:
                if update.judges():
                    values |= _scores(trainer.method, update, batch, made)
                else:
                    values |= _shares(trainer.method, stage, update, batch, made, progress)
        trainer.method.eval()
        with torch.no_grad(), autocast(trainer.config, trainer.device):
            predicted = trainer.method.inpaint(batch.image, batch.mask).float()
    return values | errors(batch.image.float(), predicted, batch.mask.float())


def errors(image: Tensor, predicted: Tensor, mask: Tensor) -> dict[str, float]:
    """Errors of a fill that eyes notice.

    Args:
        image, predicted: [B, 3, H, W] in [0, 1].
        mask: 1 in the hole, [B, 1, H, W].
    """
    completed = composite(image, predicted, mask)
    return {
        "health/hole_error": _mean(abs(predicted - image), mask),
        "health/valid_error": _mean(abs(predicted - image), 1 - mask),
        "health/checkerboard": checkerboard(image, completed, mask),
        "health/seam_error": seam_error(image, completed, mask),
    }


def checkerboard(image: Tensor, completed: Tensor, mask: Tensor) -> float:
    """Energy of the chequered pattern of 2×2 pixels in the hole over that of the true image there; 1 is natural.

    The pattern is what a strided transposed convolution leaves behind: a - b - c + d over each square of pixels.
    """
    inside = mask[..., :-1, :-1] * mask[..., 1:, :-1] * mask[..., :-1, 1:] * mask[..., 1:, 1:]
    return _mean(_chequers(completed) ** 2, inside) / max(_mean(_chequers(image) ** 2, inside), TINY)


def seam_error(image: Tensor, completed: Tensor, mask: Tensor) -> float:
    """Mean absolute step between neighbours on the two sides of the hole's edge, less that of the true image."""
    total = count = 0.0
    for axis in (-2, -1):
        edge = mask.diff(dim=axis).abs()
        excess = completed.diff(dim=axis).abs() - image.diff(dim=axis).abs()
        total += (excess * edge).sum().item() / image.shape[1]
        count += edge.sum().item()
    return total / max(count, TINY)


def _last_stage(trainer: Trainer) -> tuple[Stage, float]:
    """The stage of the last step made, and how much of it is done, in [0, 1]."""
    before = 0
    for stage in trainer.plan:
        if trainer.step <= before + stage.steps:
            break
        before += stage.steps
    return stage, (trainer.step - before) / stage.steps


def _recomputing(trainer: Trainer, stage: Stage) -> AbstractContextManager[None]:
    """Blocks keep only their inputs for backward where they do so in steps."""
    networks = stage.trained() if trainer.config.activation_checkpointing else ()
    return recomputed(block for name in networks for block in blocks_of(getattr(trainer.method, name)))


def _scores(method: Method, update: Update, batch: Batch, made: Any) -> dict[str, float]:
    """Mean outputs of the update's networks on true and filled images.

    A discriminator's loss calls it once on both (true ones first), or on true and then on filled ones.
    """
    seen: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks, torch.no_grad():
        for name in update.trains:
            handle = getattr(method, name).register_forward_hook(_keeper(seen.setdefault(name, [])))
            hooks.callback(handle.remove)
        update.loss(batch, made, update.active())
    values: dict[str, float] = {}
    for name, outputs in seen.items():
        if outputs:
            real, filled = outputs if len(outputs) == 2 else torch.cat(outputs).chunk(2)
            values[f"health/score/{name}/real"] = real.mean().item()
            values[f"health/score/{name}/filled"] = filled.mean().item()
    return values


def _keeper(kept: list[Tensor]) -> Any:
    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        kept.append(first.detach().float())

    return keep


def _shares(
    method: Method, stage: Stage, update: Update, batch: Batch, made: Any, progress: float
) -> dict[str, float]:
    """Share of each weighted term in the gradient at what the forward drew; empty where no term reaches that."""
    drawn = [tensor for tensor in tensors_of(made) if tensor.requires_grad]
    if not drawn:
        return {}
    select_gradients(method, update.trains)
    lengths = {}
    for name, term in update.loss(batch, made, update.active()).items():
        if term.requires_grad:
            found = torch.autograd.grad(term, drawn, retain_graph=True, allow_unused=True)
            norms = [gradient.float().norm() for gradient in found if gradient is not None]
            weight = weight_at(update.weights[name], progress)
            lengths[name] = weight * torch.stack(norms).norm().item() if norms else 0.0
    total = sum(lengths.values())
    return {f"health/share/{update.name}/{name}": length / total for name, length in lengths.items()} if total else {}


@contextmanager
def _unchanged(method: Method) -> Iterator[None]:
    """Buffers, modes and gradient flags of the method are the same after as before."""
    networks = method.networks()
    buffers = BufferSnapshot(networks)
    flags = [(parameter, parameter.requires_grad) for parameter in method.parameters()]
    try:
        with modes_kept(method):
            yield
    finally:
        buffers.restore(networks)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _chequers(image: Tensor) -> Tensor:
    """[B, C, H - 1, W - 1]."""
    return (image[..., :-1, :-1] - image[..., 1:, :-1] - image[..., :-1, 1:] + image[..., 1:, 1:]) / 2


def _mean(values: Tensor, where: Tensor) -> float:
    """Mean over channels and the pixels where `where` is 1; 0 when there are none."""
    return ((values * where).sum() / (where.sum() * values.shape[1]).clamp_min(1)).item()
