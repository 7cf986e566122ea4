import functools
import gc
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import webdataset
from PIL import Image

from inpaint.data.index import load_index
from inpaint.data.samples import ShardOptions
from inpaint.data.shards import write_shard, write_shards
from inpaint.data.workers import in_processes
from inpaint.errors import ConfigError, DataError, StorageError
from inpaint.storage import disk
from tests.data.dying import die
from tests.data.gallery import GOOD, MENDED, REFUSED, save, scene, write_gallery

ONE = functools.partial(in_processes, workers=1)


def write(source, url, *, run=ONE, samples=4, **options):
    chosen = {name: options.pop(name) for name in ("dataset", "split", "limit") if name in options}
    return write_shards(str(source), str(url), options=ShardOptions(samples=samples, **options), run=run, **chosen)


def photos(folder, number, *, width=48, height=32):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        (folder / f"{i:03d}.jpg").write_bytes(save(scene(width, height, seed=i), quality=90))
    return folder


def tree(folder):
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def members(folder):
    """Members of every shard, by name."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def test_every_image_lands_in_a_shard_of_the_chosen_size(tmp_path):
    report = write(photos(tmp_path / "photos", 10), tmp_path / "set")
    index = load_index(str(tmp_path / "set"))
    assert (report.shards, report.samples, report.refused) == (3, 10, ())
    assert [shard.samples for shard in index.shards] == [4, 4, 2]
    assert [index.key(i) for i in range(10)] == [f"{i:03d}" for i in range(10)]
    assert report.digest == index.digest
    assert sorted(tree(tmp_path / "set")) == [
        "000000.tar", "000001.tar", "000002.tar", "index.json", "report.json", "samples.parquet",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # WebDataset leaves its files to the collector
def test_plain_webdataset_reads_the_shards(tmp_path):
    write(photos(tmp_path / "photos", 6), tmp_path / "set")
    shards = str(tmp_path / "set" / "{000000..000001}.tar")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"{i:03d}" for i in range(6)]
    for i, sample in enumerate(samples):
        assert np.abs(sample["jpg"].astype(int) - scene(seed=i)).mean() < 8  # two JPEG codings of smooth pictures
        assert sample["json"] == {"source": f"{i:03d}.jpg", "width": 48, "height": 32}
    gc.collect()


def test_the_index_finds_the_bytes_that_the_tar_holds(tmp_path):
    write(photos(tmp_path / "photos", 6), tmp_path / "set")
    index, held = load_index(str(tmp_path / "set")), members(tmp_path / "set")
    for i in range(6):
        data = (tmp_path / "set" / index.shards[index.shard[i]].name).read_bytes()
        assert data[index.offset[i] : index.offset[i] + index.length[i]] == held[f"{i:03d}.jpg"]


def test_short_side_and_crop_reduce_but_never_enlarge(tmp_path):
    source = photos(tmp_path / "photos", 2, width=60, height=40)
    write(source, tmp_path / "short", short_side=20)
    assert size_of(members(tmp_path / "short")["000.jpg"]) == (30, 20)
    write(source, tmp_path / "square", short_side=20, center_crop=0)
    assert size_of(members(tmp_path / "square")["000.jpg"]) == (20, 20)
    write(source, tmp_path / "crop", center_crop=16)
    middle = np.asarray(Image.open(io.BytesIO(members(tmp_path / "crop")["000.jpg"])))
    assert np.abs(middle.astype(int) - scene(60, 40)[12:28, 22:38]).mean() < 8
    report = write(source, tmp_path / "large", short_side=64)
    assert size_of(members(tmp_path / "large")["000.jpg"]) == (60, 40)
    assert report.mended == {"smaller than the short side: left at its size": 2}


def size_of(data):
    return Image.open(io.BytesIO(data)).size


def test_quality_changes_the_bytes_and_the_error(tmp_path):
    source = photos(tmp_path / "photos", 1)
    errors, sizes = [], []
    for quality in (30, 95):
        write(source, tmp_path / f"q{quality}", quality=quality)
        data = members(tmp_path / f"q{quality}")["000.jpg"]
        errors.append(np.abs(np.asarray(Image.open(io.BytesIO(data))).astype(int) - scene()).mean())
        sizes.append(len(data))
    assert errors[0] > errors[1]
    assert sizes[0] < sizes[1]


def test_originals_are_kept_byte_for_byte_unless_readers_would_see_them_differently(tmp_path):
    write_gallery(tmp_path / "gallery")
    report = write(tmp_path / "gallery", tmp_path / "set", samples=100, keep_original=True)
    held = members(tmp_path / "set")
    told = {json.loads(data)["source"]: key for member, data in held.items() for key in [member.removesuffix(".json")]
            if key != member}  # fmt: skip
    for name, data in GOOD.items():
        ending = "jpg" if name == "wrong_ending.png" else name.rsplit(".", 1)[1]
        assert held[f"{told[name]}.{ending}"] == data
    for name, (data, _) in MENDED.items():
        assert held[f"{told[name]}.jpg"] != data
    assert sum(n for what, n in report.mended.items() if "written anew" in what) == len(MENDED)


def test_awkward_files_are_mended_or_refused_one_by_one_and_all_reported(tmp_path):
    write_gallery(tmp_path / "gallery")
    (tmp_path / "gallery" / "list.txt").write_text("not an image")
    report = write(tmp_path / "gallery", tmp_path / "set")
    reasons = dict(report.refused)
    assert set(reasons) == set(REFUSED)
    assert all(word in reasons[name] for name, (_, word) in REFUSED.items())
    assert report.samples == len(GOOD) + len(MENDED)
    assert report.left_out == {"not an image by its name (.txt)": 1}
    for how in {how for _, how in MENDED.values()}:
        assert report.mended[how] == sum(how == other for _, other in MENDED.values())
    assert json.loads((tmp_path / "set" / "report.json").read_text())["refused"] == [list(r) for r in report.refused]
    sources = {json.loads(d)["source"] for name, d in members(tmp_path / "set").items() if name.endswith(".json")}
    assert sources == set(GOOD) | set(MENDED)


def test_a_set_of_nothing_but_refused_images_is_no_set(tmp_path):
    (tmp_path / "bad").mkdir()
    for name, (data, _) in REFUSED.items():
        (tmp_path / "bad" / name).write_bytes(data)
    with pytest.raises(DataError, match=f"none of {len(REFUSED)} images can be used"):
        write(tmp_path / "bad", tmp_path / "set")
    assert tree(tmp_path / "set") == {}


def test_a_file_that_cannot_be_opened_is_refused_not_forgotten(tmp_path):
    source = photos(tmp_path / "photos", 3)
    os.symlink(tmp_path / "gone.jpg", source / "dangling.jpg")
    report = write(source, tmp_path / "set")
    assert report.samples == 3
    assert [name for name, _ in report.refused] == ["dangling.jpg"]


@pytest.mark.parametrize("kind", ["tar", "zip", "gztar"])
def test_a_folder_and_its_archive_make_the_same_shards(tmp_path, kind):
    import shutil

    source = photos(tmp_path / "photos", 5)
    archive = shutil.make_archive(str(tmp_path / "packed"), kind, source)
    write(source, tmp_path / "a")
    write(archive, tmp_path / "b")
    assert members(tmp_path / "a") == members(tmp_path / "b")


def test_two_processes_write_what_one_writes(tmp_path):
    write_gallery(tmp_path / "gallery")
    write(tmp_path / "gallery", tmp_path / "one")
    done = []
    write_shards(
        str(tmp_path / "gallery"), str(tmp_path / "two"), options=ShardOptions(samples=4),
        run=functools.partial(in_processes, workers=2), progress=done.append,
    )  # fmt: skip
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert sum(done) == len(GOOD) + len(MENDED) + len(REFUSED)


class Interrupted(Exception):
    pass


def stop_after(shards, *, then=()):
    """A runner that dies after so many shards, as on a machine that is switched off."""

    def run(tasks, progress):
        for task in tasks[:shards]:
            write_shard(task, progress)
        raise Interrupted

    return run


def test_an_interrupted_set_is_not_there_and_goes_on_where_it_stopped(tmp_path):
    source = photos(tmp_path / "photos", 10)
    write(source, tmp_path / "whole")
    with pytest.raises(Interrupted):
        write(source, tmp_path / "set", run=stop_after(2))
    with pytest.raises(DataError, match=r"no index\.json"):
        load_index(str(tmp_path / "set"))
    finished = (tmp_path / "set" / "000001.tar").stat().st_mtime_ns
    report = write(source, tmp_path / "set")
    assert report.kept == 2
    assert (tmp_path / "set" / "000001.tar").stat().st_mtime_ns == finished
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_a_shard_that_was_altered_in_between_is_written_again(tmp_path):
    source = photos(tmp_path / "photos", 10)
    write(source, tmp_path / "whole")
    with pytest.raises(Interrupted):
        write(source, tmp_path / "set", run=stop_after(3))
    shard = tmp_path / "set" / "000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    (tmp_path / "set" / "000000.tar").unlink()
    assert write(source, tmp_path / "set").kept == 1
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_a_shard_of_which_the_store_kept_only_a_part_is_no_shard_and_is_written_again(tmp_path, monkeypatch):
    source = photos(tmp_path / "photos", 10)
    upload = disk.upload

    def keep_a_part(path, url, progress):
        upload(path, url, progress)
        if url.endswith("000001.tar"):
            os.truncate(url, 1024)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "upload", keep_a_part)
        with pytest.raises(StorageError, match=r"did not keep 000001\.tar as written \(1 of 3 shards\).*again"):
            write(source, tmp_path / "set")
    assert write(source, tmp_path / "set").kept == 2
    write(source, tmp_path / "whole")
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_a_killed_writer_leaves_no_half_shard_and_the_next_run_ends_the_same(tmp_path):
    source = photos(tmp_path / "photos", 60, width=400, height=300)
    write(source, tmp_path / "whole", samples=5)
    program = (
        "import functools\n"
        "from inpaint.data.samples import ShardOptions\n"
        "from inpaint.data.shards import write_shards\n"
        "from inpaint.data.workers import in_processes\n"
        "if __name__ == '__main__':\n"
        f"    write_shards({str(source)!r}, {str(tmp_path / 'set')!r}, options=ShardOptions(samples=5),\n"
        "                 run=functools.partial(in_processes, workers=2))\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, str(tmp_path / "program.py")], env=environment)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "set").glob("*.tar")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in (tmp_path / "set").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert not (tmp_path / "set" / "index.json").exists()
    (tmp_path / "set" / ".000007.tar.0123.tmp").write_bytes(b"what a writer was killed over")
    write(source, tmp_path / "set", samples=5)
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_the_same_call_again_changes_nothing(tmp_path):
    source = photos(tmp_path / "photos", 5)
    first = write(source, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    again = write(source, tmp_path / "set")
    assert (again.digest, again.samples, again.kept) == (first.digest, 5, 2)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == before


def test_another_set_is_never_written_over_and_the_difference_is_named(tmp_path):
    source = photos(tmp_path / "photos", 5)
    write(source, tmp_path / "set", quality=90)
    with pytest.raises(DataError, match="another set is here .*quality 90 there, 80 wanted"):
        write(source, tmp_path / "set", quality=80)
    with pytest.raises(Interrupted):
        write(source, tmp_path / "half", run=stop_after(1))
    with pytest.raises(DataError, match="another set is unfinished here .*samples 4 there, 5 wanted"):
        write(source, tmp_path / "half", samples=5)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match="shards of unknown origin are here"):
        write(source, tmp_path / "foreign")


def test_shards_of_so_many_bytes_are_about_that_large(tmp_path):
    source = photos(tmp_path / "photos", 40)
    options = ShardOptions(samples=None, shard_bytes=30_000)
    write_shards(str(source), str(tmp_path / "set"), options=options, run=ONE)
    sizes = [shard.bytes for shard in load_index(str(tmp_path / "set")).shards]
    assert len(sizes) > 2
    assert all(20_000 < size < 42_000 for size in sizes[:-1])  # a tar is padded to multiples of 10,240 bytes


def test_provenance_says_where_the_set_comes_from_but_not_when(tmp_path):
    write(photos(tmp_path / "photos", 3), tmp_path / "set", limit=2)
    told = load_index(str(tmp_path / "set")).provenance
    assert told["source"] == "photos"
    assert told["options"]["quality"] == 95
    assert told["chosen"] == {"dataset": None, "split": None, "limit": 2, "shuffle": None}
    assert told["images"] == 2


def test_a_data_set_of_the_catalog_brings_its_crop(tmp_path):
    source = photos(tmp_path / "img_align_celeba", 12, width=178, height=218)
    write(source, tmp_path / "set", dataset="celeba-182339", split="train")  # ISFRNet: centre 178
    held = [data for name, data in members(tmp_path / "set").items() if name.endswith(".jpg")]
    assert {size_of(data) for data in held} == {(178, 178)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 4, "shard_bytes": 100}, "exactly one"),
        ({"samples": None}, "exactly one"),
        ({"samples": 0}, "samples is 0"),
        ({"short_side": -1}, "short_side is -1"),
        ({"center_crop": -1}, "center_crop is -1"),
        ({"quality": 101}, "quality is 101"),
        ({"keep_original": True, "short_side": 64}, "Give only one"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        ShardOptions(**options)


def test_a_killed_worker_process_is_a_clear_error(tmp_path, monkeypatch):
    source = photos(tmp_path / "photos", 12)
    monkeypatch.setattr("inpaint.data.workers._write", die)
    with pytest.raises(DataError, match="a worker process was killed.*fewer --workers"):
        write(source, tmp_path / "set", run=functools.partial(in_processes, workers=2))
