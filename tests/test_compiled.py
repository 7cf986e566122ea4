"""Compiled loops, where their code can be kept and where it cannot."""

import errno
import subprocess
import sys

import numpy as np
from numba.core import caching

from inpaint.compiled import compiled


def double(row):
    for j in range(row.size):
        row[j] *= 2


def doubled():
    row = np.arange(4.0)
    compiled(double)(row)
    return row.tolist()


def test_code_is_kept_for_other_processes(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np; from rows import double; "
        "double(np.arange(4.0)); print(*double.stats.cache_hits.values())"
    )
    text = "from inpaint.compiled import compiled\n\n\n@compiled\ndef double(row):\n    row[0] *= 2\n"
    (tmp_path / "rows.py").write_text(text)
    command = [sys.executable, "-c", program, str(tmp_path)]
    hits = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
    assert hits == [[], ["1"]]


def test_where_nothing_can_be_kept_on_disk_code_is_made_in_memory(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert doubled() == [0, 2, 4, 6]


def test_a_full_disk_is_no_reason_to_fail(monkeypatch):
    asked = []

    def save(*_):
        asked.append("save")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", save)
    assert doubled() == [0, 2, 4, 6]
    assert asked == ["save"]
