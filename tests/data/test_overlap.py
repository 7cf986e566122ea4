import io

import numpy as np
import pytest
from PIL import Image

from inpaint.data import overlap
from inpaint.data.index import load_index
from inpaint.data.overlap import check_overlap, fingerprint, reduced_luma
from tests.data.gallery import save, scene
from tests.data.test_shards import write


def rich(seed):
    """A picture with detail at every scale, 160x120."""
    rng = np.random.default_rng(seed)
    noises = [Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)) for n in (3, 6, 12, 24)]
    planes = [np.asarray(noise.resize((160, 120), Image.Resampling.BICUBIC)) for noise in noises]
    return np.mean(planes, axis=0).astype(np.uint8)


def set_of(folder, images, **options):
    source = folder.with_name(folder.name + "-source")
    source.mkdir(parents=True)
    for name, data in images.items():
        (source / name).write_bytes(data)
    write(source, folder, **options)
    return str(folder)


CHANGES = {
    "saved again at quality 30": lambda image: save(image, quality=30),
    "halved": lambda image: save(image.resize((80, 60), Image.Resampling.BICUBIC), quality=90),
    "doubled": lambda image: save(image.resize((320, 240), Image.Resampling.BILINEAR), quality=90),
    "as png": lambda image: save(image, "PNG"),
    "brighter": lambda image: save(image.point(lambda level: min(255, level * 1.15)), quality=90),
    "its centred square": lambda image: save(image.crop((20, 0, 140, 120)), quality=90),
    "cropped by a pixel or two": lambda image: save(image.crop((2, 1, 158, 119)), quality=90),
    "mirrored": lambda image: save(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=90),
}


def test_duplicates_are_found_through_every_change_and_nothing_else(tmp_path):
    train = set_of(tmp_path / "train", {f"{i:02d}.jpg": save(rich(i), quality=90) for i in range(30)})
    changed = {f"{i:02d}.png": change(Image.fromarray(rich(i))) for i, change in enumerate(CHANGES.values())}
    others = {f"{i:02d}.jpg": save(rich(i), quality=90) for i in range(100, 120)}
    test = set_of(tmp_path / "test", changed | others)
    found = check_overlap(train, test)
    names = {f"{i:02d}" for i in range(len(CHANGES))}
    assert {(pair.first, pair.second) for pair in found.pairs} == {(name, name) for name in names}
    assert (found.images, found.in_first, found.in_second) == ((30, 28), 8, 8)
    assert [pair.second for pair in found.pairs if pair.mirrored] == [f"{list(CHANGES).index('mirrored'):02d}"]


def test_the_same_bytes_are_an_exact_pair(tmp_path):
    same = save(rich(1), quality=90)
    train = set_of(tmp_path / "train", {"a.jpg": same, "b.jpg": save(rich(2))}, keep_original=True)
    test = set_of(tmp_path / "test", {"c.jpg": same, "d.jpg": save(rich(2), quality=50)}, keep_original=True)
    found = check_overlap(train, test)
    assert [(p.first, p.second, p.exact) for p in found.pairs] == [("a", "c", True), ("b", "d", False)]
    assert found.exact == 1


def test_fingerprints_are_made_shard_by_shard_and_equal_those_of_all_images_at_once(tmp_path, monkeypatch):
    """No more than one shard's images are in memory for each thread: 1.8 million lumas would take 11 GB."""
    images = {f"{i:02d}.png": save(rich(i), "PNG") for i in range(7)}
    index = load_index(set_of(tmp_path / "set", images, samples=3, keep_original=True))
    expected = fingerprint(np.stack([reduced_luma(images[f"{index.key(i)}.png"]) for i in range(7)]))
    sizes = []
    monkeypatch.setattr(overlap, "fingerprint", lambda lumas: sizes.append(len(lumas)) or fingerprint(lumas))
    found = overlap.fingerprints(index)
    assert sorted(sizes) == [1, 3, 3]
    for name in ("signs", "mirrored", "thumbnails"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_blank_pictures_are_no_duplicates_of_each_other(tmp_path):
    black, white = (save(np.full((32, 32, 3), level, np.uint8), quality=90) for level in (0, 250))
    found = check_overlap(set_of(tmp_path / "a", {"a.jpg": black}), set_of(tmp_path / "b", {"b.jpg": white}))
    assert found.pairs == ()


def test_the_answer_is_kept_beside_the_set_until_one_of_them_changes(tmp_path, monkeypatch):
    train = set_of(tmp_path / "train", {"a.jpg": save(rich(1)), "b.jpg": save(rich(2))})
    test = set_of(tmp_path / "test", {"a.jpg": save(rich(1), quality=60)})
    first = check_overlap(train, test)
    with monkeypatch.context() as patch:
        patch.setattr("inpaint.data.overlap.reduced_luma", lambda data: pytest.fail("decoded again"))
        assert check_overlap(train, test) == first
    other = set_of(tmp_path / "other", {"x.jpg": save(rich(2), quality=60), "y.jpg": save(rich(9))})
    assert [(p.first, p.second) for p in check_overlap(train, other).pairs] == [("b", "x")]


def test_a_set_that_cannot_be_written_to_is_still_compared(tmp_path, monkeypatch):
    from inpaint import storage
    from inpaint.errors import StorageError

    train = set_of(tmp_path / "train", {"a.jpg": save(rich(1))})
    test = set_of(tmp_path / "test", {"a.jpg": save(rich(1), quality=60)})

    def refuse(url, data, **options):
        raise StorageError(f"{url}: read-only")

    monkeypatch.setattr(storage, "write_bytes", refuse)
    assert len(check_overlap(train, test).pairs) == 1


def test_signs_are_those_of_the_cosine_transform():
    """A picture made of one cosine has one outstanding frequency; scipy's transform says the same of any."""
    from scipy.fft import dctn

    luma = reduced_luma(save(rich(5), "PNG"))
    low = dctn(luma.astype(float), norm="ortho")[:8, :8].ravel()
    scale = np.where(np.arange(64) % 8 == 0, 1 / np.sqrt(2), 1) * np.where(np.arange(64) < 8, 1 / np.sqrt(2), 1)
    low = low / scale  # ours is without the factor that makes the first row and column orthonormal
    above = low > np.median(low[1:])
    above[0] = False
    bits = np.unpackbits(fingerprint(luma[None]).signs.astype(">u8").view(np.uint8)).astype(bool)
    assert np.array_equal(bits, above)


def test_a_reduced_luma_is_that_of_the_centred_square():
    wide = scene(96, 32)
    square = Image.fromarray(wide[:, 32:64])
    file = io.BytesIO()
    square.convert("L").save(file, "PNG")
    assert np.abs(reduced_luma(save(wide, "PNG")).astype(int) - np.asarray(square.convert("L"))).max() == 0
