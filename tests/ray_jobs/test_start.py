"""What a worker's start does not pay for."""

from __future__ import annotations

import subprocess
import sys

import pytest

LATER = ("torchvision", "scipy", "torch._dynamo", "torch._inductor", "sympy", "lpips", "wandb", "matplotlib", "pandas")


@pytest.mark.parametrize("module", ["ray_jobs.worker", "inpaint.inference"])
def test_a_start_imports_nothing_that_only_some_runs_need(module):
    code = f"import sys, {module}; print(*(name for name in {LATER} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
