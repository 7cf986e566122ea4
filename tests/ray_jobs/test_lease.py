"""One driver per run: who may take a lease, when, and who finds out that it was lost."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from inpaint import storage
from inpaint.errors import TrainingError
from ray_jobs.lease import Lease, LeaseLostError, check_holder


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "runs" / "a")


def rewrite(run, **changes):
    """The lease's record with some fields changed."""
    url = storage.join(run, "lease.json")
    storage.write_bytes(url, json.dumps(json.loads(storage.read_bytes(url)) | changes).encode())


def test_a_lease_that_was_given_back_is_taken_at_once_and_attempts_are_counted(run):
    attempts = []
    for _ in range(3):
        with Lease(run).acquire() as lease:
            attempts.append(lease.attempt)

    assert attempts == [0, 1, 2]


def test_a_second_driver_is_refused_while_the_first_is_alive_and_names_it(run):
    with Lease(run, lifetime_seconds=3600).acquire():  # renewed so seldom that its own host is not written in between
        rewrite(run, host="elsewhere")  # not this machine, so only renewals tell that it lives
        renew = multiprocessing.get_context("fork").Process(target=_renew, args=(run, 20))
        renew.start()
        try:
            with pytest.raises(TrainingError, match=r"is being trained by process \d+ on elsewhere; .*--name"):
                Lease(run).acquire()
        finally:
            renew.kill()
            renew.join()


def _renew(run, times):
    for _ in range(times):
        time.sleep(0.2)
        rewrite(run, host="elsewhere", renewed=time.time())


def test_a_driver_on_this_machine_that_still_runs_keeps_its_lease(run):
    with Lease(run, lifetime_seconds=1.0).acquire(), pytest.raises(TrainingError, match="is being trained by"):
        Lease(run).acquire()


def test_a_killed_driver_of_this_machine_loses_its_lease_at_once(run):
    child = multiprocessing.get_context("spawn").Process(target=_hold, args=(run,))
    child.start()
    while not storage.exists(storage.join(run, "lease.json")):
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    began = time.monotonic()

    with Lease(run).acquire() as lease:
        assert lease.attempt == 1
    assert time.monotonic() - began < 5  # and not the 60 s of its lifetime


def _hold(run):
    Lease(run).acquire()
    time.sleep(60)


def test_a_silent_driver_of_another_machine_loses_its_lease_after_its_lifetime(run):
    with Lease(run).acquire():
        pass
    rewrite(run, released=False, host="elsewhere", renewed=time.time(), lifetime_seconds=0.5)
    began = time.monotonic()

    with Lease(run).acquire() as lease:
        assert lease.attempt == 1
    assert 0.5 <= time.monotonic() - began < 5


def test_of_many_drivers_at_once_one_gets_the_lease(run):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        got = pool.map(_try, [run] * 4)

    assert sorted(got) == [False, False, False, True]


def _try(run):
    try:
        Lease(run, lifetime_seconds=1.0).acquire()
    except TrainingError:
        return False
    time.sleep(3)
    return True


def test_what_writes_for_an_earlier_attempt_of_the_same_driver_is_refused(run):
    with Lease(run, lifetime_seconds=0.4).acquire() as lease:
        lease.fence()
        first = lease.holder
        check_holder(run, first)
        lease.fence()

        with pytest.raises(LeaseLostError):
            check_holder(run, first)
        check_holder(run, lease.holder)
        time.sleep(0.5)  # it is renewed meanwhile
        assert not lease.lost


def test_a_driver_that_was_taken_over_cannot_begin_another_attempt(run):
    first = Lease(run).acquire()
    rewrite(run, driver="another", holder="another", host="elsewhere", pid=1)

    with pytest.raises(LeaseLostError, match="was taken over by another driver"):
        first.fence()


def test_a_driver_that_was_taken_over_may_not_write_and_notices(run):
    first = Lease(run, lifetime_seconds=0.4).acquire()
    rewrite(run, driver="another", holder="another", host="elsewhere", pid=1)

    with pytest.raises(LeaseLostError, match="taken over by process 1 on elsewhere"):
        check_holder(run, first.holder)
    until = time.monotonic() + 5
    while not first.lost and time.monotonic() < until:
        time.sleep(0.02)
    assert first.lost
    first.release()
    assert json.loads(storage.read_bytes(storage.join(run, "lease.json")))["holder"] == "another"
