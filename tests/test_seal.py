"""Checkpoints are ordinary files, damage is noticed, and nothing in them is executed."""

import argparse
import logging
import os
import pickle
import zipfile

import pytest
import torch
from saved_states import NEW, OLD, OLDER, run, same, state

from ressl_plugin import checkpoint, seal
from ressl_plugin.checkpoint import CheckpointError
from ressl_plugin.errors import UserError

__all__ = ["run"]


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
