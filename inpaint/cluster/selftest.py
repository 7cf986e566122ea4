"""What `helm test` runs in our image: the runtime can be read, RayJobs listed, the store written, read and emptied."""

from __future__ import annotations

import argparse
import sys
import uuid

from inpaint import __version__, storage
from inpaint.cluster.client import connect
from inpaint.errors import ConfigError, InpaintError


def check_cluster(namespace: str, runtime: str) -> str:
    """The API server as the submitter's account sees it.

    Raises:
        InpaintError: it cannot read its runtime or list RayJobs.
    """
    cluster = connect(namespace=namespace)
    found = cluster.read_runtime(runtime)
    jobs, _ = cluster.list_jobs()
    return f"{runtime}: image {found.image.reference}, groups {', '.join(found.worker_groups)}; {len(jobs)} RayJobs"


def check_store(root: str) -> str:
    """One object written, read back and deleted.

    Raises:
        InpaintError: no store is named, or one of the three fails.
    """
    if not root:
        raise ConfigError("INPAINT_ROOT is empty; set store.root, or tests.store: false")
    url, content = storage.join(root, f"helm-test-{uuid.uuid4().hex}"), b"inpaint"
    storage.write_bytes(url, content)
    try:
        if storage.read_bytes(url) != content:
            raise InpaintError(f"{url}: what was read is not what was written")
    finally:
        storage.delete(url)
    return f"{root}: written, read and deleted"


def main() -> None:
    """Exit code 0 when everything is there."""
    import os

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--store", action="store_true", help="also the store in INPAINT_ROOT")
    arguments = parser.parse_args()
    print(f"inpaint {__version__}")
    try:
        print(check_cluster(arguments.namespace, arguments.runtime))
        if arguments.store:
            print(check_store(os.environ.get("INPAINT_ROOT", "")))
    except InpaintError as error:
        sys.exit(f"inpaint: {error}")


if __name__ == "__main__":
    main()
