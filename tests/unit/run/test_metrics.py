"""metrics.csv outlives damage, a full disk and a kill: it is only ever replaced as a whole."""

import csv
import errno
import logging
import os

import pytest

from ressl_plugin.run import metrics
from ressl_plugin.run.metrics import Rows, read_metrics
from ressl_plugin.utils.errors import UserError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "metrics.csv"


@pytest.fixture
def disk(monkeypatch):
    """A disk that can be full: what was written does not get onto it."""

    class Disk:
        full = False
        fsync = staticmethod(os.fsync)

    def fsync(descriptor):
        if Disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        Disk.fsync(descriptor)

    monkeypatch.setattr(metrics.os, "fsync", fsync)
    return Disk


def read(file):
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def steps(file):
    return [int(row["step"]) for row in read(file)]


def add(rows, *which, **more):
    rows.waiting.extend({"step": step, "loss": step / 10, **more} for step in which)


def test_rows_come_bit_by_bit(file):
    rows = Rows(file)
    rows.save()
    assert not file.exists()
    for step in range(5):
        add(rows, step)
        rows.save()
    assert steps(file) == [0, 1, 2, 3, 4]
    add(rows, 5, entropy=0.5)  # another column
    rows.save()
    assert steps(file) == [0, 1, 2, 3, 4, 5]
    assert [row["entropy"] for row in read(file)] == [""] * 5 + ["0.5"]
    file.unlink()
    add(rows, 6)
    rows.save()
    assert steps(file) == [6] and [f.name for f in file.parent.iterdir()] == ["metrics.csv"]


def test_another_object_goes_on(file):
    first, second = Rows(file), Rows(file)
    add(first, 0, 1, 2)
    first.save()
    second.keep(2)
    assert steps(file) == [0, 1]
    add(second, 2, 3)
    second.save()
    assert steps(file) == [0, 1, 2, 3]
    Rows(file).keep(0)
    assert not file.exists()


def test_without_keep_nothing_is_dropped(file):
    first, second = Rows(file), Rows(file)
    add(first, 0, 1)
    first.save()
    add(second, 2)
    second.save()
    assert steps(file) == [0, 1, 2]


def test_a_full_disk_costs_no_row(file, disk, caplog):
    rows = Rows(file)
    add(rows, 0, 1)
    rows.save()
    before = file.read_bytes()
    disk.full = True
    for step in (2, 3):
        add(rows, step)
        rows.save()
        assert file.read_bytes() == before
        assert [f.name for f in file.parent.iterdir()] == ["metrics.csv"]
    add(rows, 4, entropy=0.5)
    rows.save()
    assert file.read_bytes() == before
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"{file} is not written (No space left on device)" in record.message
    disk.full = False
    rows.save()
    assert steps(file) == [0, 1, 2, 3, 4]
    assert caplog.records[-1].message == f"{file} is written again, no row is lost"
    disk.full = True
    add(rows, 5)
    rows.save()
    assert len(caplog.records) == 3, "a second time is news"


def test_on_a_full_disk_rows_are_dropped_later(file, disk):
    rows = Rows(file)
    add(rows, 0, 1, 2)
    rows.save()
    disk.full = True
    again = Rows(file)
    again.keep(2)
    assert steps(file) == [0, 1, 2]
    disk.full = False
    add(again, 2)
    again.save()
    assert steps(file) == [0, 1, 2]


@pytest.mark.parametrize("work", ["append", "new column", "keep"])
def test_a_kill_in_mid_write_leaves_what_was_there(file, monkeypatch, work):
    """At every moment there is a whole file."""
    rows = Rows(file)
    add(rows, 0, 1, 2)
    rows.save()
    before, seen = file.read_bytes(), []

    def replace(*args):
        seen.append(file.read_bytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        if work == "keep":
            rows.keep(1)
        add(rows, 3, **({"entropy": 1} if work == "new column" else {}))
        rows.save()
    assert seen == [before] and file.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [b"1,0.1,7,7,7\r\n", b"1,0.1\r\n", b"\xff\xfe,garbage,1\r\n", b"0.1,1,\0\r\n", b'"0.1,1,2\r\n',
     b"one,0.1,2\r\n", b"\xb2,0.1,2\r\n"],
)  # fmt: skip
def test_rows_that_can_be_read_are_kept(file, caplog, damage):
    file.write_bytes(b"step,loss,tau\r\n0,0.0,1\r\n" + damage + b"2,0.2,1\r\n\r\n3,0.3,")
    rows = Rows(file)
    rows.keep(9)
    assert steps(file) == [0, 2, 3]
    (record,) = caplog.records
    assert record.message == f"{file}: 1 damaged rows are dropped, 3 kept"
    add(rows, 4)
    rows.save()
    assert steps(file) == [0, 2, 3, 4]


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe garbage", b"\n1,2\n", b"a,b\n1,2\n", b"\0" * 99],
    ids=["bytes", "no header", "other columns", "zeros"],
)
def test_a_file_that_cannot_be_read_is_moved_aside(file, caplog, content):
    file.write_bytes(content)
    rows = Rows(file)
    rows.keep(5)
    assert not file.exists()
    assert file.with_name("metrics.csv.damaged").read_bytes() == content
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "it is metrics.csv.damaged now" in record.message
    add(rows, 5)
    rows.save()
    assert steps(file) == [5]


def test_a_folder_of_that_name_is_moved_aside(file):
    file.mkdir()
    rows = Rows(file)
    add(rows, 0)
    rows.save()
    assert steps(file) == [0]


def test_an_empty_file_is_no_damage(file, caplog):
    file.touch()
    Rows(file).keep(5)
    assert not caplog.records and not file.exists()


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe garbage", b"epoch,step,loss\n0,0,\xff\xfe\n", b"epoch,step,loss\n\xff,0,1\n",
     b"epoch,step,loss\nnan,0,1\n", b"epoch,step,loss\ninf,0,1\n"],
)  # fmt: skip
def test_a_reader_of_a_damaged_file_is_told(file, content):
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv"):
        read_metrics(file)
