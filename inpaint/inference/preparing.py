"""A method made ready for inference: spectral norm folded into the weights, bf16, channels_last, compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from inpaint.methods.base import Method, modes_kept


def prepare(
    method: Method,
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    channels_last: bool = True,
    compiled_batch: int | None = None,
) -> Method:
    """A copy of the method that only fills, as fast as it can; the method itself is left alone.

    Args:
        method: on its device.
        precision: of the convolutions and products; `bfloat16` draws within about 1 % of float32.
        channels_last: lay images and weights out as convolution kernels want them.
        compiled_batch: compile for calls of this many images of one size; smaller calls are filled up to it. Left as
            it is when the compiler cannot.

    Returns:
        A method whose `inpaint` takes and gives what the original's does; nothing else of it is to be used.
    """
    ready = copy.deepcopy(method).eval().requires_grad_(False)
    for network in ready.children():
        fold(network)
    if channels_last:
        for tensor in (*ready.parameters(), *ready.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    if precision == "bfloat16":
        _halve(ready)
    draw: Callable[[Tensor, Tensor], Tensor] = ready.inpaint
    if compiled_batch is not None:
        draw = _in_full_batches(_compiled(draw, type(method).__name__), compiled_batch)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    @torch.no_grad()
    def inpaint(image: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            return draw(image.contiguous(memory_format=layout), mask).to(image.dtype)

    ready.inpaint = inpaint
    return ready


def fold(network: nn.Module) -> None:
    """Replace every parametrised tensor below `network` by the value it has in inference.

    Copies of a parametrised module share its class, and torch's own removal takes the tensor's name from that class;
    here the module goes back to the class it had before, and other copies keep theirs.
    """
    for module in network.modules():
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))


@contextmanager
def inference_mode(method: nn.Module) -> Iterator[None]:
    """The method in inference mode and without gradients, inside; its modules' modes are put back."""
    with modes_kept(method), torch.no_grad():
        method.eval()
        yield


def _halve(method: Method) -> None:
    """Hold the weights of convolutions and products in bf16, as autocast would cast them in every call."""
    for module in method.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and not parametrize.is_parametrized(module):
            module.to(torch.bfloat16)


def _compiled(draw: Callable[[Tensor, Tensor], Tensor], name: str) -> Callable[[Tensor, Tensor], Tensor]:
    from inpaint.training.compiling import compiled

    return compiled(draw, name=f"{name}.inpaint")


def _in_full_batches(draw: Callable[[Tensor, Tensor], Tensor], size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """`draw` on batches of exactly `size` images, the last one filled up with repeats whose results are left out."""

    def call(image: Tensor, mask: Tensor) -> Tensor:
        drawn = []
        for some, holes in zip(image.split(size), mask.split(size), strict=True):
            count, spare = len(some), size - len(some)
            if spare:
                some = torch.cat((some, some[-1:].expand(spare, -1, -1, -1)))
                holes = torch.cat((holes, holes[-1:].expand(spare, -1, -1, -1)))
            drawn.append(draw(some, holes)[:count])
        return torch.cat(drawn)

    return call
