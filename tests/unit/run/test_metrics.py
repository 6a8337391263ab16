"""The logs of a run's starts are read as one, whatever a crash has made of them."""

import csv
import errno
import os

import pytest

from ressl_plugin.run import metrics
from ressl_plugin.utils.errors import UserError


def log(folder, steps, loss, start=None):
    """A start's file; without its number, that of a run of version 0.1.0."""
    place = folder if start is None else folder / "logs" / str(start)
    place.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{step // 2},{loss},{step}\n" for step in steps)
    (place / "metrics.csv").write_text("epoch,loss,step\n" + rows)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ({0: (range(4), "a")}, "aaaa"),
        ({0: (range(4), "a"), 1: (range(4, 6), "b")}, "aaaabb"),
        ({0: (range(4), "a"), 1: (range(2, 6), "b")}, "aabbbb"),
        ({0: (range(4), "a"), 1: (range(3), "b")}, "bbb"),  # afresh: nothing beyond is its
        ({0: (range(4), "a"), 1: ([], "b"), 2: (range(2, 4), "c")}, "aacc"),
        ({0: (range(9), "a"), 2: (range(6, 9), "b"), 10: (range(3, 5), "c")}, "aaacc"),
        ({None: (range(4), "o"), 0: (range(3, 5), "a")}, "oooaa"),
    ],
)
def test_a_later_starts_rows_count_from_its_first_step_on(tmp_path, starts, expected):
    for start, (steps, loss) in starts.items():
        log(tmp_path, steps, loss, start)
    for _ in range(2):  # what was joined before changes nothing
        metrics.keep_joined(tmp_path)
        assert rows(tmp_path) == list(enumerate(expected))


def test_columns_are_those_of_all_starts(tmp_path):
    log(tmp_path, [0, 1], 0.5, 0)
    log(tmp_path, [2, 3], 0.25, 1)
    file = tmp_path / "logs" / "1" / "metrics.csv"
    file.write_text(file.read_text().replace("loss", "entropy"))
    columns = metrics.read_metrics(tmp_path)
    metrics.keep_joined(tmp_path)
    for found in (columns, metrics.read_metrics(tmp_path / "metrics.csv")):
        assert {name: (e.tolist(), v.tolist()) for name, (e, v) in found.items()} == {
            "loss": ([0], [0.5]), "entropy": ([1], [0.25])
        }  # fmt: skip


def test_without_logs_nothing_is_written(tmp_path):
    metrics.keep_joined(tmp_path)
    log(tmp_path, [], 0, 0)
    metrics.keep_joined(tmp_path)
    assert not (tmp_path / "metrics.csv").exists() and metrics.next_start(tmp_path) == "1"


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, caplog):
    log(tmp_path, [0], "a")
    log(tmp_path, [1], "b", 0)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    metrics.keep_joined(tmp_path)
    assert rows(tmp_path) == [(0, "a")] and "No space left" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [b"1,0.1,7,7,7\r\n", b"1,0.1\r\n", b"\xff\xfe,garbage,1\r\n", b"\0,0.1,2\r\n", b'"0.1,1,2\r\n',
     b"one,0.1,2\r\n", b"\xb2,0.1,2\r\n"],
)  # fmt: skip
def test_damaged_rows_are_left_out(tmp_path, caplog, damage):
    file = tmp_path / "metrics.csv"
    file.write_bytes(b"step,loss,tau\r\n0,0.0,1\r\n" + damage + b"2,0.2,1\r\n\r\n3,0.3,")
    assert [row["step"] for row in metrics.joined([file])] == ["0", "2", "3"]
    (record,) = caplog.records
    assert record.message == f"{file}: 1 damaged rows are left out, 3 kept"


@pytest.mark.parametrize(
    "content",
    [b"", b"\n1,2\n", b"a,b\n1,2\n", b"\0" * 99, b"\xff\xfe garbage",
     b"epoch,step,loss\n\xff,0,1\n", b"epoch,step,loss\n0,0,\xff\xfe\n",
     b"epoch,step,loss\nnan,0,1\n", b"epoch,step,loss\ninf,0,1\n"],
)  # fmt: skip
def test_a_reader_of_a_damaged_file_is_told(tmp_path, content):
    file = tmp_path / "metrics.csv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv"):
        metrics.read_metrics(file)
