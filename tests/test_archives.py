import errno
import io
import os
import struct
import tarfile
import zipfile

import pytest

from inpaint import archives, storage
from inpaint.errors import DataError, StorageError

FILES = {"a/one.txt": b"one", "a/b/two.bin": bytes(range(256)) * 40, "empty.txt": b"", "z.txt": b"last"}


def folder(path):
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def tar(path, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, data in FILES.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def zipped(path, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        file.mkdir("a")
        for name, data in FILES.items():
            file.writestr(name, data)
    return path


MAKERS = {
    "folder": lambda path: folder(path / "source"),
    "s.tar": lambda path: tar(path / "s.tar"),
    "s.tar.gz": lambda path: tar(path / "s.tar.gz", "w:gz"),
    "s.tgz": lambda path: tar(path / "s.tgz", "w:gz"),
    "s.tar.bz2": lambda path: tar(path / "s.tar.bz2", "w:bz2"),
    "s.tar.xz": lambda path: tar(path / "s.tar.xz", "w:xz"),
    "s.zip": lambda path: zipped(path / "s.zip"),
    "stored.zip": lambda path: zipped(path / "stored.zip", zipfile.ZIP_STORED),
    "bzip.zip": lambda path: zipped(path / "bzip.zip", zipfile.ZIP_BZIP2),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_source_lists_the_same_files_and_gives_their_bytes(kind, tmp_path):
    with archives.open_source(str(MAKERS[kind](tmp_path))) as entries:
        assert [(entry.name, entry.size) for entry in entries] == sorted((n, len(d)) for n, d in FILES.items())
        assert {entry.name: archives.read(entry) for entry in entries} == FILES


def test_a_source_in_s3_is_read_by_ranges(tmp_path, monkeypatch):
    """A local store in place of S3: what is asked of it, and that nothing else is."""
    asked = []
    source = MAKERS["s.zip"](tmp_path)
    local = {"s3://lab/s.zip": source}
    monkeypatch.setattr(storage, "stat", lambda url: storage.ObjectInfo(url, local[url].stat().st_size, 0.0, "tag"))

    def read_range(url, start, length):
        asked.append(length)
        return local[url].read_bytes()[start : start + length]

    monkeypatch.setattr(storage, "read_range", read_range)
    with archives.open_source("s3://lab/s.zip") as entries:
        assert {entry.name: archives.read(entry) for entry in entries} == FILES
    assert max(asked) <= archives.READ_AHEAD


def test_of_two_files_of_one_name_in_a_tar_the_later_one_counts(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as file:
        for data in (b"old", b"newer"):
            member = tarfile.TarInfo("one.txt")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    with archives.open_source(str(tmp_path / "s.tar")) as (entry,):
        assert archives.read(entry) == b"newer"


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(tmp_path, monkeypatch):
    source, scandir = folder(tmp_path / "source"), os.scandir

    def broken(place):
        if str(place).endswith("/a"):
            raise OSError(errno.EIO, "Input/output error", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(StorageError, match=r"source/a: cannot be listed \(Input/output error\); check it"):
        archives.open_source(str(source)).__enter__()
    (source / "a").rename(source / "lost+found")
    with archives.open_source(str(source)) as entries:
        assert {entry.name.partition("/")[0] for entry in entries}.isdisjoint({"a", "lost+found"})


def test_a_link_in_a_tar_is_an_empty_file_and_circles_of_folders_end(tmp_path):
    source = folder(tmp_path / "source")
    os.symlink(source, source / "a" / "circle")
    with archives.open_source(str(source)) as entries:
        assert {"a/one.txt", "z.txt"} <= {entry.name for entry in entries}
        assert len(entries) <= 2 * len(FILES)
    with tarfile.open(tmp_path / "s.tar", "w") as file:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        file.add(source / "z.txt", "z.txt")
    with archives.open_source(str(tmp_path / "s.tar")) as entries:
        assert [(entry.name, entry.size) for entry in entries] == [("link.txt", 0), ("z.txt", len(FILES["z.txt"]))]
        assert archives.read(entries[0]) == b""


@pytest.mark.parametrize("kind", ["s.tar", "s.tar.gz", "s.zip"])
def test_a_cut_archive_is_a_damaged_one(kind, tmp_path):
    path = MAKERS[kind](tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 20])
    with pytest.raises(DataError, match="fetch it again"), archives.open_source(str(path)):
        pass


def test_a_changed_byte_in_a_zip_is_found_when_its_file_is_read(tmp_path):
    path = MAKERS["stored.zip"](tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(range(100, 150)))] ^= 1
    path.write_bytes(data)
    with archives.open_source(str(path)) as entries:
        with pytest.raises(DataError, match=r"a/b/two\.bin: its checksum"):
            archives.read(next(entry for entry in entries if entry.name == "a/b/two.bin"))
        assert archives.read(entries[-1]) == b"last"


def test_a_local_header_may_be_longer_than_the_one_that_is_listed(tmp_path):
    path = tmp_path / "aligned.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", b"content")
    data = bytearray(path.read_bytes())
    padding = struct.pack("<HH", 0xD935, 996) + bytes(996)  # as alignment tools put it into the local header alone
    data[28:30] = struct.pack("<H", len(padding))
    data[35:35] = padding
    end = data.index(b"PK\x05\x06")
    data[end + 16 : end + 20] = struct.pack("<I", data.index(b"PK\x01\x02"))
    path.write_bytes(data)
    with archives.open_source(str(path)) as (entry,):
        assert archives.read(entry) == b"content"


def test_a_zip_that_claims_less_than_it_unpacks_to_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.jpg", bytes(1_000_000))
    data = path.read_bytes().replace((1_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(data)
    with archives.open_source(str(path)) as (entry,), pytest.raises(DataError, match="checksum"):
        archives.read(entry)


def test_a_place_without_files_says_what_is_expected(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere", "nowhere.zip", "nowhere.tar", "nowhere.tar.gz"):
        with pytest.raises(DataError, match=name), archives.open_source(str(tmp_path / name)):
            pass
