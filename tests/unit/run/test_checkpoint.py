"""Nothing that happens to a disk or a writer loses the last good checkpoint."""

import errno
import gc
import io
import os
import resource
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
from saved_states import NEW, OLD, OLDER, in_child, run, same, state

from ressl_plugin.run import checkpoint
from ressl_plugin.utils.errors import CheckpointError, NotSaved

__all__ = ["run"]


def test_a_save_keeps_the_one_before(run):
    assert same(checkpoint.load(run), OLD)
    assert same(checkpoint.load(run / "previous" / "last.ckpt"), OLDER)
    checkpoint.save(run / "last.ckpt", state(NEW))
    assert same(checkpoint.load(run / "last.ckpt"), NEW)
    assert same(checkpoint.read(checkpoint.previous(run / "last.ckpt")), OLD)
    names = sorted(p.relative_to(run).as_posix() for p in run.rglob("*"))
    assert names == ["last.ckpt", "previous", "previous/last.ckpt"]


# Full and forbidden disks -----------------------------------------------------------------------


def writing(monkeypatch, write):
    """`write(file, data)` in place of the unfinished checkpoint's own."""

    class File(io.FileIO):
        def write(self, data):
            return write(super(), data)

    def opened(path, mode):
        return io.BufferedWriter(File(path, mode))

    monkeypatch.setattr(checkpoint, "open", opened, raising=False)


class Disk:
    """Takes so many bytes of an unfinished checkpoint and then no more.

    `spare`: what becomes free with `previous/`, as long as it is there.
    """

    def __init__(self, monkeypatch, room, spare=None):
        self.room, self.spare, self.fails = int(room), spare, 0
        self.had = spare.stat().st_size if spare else 0
        writing(monkeypatch, self.put)

    def put(self, file, data):
        gone = self.had if self.spare and not self.spare.exists() else 0
        left = self.room + gone - file.tell()
        if len(data) <= left:
            return file.write(data)
        self.fails += 1
        file.write(bytes(data)[:left])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("limit", [0, 1, 64, 500, 4096, 16000, -100, -1])
def test_disk_full_at_byte(run, limit, monkeypatch):
    """The disk takes ``limit`` bytes (negative: all but so many) and then no more."""
    path = run / "last.ckpt"
    Disk(monkeypatch, limit if limit >= 0 else path.stat().st_size + limit)
    with pytest.raises(NotSaved, match="no space left") as error:
        checkpoint.save(path, state(NEW))
    assert f"{path} is still good" in str(error.value)
    monkeypatch.undo()
    assert same(checkpoint.load(run), OLD)
    assert not list(run.glob(".*")), "the unfinished file is removed: the disk is full"
    checkpoint.save(path, state(NEW))
    assert same(checkpoint.load(run), NEW)


def test_a_disk_with_room_for_less_than_three(run, monkeypatch, caplog):
    """The checkpoint before the last one makes room, is there again afterwards, and is said."""
    path, spare = run / "last.ckpt", run / "previous" / "last.ckpt"
    for step in (NEW, NEW + 1):
        disk = Disk(monkeypatch, 0.7 * path.stat().st_size, spare)
        checkpoint.save(path, state(step))
        monkeypatch.undo()
        assert disk.fails > 0
        assert same(checkpoint.read(path), step) and same(checkpoint.read(spare), step - 1)
    assert caplog.text.count(f"{spare} is given up") == 1


def test_previous_is_not_given_up_for_a_last_that_is_damaged(run, monkeypatch):
    path, spare = run / "last.ckpt", run / "previous" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-30])
    Disk(monkeypatch, 100, spare)
    with pytest.raises(NotSaved, match=f"{spare} is still good"):
        checkpoint.save(path, state(NEW))
    assert same(checkpoint.read(spare), OLDER)


@pytest.mark.parametrize("room", [0, 700, 9000, 17000])
def test_the_kernel_refuses_more_bytes(run, room):
    """No mock: RLIMIT_FSIZE makes the kernel fail the write at that byte."""

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        with pytest.raises(NotSaved, match="no space left"):
            checkpoint.save(run / "last.ckpt", state(NEW))

    assert in_child(work) == 0
    assert same(checkpoint.load(run), OLD)
    assert same(checkpoint.read(run / "previous" / "last.ckpt"), OLDER)


def test_read_only_directory():
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        checkpoint.save(run / "last.ckpt", state(OLD))

        def work():
            if os.geteuid() == 0:
                os.chown(run, 65534, 65534)
                os.chmod(run / "last.ckpt", 0o644)
                os.setuid(65534)
            os.chmod(run, 0o555)
            with pytest.raises(NotSaved, match="cannot be written") as error:
                checkpoint.save(run / "last.ckpt", state(NEW))
            assert "is still good" in str(error.value) and "run_dir" in str(error.value)

        assert in_child(work) == 0
        os.chmod(run, 0o755)
        assert same(checkpoint.load(run), OLD)


def test_a_disk_that_returns_other_bytes(run, monkeypatch):
    fsync = os.fsync

    def corrupting(descriptor):
        fsync(descriptor)
        temporary = run / ".last.ckpt.tmp"
        if temporary.exists():
            data = bytearray(temporary.read_bytes())
            data[1000] ^= 1
            temporary.write_bytes(data)

    monkeypatch.setattr(os, "fsync", corrupting)
    with pytest.raises(NotSaved, match="checksum"):
        checkpoint.save(run / "last.ckpt", state(NEW))
    assert same(checkpoint.load(run), OLD)


@pytest.mark.parametrize("name", ["fsync", "link", "replace", "unlink", "open"])
def test_a_call_that_fails(run, name, monkeypatch):
    """Whichever system call fails, one message and a checkpoint remain."""

    def failing(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, name, failing)
    try:
        checkpoint.save(run / "last.ckpt", state(NEW))
    except NotSaved as error:
        assert "Input/output error" in str(error) and "is still good" in str(error)
    monkeypatch.undo()
    assert checkpoint.load(run)["step"] in (OLD, NEW)


# Killed writers ---------------------------------------------------------------------------------

CALLS = ["fsync", "link", "replace", "open", "close", "stat", "unlink"]


def killing_save(path, number, monkeypatch):
    """Save, and die just before the ``number``-th system call or write of 500 bytes."""
    count = 0

    def dying(original):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                os._exit(9)
            return original(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))
    writing(monkeypatch, dying(lambda file, data: file.write(data[:500])))
    checkpoint.save(path, state(NEW))


@pytest.mark.parametrize("existing", [0, 1, 2])
def test_killed_before_every_operation(tmp_path, existing, monkeypatch):
    cases = 0
    while True:
        run = tmp_path / str(cases)
        for step in range(3 - existing, 3):
            checkpoint.save(run / "last.ckpt", state(step))
        cases += 1
        code = in_child(lambda: killing_save(run / "last.ckpt", cases, monkeypatch))  # noqa: B023
        if code == 0:
            break
        assert code == 9
        if existing or (run / "last.ckpt").exists():
            found = checkpoint.load(run / "last.ckpt")
            assert same(found, found["step"]) and found["step"] in (OLD, NEW)
        checkpoint.save(run / "last.ckpt", state(NEW))
        assert same(checkpoint.load(run), NEW)
        assert not list(run.rglob(".*")), "what the killed writer left is cleared by the next save"
    assert cases >= 30


def test_killed_at_any_time(tmp_path):
    """SIGKILL at ten moments of a process that does nothing but save."""
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, state(0))

    def forever(saved):
        for step in range(1, 10_000):
            checkpoint.save(path, state(step))
            os.write(saved, b".")

    for delay in range(10):
        heard, saved = os.pipe()
        pid = os.fork()
        if pid == 0:
            forever(saved)
        os.read(heard, 1)  # its first save is done, however slow the machine
        time.sleep(0.0037 * delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(heard)
        os.close(saved)
        found = checkpoint.load(path)
        assert found["step"] > 0 and same(found, found["step"])


def test_what_ends_a_save_is_what_is_raised(run):
    """A data worker's death reaches Python as an exception of a signal handler, anywhere."""
    died = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    path, ended = run / "last.ckpt", []

    def die(*_):
        raise died

    def work():
        signal.signal(signal.SIGALRM, die)
        for number in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, 5e-5 * (1 + number % 100))
                checkpoint.save(path, state(NEW))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except RuntimeError as found:
                assert found is died
                ended.append(number)
            found = checkpoint.load(path)
            assert same(found, found["step"])
        assert len(ended) > 20

    assert in_child(work) == 0


def test_an_exception_between_two_writes_does_not_abort_the_process(run, monkeypatch):
    """torch's archive, not finished, is written to the end when it is deleted: after the close."""
    died = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    def dies(*_):
        raise died

    monkeypatch.setattr(torch.serialization._open_zipfile_writer_buffer, "__exit__", dies)

    def work():
        try:
            checkpoint.save(run / "last.ckpt", state(NEW))
        except RuntimeError as found:
            assert found is died
        died.__traceback__ = None
        gc.collect()

    assert in_child(work) == 0
    assert same(checkpoint.load(run), OLD)


def test_without_hard_links(run, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "link", unsupported)
    checkpoint.save(run / "last.ckpt", state(NEW))
    assert same(checkpoint.read(run / "last.ckpt"), NEW)
    assert same(checkpoint.read(run / "previous" / "last.ckpt"), OLD)


# Finding ----------------------------------------------------------------------------------------


def test_find(run, tmp_path_factory):
    assert checkpoint.find(run) == run / "last.ckpt"
    assert checkpoint.find(run / "last.ckpt") == run / "last.ckpt"
    (run / "last.ckpt").unlink()
    assert checkpoint.find(run) == run / "previous" / "last.ckpt"
    host = tmp_path_factory.mktemp("host")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.find(host)
    for number, name in enumerate(["run-ep=1.ckpt", "run-ep=20.ckpt"]):
        torch.save(state(number), host / name)
        os.utime(host / name, (1000 + number, 1000 + number))
    assert checkpoint.find(host).name == "run-ep=20.ckpt"
    assert same(checkpoint.load(host), 1)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.find(host / "other.ckpt")
