"""Compiled kernels are kept in a folder that outlives the machine's temporary files, or in the one that was named."""

import os

import pytest

from inpaint.training.compiling import compiled


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unset")  # so that it is put back afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return tmp_path


def test_kernels_are_kept_in_the_users_cache_though_torchs_imports_name_a_temporary_folder(home):
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert not cache_dir().startswith(str(home))  # as the imports of torch._dynamo do
    compiled(abs, name="abs")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(home / "inpaint" / "compiled" / "inductor")


def test_a_folder_that_the_environment_names_is_kept(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cache/inductor")
    compiled(abs, name="abs")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/cache/inductor"
