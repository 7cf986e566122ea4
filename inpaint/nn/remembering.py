"""What a frozen network gave for an image, kept by the image's content.

Trials of a sweep see the same training batches and are scored on the same photographs, so the features of the true
images are computed once per process and not once per trial.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LIMIT_BYTES = 512 << 20


class Memory:
    """Results by the content of the tensor they were computed from, until they fill `limit_bytes`.

    Nothing is thrown out: images come around in the same order, where the newest ones are never the next ones asked
    for. What is given is shared and must not be changed.

    Args:
        limit_bytes: of tensors kept.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.bytes = 0
        self.limit_bytes = limit_bytes
        self._kept: dict[Any, Any] = {}

    def get(self, image: Tensor, compute: Callable[[], Any], *key: Any) -> Any:
        """What `compute` gives, or gave for an equal image and `key`."""
        full_key = (_digest(image), image.dtype, image.device, *key)
        if full_key in self._kept:
            return self._kept[full_key]
        found = compute()
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(found))
        if self.bytes + size <= self.limit_bytes:
            self._kept[full_key] = found
            self.bytes += size
        return found

    def __len__(self) -> int:
        return len(self._kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        return Memory(self.limit_bytes)  # a copied method is for shapes, or for another device


class RememberingFeatures(nn.Module):
    """A frozen feature network that remembers what it gave where no gradient is asked for: for the true images.

    Args:
        network: called with an image and names of layers.
        calls: how many different images it will be asked for; where their features would not fit into the limit,
            nothing is kept and no time is spent on looking.
        limit_bytes: of features kept.
    """

    def __init__(self, network: nn.Module, *, calls: int, limit_bytes: int = LIMIT_BYTES) -> None:
        super().__init__()
        self.network, self.memory = network, Memory(limit_bytes)
        self._calls, self._worthwhile = calls, True

    def forward(self, image: Tensor, layers: Collection[str]) -> Mapping[str, Tensor]:
        if not self._worthwhile or torch.is_grad_enabled() or image.device.type not in ("cpu", "cuda"):
            return self.network(image, layers)
        autocast = torch.is_autocast_enabled(image.device.type)
        found = self.memory.get(image, lambda: self.network(image, layers), autocast, frozenset(layers))
        size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
        self._worthwhile = size * self._calls <= self.memory.limit_bytes
        return found


def _digest(image: Tensor) -> bytes:
    plain = image.detach().contiguous().cpu()
    return hashlib.blake2b(plain.view(torch.uint8).numpy(), digest_size=16).digest() + repr(plain.shape).encode()


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    else:
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _tensors(value)
