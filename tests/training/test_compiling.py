"""Compiled kernels are kept in a folder that outlives the machine's temporary files, or in the one that was named."""

import os
import subprocess
import sys

import pytest

from inpaint.training import compiling
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


SCRIPT = """
import torch
from inpaint.methods import build_method
from inpaint.training import Trainer
from ray_jobs.toy import toy_run
from tests.training.test_health import batches

torch.set_num_threads(1)
run = toy_run("unused", "compiled", "training.compile=true")
torch.manual_seed(0)
step = next(Trainer(build_method(run), run.training, seed=0).steps(batches()))
found = torch._dynamo.utils.counters["aot_autograd"]
print(found["autograd_cache_hit"], found["autograd_cache_miss"], found["autograd_cache_bypass"])
print(step.scalars())
"""


@pytest.mark.slow
def test_a_second_process_finds_every_graph_that_the_first_one_compiled(monkeypatch, tmp_path):
    """ISNet's discriminator has gradients written by hand, which torch keeps only when it is told that it may."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def start():
        said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
        counts, scalars = said.splitlines()
        return [int(count) for count in counts.split()], scalars

    (hit, compiled_anew, bypassed), cold = start()
    assert (hit, bypassed) == (0, 0)
    assert start() == ([compiled_anew, 0, 0], cold)


def test_what_is_kept_is_named_after_the_code_of_networks_losses_and_methods(monkeypatch, tmp_path):
    package = tmp_path / "inpaint"
    monkeypatch.setattr(compiling, "__file__", str(package / "training" / "compiling.py"))
    seen = []
    for folder in ("losses", "methods", "nn", "cli"):
        (package / folder).mkdir(parents=True)
        (package / folder / "one.py").write_text(folder)
        compiling._code.cache_clear()
        seen.append(compiling._code())
    compiling._code.cache_clear()

    assert len(set(seen[:3])) == 3
    assert seen[3] == seen[2]
