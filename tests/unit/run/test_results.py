"""results.json: complete, atomic, shared between processes, clear when broken."""

import json
import multiprocessing
import os
from datetime import datetime, timedelta
from unittest.mock import ANY

import pytest

import ressl_plugin
from ressl_plugin import host
from ressl_plugin.run import results
from ressl_plugin.utils.errors import UserError

RECORD = {"evaluator": "knn", "protocol": "k=20", "data": "digits", "metric": "top1", "value": 95}


def test_append_fills_in_what_produced_the_number(tmp_path):
    run = tmp_path / "run"
    written = results.append(run, RECORD)
    results.append(run, {**RECORD, "value": 96.5, "spread": 0.5, "seeds": [0, 1], "n": 1437})
    first, second = results.read(run)
    assert first == written
    assert (first["value"], first["spread"], first["seeds"]) == (95.0, None, [])
    assert (second["value"], second["spread"], second["seeds"], second["n"]) == (
        96.5, 0.5, [0, 1], 1437)  # fmt: skip
    assert first["versions"]["solo"] == host.GENERATION
    assert first["versions"]["ressl_plugin"] == ressl_plugin.__version__
    assert set(first["versions"]) >= {"python", "torch", "torchvision", "lightning"}
    assert first["versions"]["solo_learn"] == ("1.0.2" if host.GENERATION == "pypi" else ANY)
    assert datetime.fromisoformat(first["time"]).utcoffset() == timedelta(0)
    assert first["command"]
    assert not [p for p in run.iterdir() if p.name.startswith(".results.json.") and
                p.suffix != ".lock"]  # fmt: skip


def test_a_record_can_be_in_several_tables_and_in_each_once(tmp_path):
    for value in (90, 91):
        results.append(tmp_path, {**RECORD, "value": value})
    for _ in range(2):
        results.put_in_place(tmp_path, results.read(tmp_path)[1], 2, "cifar10, 0.1", "0.05")
    results.put_in_place(tmp_path, results.read(tmp_path)[1], 3, "weak", "cifar10")
    first, second = results.read(tmp_path)
    assert "place" not in first and second["value"] == 91
    assert second["place"] == [
        {"table": 2, "row": "cifar10, 0.1", "column": "0.05"},
        {"table": 3, "row": "weak", "column": "cifar10"},
    ]


def test_a_place_that_another_process_put_there_meanwhile_stays(tmp_path):
    results.append(tmp_path, RECORD)
    (as_read,) = results.read(tmp_path)
    for table in (2, 3, 3):
        results.put_in_place(tmp_path, as_read, table, "cifar10, 0.1", "0.05")
    (record,) = results.read(tmp_path)
    assert [place["table"] for place in record["place"]] == [2, 3]
    with pytest.raises(ValueError, match="not in list"):
        results.put_in_place(tmp_path, {**as_read, "value": 1.0}, 2, "cifar10, 0.1", "0.05")


def test_nothing_evaluated_yet_is_an_empty_list(tmp_path):
    assert results.read(tmp_path) == []


WHOLE = json.dumps(RECORD)


def with_key(key, value):
    """A file of one record with `value`, as JSON, at `key`."""
    rest = {k: v for k, v in RECORD.items() if k != key}
    return f'[{{"{key}": {value}, {json.dumps(rest)[1:]}]'


BROKEN = {
    "": "is broken",
    "[{": "is broken",
    "\udcff": "is broken .*utf-8",
    "{}": "records is a dict, it must be a list",
    f"[{WHOLE}, 1]": r"records\.1 is 1, it must be a mapping",
    '[{"evaluator": "knn"}]': r"records\.0\.protocol is nothing, it must be there",
    with_key("value", "NaN"): "NaN is no number",
    with_key("value", "-Infinity"): "-Infinity is no number",
    with_key("place", '{"table": 2}'): "place is a dict, it must be a list",
    with_key("place", '[{"table": "2", "row": "a", "column": "b"}]'): "place.0.table is '2', it",
    with_key("value", '"95"'): "value is '95', it must be a finite number",
    with_key("value", "true"): "value is True, it must be a finite number",
    with_key("value", "[1]"): "value is a list, it must be",
    with_key("value", "1" + 400 * "0"): "value is a number without end, it must be a finite number",
    with_key("value", 5000 * "7"): "is broken",
    with_key("value", "1e400"): "value is inf, it must be",
    with_key("evaluator", '["knn"]'): "evaluator is a list, it must be text",
    with_key("protocol", "null"): "protocol is nothing, it must be text",
    with_key("protocol", r'"\ud800"'): "protocol is .*, it must be text",  # printing it would fail
    with_key("data", r'"\u001b[2J"'): "data is .*, it must be text",
    with_key("details", "5"): "details is 5, it must be a mapping",
    with_key("details", '{"share": "all"}'): "details.share is .all., it must be",
    with_key("details", 500 * "[" + 500 * "]"): "nested more than 16 deep",
    100_000 * "[" + 100_000 * "]": "is broken",
    with_key("spread", '"wide"'): "spread is 'wide', it must be",
    with_key("seeds", "[1.5]"): "seeds.0 is 1.5, it must be a whole number",
    with_key("epochs", '"ten"'): "epochs is 'ten', it must be",
    with_key("representation", "{}"): "representation is a dict, it must be",
    with_key("data_sets", '{"val": {"images": 3}}'): "data_sets.val is a dict, it must be",
    with_key("versions", "[]"): "versions is a list, it must be",
}


@pytest.mark.parametrize("text,message", BROKEN.items(), ids=[str(i) for i in range(len(BROKEN))])
def test_a_broken_file_is_one_clear_error_and_is_left_alone(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    before = path.read_bytes()
    for call in (lambda: results.read(tmp_path), lambda: results.append(tmp_path, RECORD)):
        with pytest.raises(UserError, match=f"is broken.*{message}|{message}") as error:
            call()
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        assert len(str(error.value)) < 300 + len(str(path))
    assert path.read_bytes() == before


def test_a_directory_in_its_place_is_named(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(UserError, match=r"results.json: cannot be read: Is a directory"):
        results.read(tmp_path)


def test_records_of_earlier_and_later_versions_are_read(tmp_path):
    (tmp_path / "results.json").write_text(f'[{WHOLE}, {{"colour": [1], {WHOLE[1:]}]')
    assert [record["value"] for record in results.read(tmp_path)] == [95, 95]


def test_a_bad_record_is_refused_and_nothing_is_written(tmp_path):
    for bad in (
        {"evaluator": "knn"},
        {**RECORD, "accuracy": 3},
        {**RECORD, "value": float("nan")},
    ):
        with pytest.raises(ValueError, match="result record"):
            results.append(tmp_path, bad)
    with pytest.raises(ValueError):
        results.append(tmp_path, {**RECORD, "spread": float("inf")})
    assert results.read(tmp_path) == []


def test_several_are_written_at_once_or_none(tmp_path, monkeypatch):
    """A sweep of kNN has 98: read and written one by one they took seconds."""
    writes, write = [], results._write
    monkeypatch.setattr(results, "_write", lambda *args: (writes.append(args), write(*args)))
    with pytest.raises(ValueError, match="result record"):
        results.append_all(tmp_path, [RECORD, {"evaluator": "knn"}])
    assert not writes
    written = results.append_all(tmp_path, [{**RECORD, "value": value} for value in range(98)])
    assert len(writes) == 1
    assert results.read(tmp_path) == written
    assert [record["value"] for record in written] == list(range(98))


def test_no_run_directory(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        results.read(tmp_path / "absent")


def test_two_processes_lose_no_record(tmp_path, monkeypatch):
    # the libraries' import is not what is raced here
    monkeypatch.setattr(results, "versions", lambda: {})

    def append():
        for i in range(15):
            results.append(tmp_path, {**RECORD, "value": i})

    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=append) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    values = [record["value"] for record in results.read(tmp_path)]
    assert sorted(values) == sorted(float(i) for i in range(15) for _ in range(3))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    results.append(tmp_path, RECORD)
    before = (tmp_path / "results.json").read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        results.append(tmp_path, RECORD)
    assert (tmp_path / "results.json").read_bytes() == before
    assert json.loads(before) and len(list(tmp_path.glob(".results.json.*"))) <= 1
