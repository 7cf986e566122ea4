"""The demo's photographs: those bundled with scikit-image, cut into crops; two of them are held out whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

TRAINING = (
    "camera.png",
    "coffee.png",
    "coins.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
HELD_OUT = ("astronaut.png", "chelsea.png")
CROP_SIDES = (96, 144, 224)  # pixels of the photo; every crop is then shrunk to the model's size


def photo(name: str) -> Image.Image:
    """A bundled photograph as RGB."""
    import skimage.data

    return Image.open(Path(skimage.data.__file__).parent / name).convert("RGB")


def cut(image: Image.Image, *, side: int) -> Iterator[Image.Image]:
    """Square crops of `side` pixels, half a side apart, row by row."""
    for top in range(0, image.height - side + 1, side // 2):
        for left in range(0, image.width - side + 1, side // 2):
            yield image.crop((left, top, left + side, top + side))


def write_crops(names: tuple[str, ...], folder: Path, *, size: int) -> int:
    """Write every crop of the named photographs as a `size`-pixel PNG; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name in names:
        image = photo(name)
        for side in CROP_SIDES:
            for crop in cut(image, side=side):
                shrunk = crop.resize((size, size), Image.Resampling.LANCZOS)
                shrunk.save(folder / f"{Path(name).stem}-{side}-{count:05d}.png")
                count += 1
    return count
