"""`inpaint bench stream`: what a sample costs through our stream, through its decoder alone, and other loaders."""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from inpaint.bench import loaders, pictures
from inpaint.bench.measure import Cost, Elsewhere, interleaved, keep_freed_memory, read_all
from inpaint.bench.s3_server import server_name
from inpaint.bench.stream_holes import LINES_WITH_PILLOW, measure_holes
from inpaint.bench.stream_order import shuffle_quality
from inpaint.bench.stream_s3 import PIPE_RECIPE, measure_clients, measure_s3
from inpaint.config.run import DataConfig
from inpaint.data.decoding import Decoder, before_vectors, simplejpeg
from inpaint.data.index import Index, index_set
from inpaint.data.reading import Reader
from inpaint.data.ring import HostBatch
from inpaint.data.stream import Stream
from inpaint.imaging import Batch

SIZE = 256
LARGE_SHARE = 8  # large sources are so many times fewer
PIL_RECIPE, RGB8_RECIPE = "webdataset, PIL, ToTensor, 2 workers", "webdataset, rgb8, 2 workers"
BARE, BARE_BESIDE = "bare decoding", "bare decoding, in as many threads as the stream"
HOST, FLOAT, CACHED = "stream, 8-bit batches", "stream, float batches", "stream, decoded cache"
LARGE_PIL = "PIL convert, crop, resize"
EXACT = "stream, 8-bit batches, data.decode exact"


@dataclass(frozen=True)
class Floor:
    """A figure that has to be reached: `least` or `most` is the bound on `measured`."""

    what: str
    measured: float
    bound: float
    side: Literal["least", "most"]
    holds: bool


def at_least(what: str, measured: float, bound: float) -> Floor:
    return Floor(what, measured, bound, "least", measured >= bound)


def at_most(what: str, measured: float, bound: float) -> Floor:
    return Floor(what, measured, bound, "most", measured <= bound)


def measure_stream(*, samples: int = 2048, rounds: int = 5, with_s3: bool = True) -> dict[str, Any]:
    """Run everything; see `report` for the text.

    Args:
        samples: of 256 pixels in the set; large sources are 8 times fewer.
        rounds: interleaved repetitions, of which medians are taken.
        with_s3: also start an S3 server and measure clients and the way from it.
    """
    with tempfile.TemporaryDirectory(prefix="inpaint-bench-") as folder, _one_thread():
        root = Path(folder)
        images = [pictures.jpeg(image) for image in pictures.cuts(min(samples, 400), size=SIZE)]
        pictures.write_set(root / "small", images, samples=samples, shards=8)
        index = index_set(str(root / "small"))
        small, absent = _measure_disk(index, root, rounds)
        results: dict[str, Any] = {
            "jpeg_bytes": sum(map(len, images)) / len(images),
            "cpu_count": os.cpu_count(),
            "disk": small,
            "not_installed": absent,
            "holes": measure_holes(rounds=rounds),
            "order": shuffle_quality(),
        }
        if with_s3:
            pictures.write_set(root / "remote", images, samples=2 * samples, shards=8)
            results["s3"] = measure_s3(index_set(str(root / "remote")), root, rounds=min(rounds, 3))
            results["s3_server"] = server_name()
            results["clients"] = measure_clients(rounds=rounds)
        large = [pictures.jpeg(image) for image in pictures.mosaics(48)]
        results["large_jpeg_bytes"] = sum(map(len, large)) / len(large)
        results["large"] = _measure_large(large, root, samples // LARGE_SHARE, rounds)
        results["quality"] = _image_quality(large)
    results["floors"] = _floors(results)
    return results


def _measure_disk(index: Index, root: Path, rounds: int) -> tuple[dict[str, Cost], list[str]]:
    urls = [str(path) for path in sorted((root / "small").glob("*.tar"))]
    every = _samples_of(index)
    with ExitStack() as stack:
        others, absent = loaders.others(every, root / "others")
        others |= {
            PIL_RECIPE: Elsewhere(loaders.webdataset_loader, urls, decode="pil"),
            RGB8_RECIPE: Elsewhere(loaders.webdataset_loader, urls, decode="rgb8"),
        }
        for loader in others.values():
            stack.enter_context(loader)
        ours = {
            HOST: _open(stack, index),
            EXACT: _open(stack, index, decode="exact"),
            CACHED: _open(stack, index, decoded_cache_gib=1, cache_dir=str(root / "cache")),
        }
        as_float = _open(stack, index)
        for stream in (*ours.values(), as_float):  # the first epoch fills caches and checks checksums
            _epoch(stream.next_host, stream)()
        candidates = {
            BARE: _bare(every, threads=1),
            BARE_BESIDE: _bare(every, threads=_settings().decode_threads),
            **{name: _epoch(stream.next_host, stream) for name, stream in ours.items()},
            FLOAT: _epoch(as_float.__next__, as_float),
            **others,
        }
        return interleaved(candidates, rounds=rounds), absent


def _measure_large(images: list[bytes], root: Path, count: int, rounds: int) -> dict[str, Cost]:
    """1024×683 sources to 256×256, with malloc tuned in PIL's favour."""
    keep_freed_memory()
    pictures.write_set(root / "large", images, samples=count, shards=4)
    index = index_set(str(root / "large"))
    every = _samples_of(index)
    with ExitStack() as stack:
        scaled, whole = _open(stack, index), _open(stack, index, dct_scaling=False)
        for stream in (scaled, whole):
            _epoch(stream.next_host, stream)()
        return interleaved(
            {
                LARGE_PIL: lambda: _with_pil(every),
                "stream": _epoch(scaled.next_host, scaled),
                "stream, data.dct_scaling false": _epoch(whole.next_host, whole),
            },
            rounds=rounds,
        )


def _image_quality(images: list[bytes]) -> dict[str, float]:
    """How far our pixels are from PIL's, decoded exactly and resized with the same filter, in dB."""
    exact = {"fast_dct": False, "repeat_colours": False}
    fast = {"fast_dct": True, "repeat_colours": True}
    small = [pictures.jpeg(image) for image in pictures.cuts(32, size=SIZE)]
    reference = [_pil_square(data) for data in images]
    whole = [_decoded(data, **exact, dct_scaling=False) for data in images]
    scaled = [_decoded(data, **exact, dct_scaling=True) for data in images]
    quick = [_decoded(data, **fast, dct_scaling=False) for data in small]
    return {
        "exact, dct scaling off, large": _psnr(whole, reference),
        "exact, dct scaling on, large": _psnr(scaled, reference),
        "gradients kept by dct scaling": _gradients(scaled) / _gradients(reference),
        "fast, native size": _psnr(quick, [_pil_square(data) for data in small]),
    }


def _floors(results: dict[str, Any]) -> list[Floor]:
    disk, large = results["disk"], results["large"]
    host, bare, cached = disk[HOST].cpu, disk[BARE].cpu, disk[CACHED].cpu
    floors = [
        at_least("CPU of webdataset with PIL over ours", disk[PIL_RECIPE].cpu / host, 10),
        at_least("CPU of webdataset rgb8 over ours", disk[RGB8_RECIPE].cpu / host, 4),
        at_least("CPU of webdataset with PIL over ours, cached epochs", disk[PIL_RECIPE].cpu / cached, 100),
        at_least("bare decoding over our CPU", bare / host, 0.85),
        at_least("CPU of PIL over ours, 1024-px sources", large[LARGE_PIL].cpu / large["stream"].cpu, 3),
        at_least("distinct shards of 4,000 in a batch of 256", results["order"]["global"]["shards"], 225),
        at_most("milliseconds for one batch of 1.8 million samples", results["order"]["global"]["milliseconds"], 1),
    ]
    if "ffcv, jpeg" in disk:
        floors.append(at_least("CPU of FFCV on JPEG over ours", disk["ffcv, jpeg"].cpu / host, 1))
    if "s3" in results:
        pipe, ours = results["s3"][PIPE_RECIPE], results["s3"]["stream, cold"]
        ratio = results["clients"]["storage.read_into"].cpu / results["clients"]["raw socket"].cpu
        floors += [
            at_least("CPU of webdataset's pipe over ours, from S3", pipe.cpu / ours.cpu, 6),
            at_least("wall time of webdataset's pipe over ours, from S3", pipe.wall / ours.wall, 5),
            at_most("CPU per GB over a raw socket", ratio, 1.3),
        ]
    return floors


def report(results: dict[str, Any]) -> Iterator[str]:
    """The results as lines of text."""
    kilobytes, cores = results["jpeg_bytes"] / 1000, results["cpu_count"]
    yield f"256 px from disk, JPEGs of {kilobytes:.1f} kB, {cores} cores: µs per sample"
    yield from _table(results["disk"], PIL_RECIPE, 1e6)
    yield from (f"  {name}: not installed" for name in results["not_installed"])
    large = results["large_jpeg_bytes"] / 1000
    yield f"1024×683 sources to 256 px, JPEGs of {large:.0f} kB, malloc keeps freed memory: µs per sample"
    yield from _table(results["large"], LARGE_PIL, 1e6)
    if "s3" in results:
        yield f"256 px from an S3 server ({results['s3_server']}), nothing cached: µs per sample"
        yield from _table(results["s3"], PIPE_RECIPE, 1e6)
        yield "S3 clients: seconds per GB"
        yield from _table(results["clients"], "raw socket", 1)
    yield "holes of 256 px, in one thread: µs per mask"
    yield from _table(results["holes"], LINES_WITH_PILLOW, 1e6)
    yield "orders of 1,803,460 samples in 4,000 shards, batches of 256"
    for name, row in results["order"].items():
        seconds = f"{row['milliseconds']:.2f} ms per batch" if row["milliseconds"] else ""
        yield (
            f"  {name:26} {row['shards']:6.1f} shards per batch  travel {row['travel']:.3f}  "
            f"neighbours kept {row['neighbours']:.4f}  {seconds}"
        )
    yield "pixels against PIL's: PSNR in dB (and a share)"
    yield from (f"  {name:34} {value:6.2f}" for name, value in results["quality"].items())
    yield "floors"
    for floor in results["floors"]:
        verdict = "holds" if floor.holds else "FAILS"
        yield f"  {verdict}  {floor.what}: {floor.measured:.2f} (at {floor.side} {floor.bound:g})"


def _table(costs: dict[str, Cost], baseline: str, scale: float) -> Iterator[str]:
    base = costs[baseline].cpu
    for name, cost in costs.items():
        yield f"  {name:56} cpu {cost.cpu * scale:9.2f}  wall {cost.wall * scale:9.2f}  {base / cost.cpu:7.2f}×"


def _open(stack: ExitStack, index: Index, **settings: Any) -> Stream:
    return stack.enter_context(Stream(index, _settings(**settings), None, seed=0, global_batch=loaders.BATCH))


def _epoch(draw: Callable[[], Any], stream: Stream) -> Callable[[], int]:
    def run() -> int:
        for _ in range(stream.batches_per_epoch):
            read_all(_images(draw()))
        stream.wait_until_ahead()  # as it was at the beginning: no work is left for others to pay
        return stream.batches_per_epoch * loaders.BATCH

    return run


def _images(batch: HostBatch | Batch) -> np.ndarray:
    """A batch's images as they lie in memory."""
    if isinstance(batch, Batch):
        return batch.image.permute(0, 2, 3, 1).numpy()
    return batch.slot.rows["pixels" if batch.slot.planes is None else "planes"]


def _samples_of(index: Index) -> list[bytes]:
    """The set's images in the shuffled order of an epoch, each in memory of its own, as a loader meets them."""
    reader, order = Reader(index, None), np.random.default_rng(0).permutation(len(index))
    return [reader.read_alone(sample) for sample in order.tolist()]


def _bare(images: list[bytes], *, threads: int) -> Callable[[], int]:
    """The decoder in a loop, each thread into one buffer where it writes fastest: what no loader on top can beat.

    Threads beside each other share a processor's memory and clock: the same loop in two of them costs more CPU time.
    """
    decoder = _default_decoder()

    def decode_all(share: list[bytes]) -> None:
        memory = np.empty(SIZE * SIZE * 3 + 32, np.uint8)
        buffer = memory[before_vectors(memory.ctypes.data) :]
        for data in share:
            simplejpeg.decode_jpeg(data, "RGB", decoder.fast_dct, decoder.repeat_colours, buffer=buffer)

    shares = [images[thread::threads] for thread in range(threads)]
    pool = ThreadPoolExecutor(threads)

    def run() -> int:
        list(pool.map(decode_all, shares))
        return len(images)

    return run


def _settings(**changed: Any) -> DataConfig:
    return DataConfig(dataset="bench", image_size=SIZE, **changed)


def _default_decoder() -> Decoder:
    fast = _settings().decode == "fast"
    return Decoder(SIZE, fast_dct=fast, repeat_colours=fast, dct_scaling=True)


def _with_pil(images: list[bytes]) -> int:
    for data in images:
        _pil_square(data)
    return len(images)


def _pil_square(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE)))


def _decoded(data: bytes, **settings: bool) -> np.ndarray:
    row = np.empty((SIZE, SIZE, 3), np.uint8)
    Decoder(SIZE, **settings).into(row, data, 0.5, 0.5)
    return row


def _psnr(images: list[np.ndarray], others: list[np.ndarray]) -> float:
    error = np.mean([np.mean((one.astype(float) - other) ** 2) for one, other in zip(images, others, strict=True)])
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def _gradients(images: list[np.ndarray]) -> float:
    return float(np.mean([np.abs(np.diff(image.astype(float), axis=1)).mean() for image in images]))


class _one_thread:
    """One torch thread while measuring, as a loader has beside a training process."""

    def __enter__(self) -> None:
        import torch

        self.before = torch.get_num_threads()
        torch.set_num_threads(1)
        logging.disable(logging.WARNING)  # a loop that does nothing else does wait for its data

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self.before)
        logging.disable(logging.NOTSET)
