"""Toy shards, made once; plain sessions over them."""

import pytest

from ray_jobs.toy import write_toy_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    write_toy_shards(root)
    return root


@pytest.fixture
def root(shards, tmp_path):
    """A root of its own for a test, over the shared shards."""
    (tmp_path / "shards").symlink_to(shards / "shards")
    return tmp_path
