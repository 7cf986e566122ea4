"""A whole step as one CUDA graph: launched once, instead of once per kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from inpaint.imaging import Batch

WARM_UP = 3  # steps made the ordinary way first, in which optimizers and kernels settle


class GraphedStep:
    """A step that is captured once and replayed on new batches of the same shape.

    Everything that changes from step to step must lie in device tensors that `compute` reads: the batch, the weights of
    the terms, the learning rates. The first steps are made as they are.

    Args:
        compute: makes a step from a batch on the device and returns its values.
    """

    def __init__(self, compute: Callable[[Batch], Tensor]) -> None:
        self.compute = compute
        self.steps = 0
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch) -> Tensor:
        self.steps += 1
        if self.steps <= WARM_UP:
            return self._aside(batch)
        if self.graph is None:
            self._capture(batch)
        elif batch.image.shape != self.batch.image.shape:
            raise ValueError(
                f"a batch of shape {tuple(batch.image.shape)} came after {tuple(self.batch.image.shape)}; a CUDA graph "
                "holds one shape, so keep it or set training.cuda_graphs: false"
            )
        self.batch.image.copy_(batch.image, non_blocking=True)
        self.batch.mask.copy_(batch.mask, non_blocking=True)
        assert self.graph is not None
        self.graph.replay()
        return self.values.clone()

    def _aside(self, batch: Batch) -> Tensor:
        """An ordinary step on a stream of its own, as a later capture wants it."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            values = self.compute(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return values

    def _capture(self, batch: Batch) -> None:
        self.batch = replace(batch, image=batch.image.clone(), mask=batch.mask.clone())
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):  # decoders go on
            self.values = self.compute(self.batch)
