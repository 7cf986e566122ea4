"""What commands cost, with the processes they leave behind."""

import sys

import pytest

from inpaint.bench.processes import run_together
from inpaint.errors import TrainingError

BURN = "import time\nwhile time.process_time() < {seconds}: pass"


def test_cpu_time_of_what_a_command_starts_and_does_not_wait_for_is_counted():
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN.format(seconds=1.5)!r}]);"
    wait = "import time; time.sleep(0.2)\nwhile time.process_time() < 1.5: pass"
    parent, other = f"{child}{wait}", BURN.format(seconds=0.5)
    wall, cpu = run_together([[sys.executable, "-c", parent], [sys.executable, "-c", other]])
    assert wall > 1.0
    assert cpu > 2.0  # the child alone, or the two commands alone, use less


def test_a_command_that_fails_is_told_with_its_last_line():
    with pytest.raises(TrainingError, match="failed: inpaint: no shards"):
        run_together([[sys.executable, "-c", "import sys; sys.exit('first\\ninpaint: no shards')"]])
