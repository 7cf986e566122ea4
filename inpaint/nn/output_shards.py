"""Outputs of a frozen network, kept as shards: what it gave for an input once is read the next time, not computed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inpaint import storage

PER_SHARD = 64
READERS = 16  # objects read at a time
INDEX = ".json"  # beside each tar, written after it, so that a half-written shard does not count


class OutputShards:
    """The outputs of one frozen network, by what it was given.

    A shard is a WebDataset tar of `<digest>.npy`, float32 as computed; the digest is of network, arithmetic and input,
    so another prior or precision never meets these outputs. Several processes may write to one place.

    Args:
        url: folder of the shards, local or s3://.
        network: must not change any more once `recall` is called.
        per_shard: outputs per shard; the last, smaller one is written when the process ends.
    """

    def __init__(self, url: str, network: nn.Module, *, per_shard: int = PER_SHARD) -> None:
        self.computed, self.read = 0, 0  # outputs since the start, for tests and logs
        self._url, self._network, self._per_shard = url.rstrip("/"), network, per_shard
        self._places: dict[str, tuple[str, int, list[int]]] = {}  # digest → tar, where its values begin, shape
        self._waiting: dict[str, np.ndarray] = {}
        self._salt: bytes | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="outputs")
        indexes = [found.url for found in storage.list_objects(self._url) if found.url.endswith(INDEX)]
        for _ in self._readers.map(self._learn, indexes):
            pass
        self._finalizer = weakref.finalize(self, _write_shard, self._url, self._waiting)

    def __deepcopy__(self, memo: dict[int, Any]) -> OutputShards:
        return self  # a copy of a method shares the place

    @torch._disable_dynamo
    @torch.no_grad()
    def recall(self, given: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """`compute(given)`, read where every sample of the batch has been computed before.

        Args:
            given: what the network sees, [B, ...].
            compute: the network with what belongs to it; the result is float32 [B, ...].
        """
        digests = [self._digest(sample) for sample in given.detach().cpu().contiguous()]
        if all(digest in self._waiting or digest in self._places for digest in digests):
            self.read += len(digests)
            return torch.from_numpy(np.stack(list(self._readers.map(self._recalled, digests)))).to(given.device)
        result = compute(given).float()
        self.computed += len(digests)
        for digest, output in zip(digests, result.cpu().numpy(), strict=True):
            if digest not in self._places:
                self._waiting[digest] = output
        if len(self._waiting) >= self._per_shard:
            self.flush()
        return result

    def flush(self) -> None:
        """Write what waits for its shard."""
        if place := _write_shard(self._url, self._waiting):
            self._learn(place)

    def _recalled(self, digest: str) -> np.ndarray:
        if digest in self._waiting:
            return self._waiting[digest]
        tar, start, shape = self._places[digest]
        data = storage.read_range(tar, start, 4 * int(np.prod(shape)))
        return np.frombuffer(data, np.float32).reshape(shape)

    def _learn(self, index: str) -> None:
        content = json.loads(storage.read_bytes(index))
        for digest, start in content["members"].items():
            self._places[digest] = (index.removesuffix(INDEX) + ".tar", start, content["shape"])

    def _digest(self, sample: Tensor) -> str:
        if self._salt is None:
            self._salt = _digest_of(self._network)
        device = next(self._network.parameters()).device.type
        arithmetic = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        narrow = (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
        conditions = f"{arithmetic} {narrow if device == 'cuda' else ''} {tuple(sample.shape)}"
        content = hashlib.blake2b(self._salt + conditions.encode(), digest_size=20)
        content.update(sample.float().numpy().tobytes())
        return content.hexdigest()


def _digest_of(network: nn.Module) -> bytes:
    content = hashlib.sha256()
    for name, value in network.state_dict().items():
        content.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return content.digest()


def _write_shard(url: str, waiting: dict[str, np.ndarray]) -> str | None:
    """Write `waiting` as one shard and empty it; the URL of its index, or None when there was nothing."""
    if not waiting:
        return None
    name = hashlib.sha256("".join(sorted(waiting)).encode()).hexdigest()[:16]
    file, members = io.BytesIO(), {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for digest, output in waiting.items():
            array = io.BytesIO()
            np.save(array, np.ascontiguousarray(output))
            entry = tarfile.TarInfo(f"{digest}.npy")
            entry.size = array.tell()
            members[digest] = tar.offset + tarfile.BLOCKSIZE + entry.size - output.nbytes
            tar.addfile(entry, io.BytesIO(array.getvalue()))
    shape = list(next(iter(waiting.values())).shape)
    waiting.clear()
    storage.write_bytes(f"{url}/{name}.tar", file.getvalue())
    storage.write_bytes(f"{url}/{name}{INDEX}", json.dumps({"shape": shape, "members": members}).encode())
    return f"{url}/{name}{INDEX}"
