"""Checkpoints are ordinary files, damage is noticed, and nothing in them is executed."""

import argparse
import hashlib
import io
import logging
import os
import pickle
import random
import struct
import zipfile

import pytest
import torch
from saved_states import NEW, OLD, OLDER, run, same, state

from ressl_plugin.run import checkpoint
from ressl_plugin.utils.errors import CheckpointError, Damaged, UserError

__all__ = ["run"]


def test_other_readers_see_an_ordinary_file(run):
    path = run / "last.ckpt"
    assert same(torch.load(path, weights_only=True), OLD)
    assert same(torch.load(path, weights_only=True, mmap=True), OLD)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def sealed(data: bytes) -> bytes:
    """As version 0.1.0 wrote it: with a digest in the zip's comment."""
    assert data[-2:] == b"\0\0"
    comment = b"ressl-sha256:" + hashlib.sha256(data[:-2]).hexdigest().encode()
    return data[:-2] + struct.pack("<H", len(comment)) + comment


def test_a_checkpoint_of_version_0_1_0(run):
    path = run / "last.ckpt"
    data = sealed(path.read_bytes())
    path.write_bytes(data)
    assert same(checkpoint.load(run), OLD)
    checkpoint.save(path, state(NEW))
    assert checkpoint.previous(path).read_bytes() == data, "it is a good one, and is kept"
    path.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    assert same(checkpoint.load(run), OLD), "of previous/"


# Damage to the file on the disk -----------------------------------------------------------------


MORE = [pytest.param(number, marks=pytest.mark.slow) for number in (1, 2, 3)]


def damaged(data: bytes, number: int) -> bytes:
    """A bit is another, or the end is missing; every second bit outside the one large tensor."""
    draw = random.Random(number)
    if number % 3 == 0:
        return data[: draw.randrange(len(data))]
    start = data.index(torch.load(io.BytesIO(data))["state_dict"]["w"].numpy().tobytes())
    outside = [*range(start), *range(start + 64 * 64 * 4, len(data))]
    at = draw.choice(outside) if number % 2 else draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


@pytest.mark.parametrize("how", [bytes, sealed])
@pytest.mark.parametrize("first", [0, *MORE])
def test_damage_is_found_or_does_not_matter(run, how, first, recwarn):
    """150 flips of a bit and truncations; where one is not found, nothing has changed."""
    path = run / "last.ckpt"
    data, found = how(path.read_bytes()), 0
    for number in range(150 * first, 150 * (first + 1)):
        path.write_bytes(damaged(data, number))
        try:
            assert same(checkpoint.read(path), OLD), number
        except Damaged as error:
            found += 1
            assert str(path) in str(error) and "\n" not in str(error), number
    assert found > 75
    assert not recwarn.list


def planted(*args):
    raise AttributeError("planted")


def test_a_bug_of_ours_is_not_called_damage(run, monkeypatch):
    monkeypatch.setattr("ressl_plugin.run.checksum._check", planted)
    with pytest.raises(AttributeError, match="planted"):
        checkpoint.load(run)


def test_a_tensor_that_is_a_directory_for_the_archive(run):
    """One bit of its entry says so, and torch would leave the tensor as it was allocated."""
    path = run / "last.ckpt"
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2", 0, data.index(b"/data/0", directory))
    data[entry + 38] |= 0x10
    path.write_bytes(data)
    with pytest.raises(Damaged, match="data/0"):
        checkpoint.read(path)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_the_one_before_serves(run, keep, caplog):
    path = run / "last.ckpt"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)] if isinstance(keep, float) else data[:keep])
    with caplog.at_level(logging.WARNING):
        assert same(checkpoint.load(run), OLDER)
    assert "going on from the one before" in caplog.text
    assert "last.ckpt" in caplog.text and "previous" in caplog.text


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


# Trust ------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["torch", "legacy", "sealed"])
def test_malicious_checkpoint_is_refused(tmp_path, how):
    target, path = tmp_path / "executed", tmp_path / "last.ckpt"
    evil = {"state_dict": {"w": torch.zeros(1)}, "x": Payload(target)}
    if how == "torch":
        torch.save(evil, path)
    elif how == "legacy":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(evil, path)
        path.write_bytes(sealed(path.read_bytes()))
    with pytest.raises(UserError, match="refused") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert "system" in str(error.value)
    assert not target.exists()
    torch.load(path, weights_only=False) if how in ("torch", "sealed") else None
    assert target.exists() == (how in ("torch", "sealed")), "the payload is a working one"


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_plain_pickle_is_not_executed(tmp_path, protocol):
    target, path = tmp_path / "executed", tmp_path / "last.ckpt"
    path.write_bytes(pickle.dumps({"x": Payload(target)}, protocol=protocol))
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)
    assert not target.exists()


def test_a_state_that_would_need_pickle_is_not_written(run):
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        checkpoint.save(run / "last.ckpt", {"args": argparse.Namespace(lr=1)})
    assert same(checkpoint.load(run), OLD)


def test_not_a_dict(tmp_path):
    torch.save([1, 2], tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="list"):
        checkpoint.load(tmp_path)
