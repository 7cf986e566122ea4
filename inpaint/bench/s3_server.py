"""A real S3 API on this machine for benchmarks: s3rver from npm when it is on the PATH, moto's server otherwise."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "bench"
KEY = "S3RVER"  # the only one that s3rver knows, as key and as secret; moto takes any


def server_name() -> str:
    """Which server would be started."""
    return "s3rver" if shutil.which("s3rver") else "moto"


@contextmanager
def s3_server() -> Iterator[None]:
    """A server in a process of its own with an empty bucket, and this process's environment pointing at it."""
    port, before = _free_port(), dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="inpaint-s3-") as folder:
        server = subprocess.Popen(_command(port, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.environ.update(
            AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=KEY, AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true", AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        )  # fmt: skip
        for other in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            os.environ.pop(other, None)
        try:
            _wait_for(port)
            import boto3

            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            server.terminate()
            server.wait()


def _command(port: int, folder: str) -> list[str]:
    if server_name() == "s3rver":
        return ["s3rver", "-d", folder, "-a", "127.0.0.1", "-p", str(port), "--silent"]
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int, *, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
