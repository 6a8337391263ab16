"""Nothing that happens to a disk or a process loses the last good checkpoint."""

import argparse
import errno
import logging
import os
import pickle
import resource
import signal
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch

from ressl_plugin import checkpoint, seal
from ressl_plugin.checkpoint import CheckpointError
from ressl_plugin.errors import UserError

OLDER, OLD, NEW = 1, 2, 3


def state(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "state_dict": {"w": torch.randn(64, 64, generator=generator), "ptr": torch.tensor([step])},
        "step": step,
        "nested": {"list": [1, 2.5, "three", None], "tuple": (True, (1, 2))},
    }


def same(found, step):
    expected = state(step)
    assert found["nested"] == expected["nested"] and found["step"] == step
    assert torch.equal(found["state_dict"]["w"], expected["state_dict"]["w"])
    assert torch.equal(found["state_dict"]["ptr"], expected["state_dict"]["ptr"])
    return True


@pytest.fixture
def run(tmp_path):
    """A run directory in mid-life: last.ckpt and the one before it."""
    for step in (OLDER, OLD):
        checkpoint.save(tmp_path / "last.ckpt", state(step))
    return tmp_path


def in_child(work) -> int:
    """Run ``work`` in a fork; 0 if it returned, 1 if it raised, else how it was ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_save_keeps_the_one_before(run):
    assert same(checkpoint.load(run), OLD)
    assert same(checkpoint.load(run / "previous" / "last.ckpt"), OLDER)
    checkpoint.save(run / "last.ckpt", state(NEW))
    assert same(checkpoint.load(run / "last.ckpt"), NEW)
    assert same(checkpoint.read(checkpoint.previous(run / "last.ckpt")), OLD)
    names = sorted(p.relative_to(run).as_posix() for p in run.rglob("*"))
    assert names == ["last.ckpt", "previous", "previous/last.ckpt"]


def test_other_readers_see_an_ordinary_file(run):
    path = run / "last.ckpt"
    assert same(torch.load(path, weights_only=True), OLD)
    assert same(torch.load(path, weights_only=True, mmap=True), OLD)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"ressl-sha256:")


# Damage to the file on the disk -----------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 100, 0.25, 0.5, 0.9, -99, -78, -77, -64, -22, -2, -1])
def test_truncated(run, keep, caplog):
    path = run / "last.ckpt"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)] if isinstance(keep, float) else data[:keep])
    with caplog.at_level(logging.WARNING):
        found = checkpoint.load(run)
    assert same(found, OLDER)
    assert "last.ckpt" in caplog.text and "previous" in caplog.text


@pytest.mark.parametrize(
    "at", [0, 2, 40, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, -98, -79, -78, -77, -60, -1]
)
def test_bit_flipped(run, at, caplog):
    path = run / "last.ckpt"
    data = bytearray(path.read_bytes())
    data[int(len(data) * at) if isinstance(at, float) else at] ^= 0x10
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        found = checkpoint.load(run)
    if at == -77:  # the flip hit the label alone; the data are vouched for by the zip's CRCs
        assert same(found, OLD)
    else:
        assert same(found, OLDER)
        assert "going on from the one before" in caplog.text


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + b"x" * 500, None])
def test_absent_or_something_else(run, content, caplog):
    path = run / "last.ckpt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert same(checkpoint.load(path), OLDER)
    assert str(path) in caplog.text


def test_both_bad_names_both(run):
    for path in (run / "last.ckpt", run / "previous" / "last.ckpt"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(run)
    assert str(run / "last.ckpt") in str(error.value)
    assert str(run / "previous" / "last.ckpt") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"random bytes", None])
def test_a_damaged_last_does_not_oust_a_good_previous(run, content):
    path = run / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    checkpoint.save(path, state(NEW))
    assert same(checkpoint.read(path), NEW)
    assert same(checkpoint.read(checkpoint.previous(path)), OLDER)


# Full and forbidden disks -----------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 64, 500, 4096, 16000, -100, -79, -78, -1])
def test_disk_full_at_byte(run, limit, monkeypatch):
    """The disk takes ``limit`` bytes (negative: all but so many) and then no more."""
    path = run / "last.ckpt"
    room = limit if limit >= 0 else path.stat().st_size + limit
    written = 0
    put = seal.SealingFile._put
    finish = seal.SealingFile.seal

    def full_put(self, data):
        nonlocal written
        if written + len(data) > room:
            self.file.write(bytes(data)[: room - written])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += len(data)
        put(self, data)

    def full_seal(self):
        if written + 79 > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finish(self)

    monkeypatch.setattr(seal.SealingFile, "_put", full_put)
    monkeypatch.setattr(seal.SealingFile, "seal", full_seal)
    with pytest.raises(CheckpointError, match="no space left") as error:
        checkpoint.save(path, state(NEW))
    assert f"{path} is still good" in str(error.value)
    monkeypatch.undo()
    assert same(checkpoint.load(run), OLD)
    assert not list(run.glob(".*")), "the unfinished file is removed: the disk is full"
    checkpoint.save(path, state(NEW))
    assert same(checkpoint.load(run), NEW)


@pytest.mark.parametrize("room", [0, 700, 9000, 17000])
def test_the_kernel_refuses_more_bytes(run, room):
    """No mock: RLIMIT_FSIZE makes the kernel fail the write at that byte."""

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        with pytest.raises(CheckpointError, match="no space left"):
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
            with pytest.raises(CheckpointError, match="cannot be written") as error:
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
    with pytest.raises(CheckpointError, match="checksum"):
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
    except CheckpointError as error:
        assert "Input/output error" in str(error) and "is still good" in str(error)
    monkeypatch.undo()
    assert checkpoint.load(run)["step"] in (OLD, NEW)


# Killed writers ---------------------------------------------------------------------------------

CALLS = ["fsync", "link", "replace", "open", "close", "stat", "unlink"]


def killing_save(path, number):
    """Save, and die just before the ``number``-th system call or data write."""
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
    seal.SealingFile._put = dying(seal.SealingFile._put)
    seal.SealingFile.seal = dying(seal.SealingFile.seal)
    checkpoint.save(path, state(NEW))


@pytest.mark.parametrize("existing", [0, 1, 2])
def test_killed_before_every_operation(tmp_path, existing):
    cases = 0
    while True:
        run = tmp_path / str(cases)
        for step in range(3 - existing, 3):
            checkpoint.save(run / "last.ckpt", state(step))
        cases += 1
        code = in_child(lambda: killing_save(run / "last.ckpt", cases))  # noqa: B023
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

    def forever():
        for step in range(1, 10_000):
            checkpoint.save(path, state(step))

    last = 0
    for delay in range(10):
        pid = os.fork()
        if pid == 0:
            forever()
        time.sleep(0.02 + 0.0037 * delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = checkpoint.load(path)
        assert same(found, found["step"])
        last = max(last, found["step"])
    assert last > 0


def test_without_hard_links(run, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "link", unsupported)
    checkpoint.save(run / "last.ckpt", state(NEW))
    assert same(checkpoint.read(run / "last.ckpt"), NEW)
    assert same(checkpoint.read(run / "previous" / "last.ckpt"), OLD)


# Trust ------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle0", "pickle2", "pickle5", "sealed"])
def test_malicious_checkpoint_is_refused(tmp_path, how):
    target, path = tmp_path / "executed", tmp_path / "last.ckpt"
    evil = {"state_dict": {"w": torch.zeros(1)}, "x": Payload(target)}
    if how == "torch":
        torch.save(evil, path)
    elif how == "legacy":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    elif how == "sealed":
        with open(path, "wb") as file:
            sealing = seal.SealingFile(file)
            torch.save(evil, sealing)
            sealing.seal()
    else:
        path.write_bytes(pickle.dumps(evil, protocol=int(how[-1])))
    with pytest.raises(UserError, match="refused") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert "system" in str(error.value)
    assert not target.exists()
    torch.load(path, weights_only=False) if how in ("torch", "sealed") else None
    assert target.exists() == (how in ("torch", "sealed")), "the payload is a working one"


def test_a_state_that_would_need_pickle_is_not_written(run):
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        checkpoint.save(run / "last.ckpt", {"args": argparse.Namespace(lr=1)})
    assert same(checkpoint.load(run), OLD)


def test_not_a_dict(tmp_path):
    torch.save([1, 2], tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="list"):
        checkpoint.load(tmp_path)


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
