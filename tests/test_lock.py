"""One run at a time: taking, refusing, taking over, fencing; on a disk and on S3."""

import os
import subprocess
import sys
import threading
import time

import pytest

from pipeline.files import delete_files, list_files, read_bytes, write_bytes
from pipeline.lock import DatasetLock, Holder, _process_space, _started, read_lock
from schemas.errors import LockedError

TTL_S = 1.0


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def dataset(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "labels")
    import s3fs

    request.getfixturevalue("s3_server")
    bucket = f"locks-{abs(hash(request.node.name))}-{time.monotonic_ns()}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/labels"


def leave(dataset, number, **changes):
    """Write the lock of a run on another machine that does nothing any more."""
    holder = Holder(
        run_id="lost", host="elsewhere", process="other", pid=1, since=0.0, ttl_s=TTL_S
    ).model_copy(update=changes)
    write_bytes(dataset, f"_lock/{number:06d}.json", holder.model_dump_json().encode())


def test_a_lock_is_released_and_taken_again_under_the_next_number(dataset):
    numbers = []
    for _ in range(3):
        with DatasetLock(dataset, "run", TTL_S) as lock:
            numbers.append(lock.number)
            lock.check()
    assert numbers == [1, 2, 3]
    assert list_files(dataset, "_lock") == ["_lock/000003.json"]


def test_what_a_killed_holder_left_half_written_goes_with_its_lock(tmp_path):
    dataset = str(tmp_path)
    leave(dataset, 7, released=True)
    for name in ("000007.json.0a1b.draft", "notes.txt"):
        (tmp_path / "_lock" / name).write_text("{}")
    with DatasetLock(dataset, "run", TTL_S):
        assert list_files(dataset, "_lock") == ["_lock/000008.json", "_lock/notes.txt"]


def test_a_second_run_is_refused_with_the_name_of_the_first(dataset):
    with DatasetLock(dataset, "first", TTL_S):
        with pytest.raises(LockedError, match=r"held by run first on .*process \d+"):
            DatasetLock(dataset, "second", TTL_S).__enter__()
        time.sleep(2 * TTL_S)  # it is renewed, so it does not expire
        with pytest.raises(LockedError):
            DatasetLock(dataset, "third", TTL_S).__enter__()


def test_a_lock_whose_holder_is_silent_is_taken_over_after_its_time(dataset):
    leave(dataset, 7)
    started = time.monotonic()
    with DatasetLock(dataset, "run", TTL_S) as lock:
        assert lock.number == 8
    assert time.monotonic() - started > TTL_S


def test_the_clock_of_the_holder_does_not_count(dataset):
    leave(dataset, 7, since=time.time() + 10**6)
    with DatasetLock(dataset, "run", TTL_S) as lock:
        assert lock.number == 8


def test_a_run_that_lost_its_lock_is_fenced(dataset):
    with DatasetLock(dataset, "slow", TTL_S) as lock:
        leave(dataset, lock.number + 1)
        with pytest.raises(LockedError, match="another run took over"):
            lock.check()
    # Nor does it touch the lock of the other on its way out.
    assert b'"released":false' in read_bytes(dataset, "_lock/000002.json")


def test_of_many_that_start_at_once_one_gets_the_lock(dataset):
    got, refused = [], []
    barrier, over = threading.Barrier(6), threading.Event()

    def start(number):
        barrier.wait()
        try:
            with DatasetLock(dataset, f"run-{number}", TTL_S):
                got.append(number)
                over.wait(20)
        except LockedError:
            refused.append(number)
            if len(refused) == 5:
                over.set()

    threads = [threading.Thread(target=start, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)


def test_a_holder_that_was_killed_on_this_machine_is_not_waited_for(tmp_path):
    dataset = str(tmp_path / "labels")
    code = (
        "import os, sys; from pipeline.lock import DatasetLock; "
        "DatasetLock(sys.argv[1], 'killed', 600.0).__enter__(); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, dataset], check=False)
    assert ended.returncode == -9
    started = time.monotonic()
    with DatasetLock(dataset, "run", 600.0) as lock:
        assert lock.number == 2
    assert time.monotonic() - started < 5


def test_a_process_number_that_was_given_away_is_not_the_holder(tmp_path):
    dataset = str(tmp_path / "labels")
    with DatasetLock(dataset, "probe", TTL_S):
        held = Holder.model_validate_json(read_bytes(dataset, "_lock/000001.json"))
    # This very process, but the lock is of one that started before it.
    started = held.started - 1
    leave(dataset, 2, process=held.process, pid=os.getpid(), started=started, ttl_s=600.0)
    with DatasetLock(dataset, "run", TTL_S) as lock:
        assert lock.number == 3


def test_a_clock_that_is_set_ends_no_lock(dataset, monkeypatch):
    real = time.time
    with DatasetLock(dataset, "first", TTL_S) as lock:
        monkeypatch.setattr(time, "time", lambda: real() + 3600)
        with pytest.raises(LockedError, match="held by run first"):
            DatasetLock(dataset, "second", TTL_S).__enter__()
        lock.check()


def test_a_run_that_lost_its_lock_writes_no_lock_again(dataset):
    """Its own file went as the other took over, and must not come back."""
    with DatasetLock(dataset, "slow", 0.4) as lock:
        leave(dataset, lock.number + 1)
        delete_files(dataset, [f"_lock/{lock.number:06d}.json"])
        time.sleep(0.5)  # its renewal was due
        assert list_files(dataset, "_lock") == ["_lock/000002.json"]
    assert list_files(dataset, "_lock") == ["_lock/000002.json"]


def test_a_holder_that_ended_but_was_not_collected_is_not_waited_for(tmp_path):
    dataset = str(tmp_path / "labels")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held = {"process": _process_space(), "pid": child.pid, "started": _started(child.pid)}
    leave(dataset, 1, **held, ttl_s=600.0)
    assert read_lock(dataset).is_alive
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not read_lock(dataset).is_alive
    with DatasetLock(dataset, "run", TTL_S) as lock:
        assert lock.number == 2
    child.wait()


def test_a_process_of_another_machine_or_of_another_user_may_live(tmp_path, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dataset = str(tmp_path / "labels")
    leave(dataset, 1, pid=child.pid, ttl_s=600.0)  # there is no such process here
    assert read_lock(dataset).is_alive
    leave(dataset, 1, pid=child.pid, process=_process_space(), ttl_s=600.0)
    assert not read_lock(dataset).is_alive

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert read_lock(dataset).is_alive
