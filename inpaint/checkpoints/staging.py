"""One flat host buffer into which a training state is copied in one go, and the files written from it.

A training step waits only for this copy (on CUDA not even for that: the copies are queued behind the step and the
writer waits for them). Files are written from views of the buffer in the background.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

ALIGN = 64
COPIERS = 2  # threads; one core alone does not fill the memory's bandwidth
_SAFETENSORS_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Staging:
    """A host buffer that grows to the largest state it has held and is used again for the next one."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.copied: torch.cuda.Event | None = None
        self._threads = ThreadPoolExecutor(COPIERS, thread_name_prefix="staging")

    def hold(self, state: Mapping[str, Any]) -> Any:
        """A copy of nested `state` whose tensors are views of the buffer; valid until the next call.

        Tensors of one type lie side by side, so that `torch.save` writes each run of them as one piece. On CUDA the
        values are there after `wait()`.
        """
        tensors: dict[int, Tensor] = {}
        _map(state, lambda tensor: tensors.setdefault(id(tensor), tensor))
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors.values():
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        sizes = {dtype: sum(t.numel() for t in group) * dtype.itemsize for dtype, group in by_dtype.items()}
        self._grow(sum(_aligned(size) for size in sizes.values()), pinned=any(t.is_cuda for t in tensors.values()))

        views: dict[int, Tensor] = {}
        start = 0
        for dtype, group in by_dtype.items():
            if sizes[dtype]:
                region = torch.frombuffer(self._memory, dtype=dtype, count=sizes[dtype] // dtype.itemsize, offset=start)
                views |= _lay_out(region, group)
            else:
                views |= {id(tensor): torch.empty(tensor.shape, dtype=dtype) for tensor in group}
            start += _aligned(sizes[dtype])
        pairs = [(views[key], tensor.detach()) for key, tensor in tensors.items() if tensor.numel()]
        _copy([pair for pair in pairs if pair[1].is_cuda])
        list(self._threads.map(_copy, _halves([pair for pair in pairs if not pair[1].is_cuda])))
        self.copied = torch.cuda.Event(blocking=True) if any(tensor.is_cuda for tensor in tensors.values()) else None
        if self.copied:
            self.copied.record()
        return _map(state, lambda tensor: views[id(tensor)])

    def wait(self) -> None:
        """Until the values of the last `hold` have arrived."""
        if self.copied:
            with torch.cuda.device(self.copied.device):
                self.copied.synchronize()

    def _grow(self, size: int, *, pinned: bool) -> None:
        if self.buffer.numel() < size:
            self.buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
            self.buffer.zero_()  # touch the pages now, not in a later checkpoint
        self._memory = memoryview(self.buffer.numpy()) if size else memoryview(bytearray(1))


def safetensors_header(tensors: Mapping[str, Tensor]) -> bytes:
    """The first bytes of a safetensors file of `tensors`, whose data follow in the same order without gaps."""
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a host tensor in row-major order, not copied where it lies so already."""
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()) if tensor.numel() else memoryview(b"")


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    if pairs:
        torch._foreach_copy_([to for to, _ in pairs], [value for _, value in pairs], non_blocking=True)


def _halves(pairs: list[tuple[Tensor, Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """The pairs in `COPIERS` lists of about the same number of bytes, in order."""
    total = sum(to.nbytes for to, _ in pairs)
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(COPIERS)]
    done = 0
    for pair in pairs:
        parts[min(COPIERS - 1, done * COPIERS // max(1, total))].append(pair)
        done += pair[0].nbytes
    return parts


def _lay_out(region: Tensor, group: list[Tensor]) -> dict[int, Tensor]:
    views, start = {}, 0
    for tensor in group:
        piece = region[start : start + tensor.numel()]
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):  # its order is kept
            views[id(tensor)] = piece.as_strided(tensor.shape, tensor.stride(), piece.storage_offset())
        else:
            views[id(tensor)] = piece.view(tensor.shape)
        start += tensor.numel()
    return views


def _map(state: Any, change: Callable[[Tensor], Any]) -> Any:
    """`state` with every tensor in its dicts, lists and tuples replaced."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, Mapping):
        return {key: _map(value, change) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_map(value, change) for value in state)
    return state


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
