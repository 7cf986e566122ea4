"""The stream from a real S3 API, against WebDataset through curl; and the S3 client against a bare socket."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

from inpaint import storage
from inpaint.bench import loaders
from inpaint.bench.measure import Cost, Elsewhere, interleaved, read_all
from inpaint.bench.s3_server import BUCKET, s3_server
from inpaint.config.run import DataConfig
from inpaint.data.index import Index, load_index
from inpaint.data.stream import Stream

PIPE_RECIPE = "webdataset through pipe:curl, PIL, ToTensor, 2 workers"
OBJECT_BYTES = 64 << 20
GB = 1e9


def measure_s3(index: Index, root: Path, *, rounds: int) -> dict[str, Cost]:
    """From GET to shuffled batches, with nothing cached at the beginning of each round."""
    with s3_server():
        for info in storage.list_objects(index.url):
            storage.upload(storage.local_path(info.url), storage.join(f"s3://{BUCKET}/set", storage.name_of(info.url)))
        remote, cache = load_index(f"s3://{BUCKET}/set"), root / "s3-cache"
        data = DataConfig(dataset="bench", image_size=256, cache_dir=str(cache))

        def ours() -> int:
            shutil.rmtree(cache, ignore_errors=True)
            with Stream(remote, data, None, seed=0, global_batch=loaders.BATCH) as stream:
                for _ in range(stream.batches_per_epoch):
                    read_all(stream.next_host().slot.rows["pixels"])
                return stream.batches_per_epoch * loaders.BATCH

        urls = [f"pipe:curl -s -f '{_presigned(f'set/{shard.name}')}'" for shard in index.shards]
        ours()
        with (
            Elsewhere(loaders.webdataset_loader, urls, decode="pil") as pil,
            Elsewhere(loaders.webdataset_loader, urls, decode="rgb8") as rgb8,
        ):
            candidates = {"stream, cold": ours, PIPE_RECIPE: pil, "webdataset through pipe:curl, rgb8, 2 workers": rgb8}
            return interleaved(candidates, rounds=rounds)


def measure_clients(*, rounds: int) -> dict[str, Cost]:
    """Seconds per GB of a 64 MiB object: our reads, boto3's own, and a socket with nothing around it."""
    with s3_server():
        url = f"s3://{BUCKET}/object"
        storage.write_bytes(url, os.urandom(OBJECT_BYTES))
        buffer = bytearray(OBJECT_BYTES)
        import boto3

        client, address = boto3.client("s3"), _presigned("object")

        def ours() -> float:
            storage.read_into(url, 0, buffer)
            return OBJECT_BYTES / GB

        def plain_boto3() -> float:
            return len(client.get_object(Bucket=BUCKET, Key="object")["Body"].read()) / GB

        def raw_socket() -> float:
            return _get(address, memoryview(buffer)) / GB

        candidates = {"raw socket": raw_socket, "storage.read_into": ours, "boto3 get_object().read()": plain_boto3}
        for work in candidates.values():
            work()
        return interleaved(candidates, rounds=rounds)


def _presigned(key: str) -> str:
    """An address that anybody may GET, as a shell pipe or a socket needs it."""
    import boto3

    return boto3.client("s3").generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": key})


def _get(address: str, view: memoryview) -> int:
    """GET over a bare socket into `view`; returns the length of the body."""
    place = urlsplit(address)
    request = f"GET {place.path}?{place.query} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(request.encode())
        head = bytearray()
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        head, _, rest = bytes(head).partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(f"{place.netloc}{place.path}: {head.splitlines()[0]!r}")
        view[: len(rest)] = rest
        done = len(rest)
        while done < len(view):
            count = connection.recv_into(view[done:])
            if not count:
                break
            done += count
        return done
