"""Other ways to load the same JPEGs, as their own documentation has it, for `inpaint bench stream`."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from inpaint.bench.measure import Elsewhere, read_all

BATCH = 32
WORKERS = 2
LOADER = {"batch_size": BATCH, "num_workers": WORKERS, "multiprocessing_context": "fork"}  # litdata changes the default
OTHERS = {"mosaicml-streaming": "streaming", "litdata": "litdata", "ffcv": "ffcv"}  # package → module


def webdataset_loader(urls: list[str], *, decode: str) -> Callable[[], int]:
    """`webdataset` and torch's DataLoader with two workers; `decode` is `pil` (then ToTensor) or `rgb8`."""
    import torch
    import webdataset
    from torchvision.transforms import ToTensor

    def run() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = webdataset.WebDataset(urls, shardshuffle=len(urls), nodesplitter=webdataset.split_by_node)
            samples = samples.shuffle(1000)
            if decode == "pil":
                samples = samples.decode("pil").to_tuple("jpg").map_tuple(ToTensor())
            else:
                samples = samples.decode("rgb8").to_tuple("jpg")
            loader = torch.utils.data.DataLoader(samples, **LOADER)
            return sum(read_all(images.numpy()) for (images,) in loader)

    return run


def others(images: list[bytes], folder: Path) -> tuple[dict[str, Elsewhere], list[str]]:
    """Loaders of packages that are here, whose sets they write to `folder`, and the names of those that are not."""
    makers = {"mosaicml-streaming": _mosaic, "litdata": _litdata, "ffcv": _ffcv}
    here = [name for name, module in OTHERS.items() if importlib.util.find_spec(module)]
    loaders = {f"{name}, jpeg": Elsewhere(makers[name], images, folder / name) for name in here}
    return loaders, [name for name in OTHERS if name not in here]


def _pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def _mosaic(images: list[bytes], folder: Path) -> Callable[[], int]:
    import torch
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    with MDSWriter(out=str(folder), columns={"jpg": "bytes"}, progress_bar=False) as writer:
        for data in images:
            writer.write({"jpg": data})

    class Samples(StreamingDataset):
        def __getitem__(self, number: int):
            return torch.from_numpy(_pixels(super().__getitem__(number)["jpg"]))

    def run() -> int:
        clean_stale_shared_memory()
        samples = Samples(local=str(folder), shuffle=True, batch_size=BATCH)
        loader = torch.utils.data.DataLoader(samples, **LOADER)
        return sum(read_all(batch.numpy()) for batch in loader)

    return run


class _LitSamples:
    """Writes the bytes that litdata's `optimize` asks for; at module level, because its workers import it."""

    def __init__(self, images: list[bytes]):
        self.images = images

    def __call__(self, number: int) -> dict[str, bytes]:
        return {"jpg": self.images[number]}


def _litdata(images: list[bytes], folder: Path) -> Callable[[], int]:
    import litdata
    import torch

    numbers = list(range(len(images)))
    litdata.optimize(_LitSamples(images), inputs=numbers, output_dir=str(folder), chunk_bytes="16MB", num_workers=1)

    class Samples(litdata.StreamingDataset):
        def __getitem__(self, number):
            return torch.from_numpy(_pixels(super().__getitem__(number)["jpg"]))

    def run() -> int:
        loader = litdata.StreamingDataLoader(Samples(str(folder), shuffle=True), **LOADER)
        return sum(read_all(batch.numpy()) for batch in loader)

    return run


def _ffcv(images: list[bytes], folder: Path) -> Callable[[], int]:
    import multiprocessing

    from ffcv.fields import RGBImageField
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor
    from ffcv.writer import DatasetWriter

    class Samples:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, number: int):
            return (Image.open(io.BytesIO(images[number])).convert("RGB"),)

    folder.mkdir(parents=True)
    path = str(folder / "set.beton")
    multiprocessing.set_start_method("fork", force=True)  # its writer hands open memory to its workers
    writer = DatasetWriter(path, {"image": RGBImageField(write_mode="jpg", jpeg_quality=90)}, num_workers=1)
    writer.from_indexed_dataset(Samples())
    loader = Loader(
        path, batch_size=BATCH, num_workers=WORKERS, order=OrderOption.RANDOM, os_cache=True,
        pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()]},
    )  # fmt: skip
    return lambda: sum(read_all(batch.numpy()) for (batch,) in loader)
