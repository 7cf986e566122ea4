"""The log container of the head, run as it is: it prints the driver's log, follows a new session, ends at once."""

import signal
import subprocess
import time

import pytest

from inpaint.cluster.pods import FOLLOW_DRIVER


@pytest.fixture
def ray_folder(tmp_path):
    folder = tmp_path / "ray"
    folder.mkdir()
    return folder


def start_session(folder, name, text):
    logs = folder / name / "logs"
    logs.mkdir(parents=True)
    (logs / "job-driver-paris-x1.log").write_text(text)
    latest = folder / "session_latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder / name)
    return logs / "job-driver-paris-x1.log"


def until(path, text, seconds=15):
    end = time.monotonic() + seconds
    while text not in path.read_text():
        assert time.monotonic() < end, path.read_text()
        time.sleep(0.05)


def test_it_prints_the_drivers_log_follows_a_new_session_and_ends_at_once(ray_folder, tmp_path):
    script = FOLLOW_DRIVER.replace("/tmp/ray", str(ray_folder)).replace("sleep 2", "sleep 0.1")
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(["/bin/bash", "-c", script], stdout=file, stderr=subprocess.PIPE)
    try:
        time.sleep(0.3)  # there is no log yet
        log = start_session(ray_folder, "session_1", "one\n")
        until(output, "one")
        with log.open("a") as more:
            more.write("two\n")
        until(output, "two")
        start_session(ray_folder, "session_2", "three\n")  # the head's container was started again
        until(output, "three")
    finally:
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(10) == 0
        assert time.monotonic() - began < 2
    assert output.read_text().split() == ["one", "two", "three"]
    assert process.stderr.read() == b""
    process.stderr.close()
