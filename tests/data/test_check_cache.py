"""What a check remembers, and what it makes of a memory that is damaged."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from ressl_plugin.data import check_folder


def test_the_cache_saves_decoding_until_a_file_changes(make_folder, tmp_path):
    root, cache = make_folder(), tmp_path / "run" / "check.json"
    (root / "a" / "0.png").write_bytes(b"")
    first = check_folder(root, progress=False, cache=cache)
    # a verdict that decoding would never give shows that it came from the cache
    content = json.loads(cache.read_text())
    content["files"]["b/1.png"][1:] = ["corrupt", "planted"]
    cache.write_text(json.dumps(content))
    again = check_folder(root, progress=False, cache=cache)
    assert again.refused == [*first.refused, ("b/1.png", "corrupt", "planted")]
    for name in ("a/0.png", "b/1.png"):
        Image.new("RGB", (5, 5)).save(root / name)
    assert check_folder(root, progress=False, cache=cache).refused == []


def test_a_damaged_cache_is_made_anew(make_folder, tmp_path):
    cache = tmp_path / "check.json"
    cache.write_text("{half")
    assert check_folder(make_folder(), progress=False, cache=cache).refused == []
    assert len(json.loads(cache.read_text())["files"]) == 6


@pytest.mark.parametrize(
    "entry",
    [{}, None, 7, "ok", [], [None], ["stamp", "ok"], ["stamp", "ok", 3], ["stamp", "ok", [[]]],
     ["stamp", "ok", ["planted"]], ["stamp", "planted", "x"], ["stamp", ["ok"], []],
     ["stamp", "corrupt", None]],
)  # fmt: skip
def test_an_entry_that_is_no_verdict_is_asked_anew(make_folder, tmp_path, entry):
    root, cache = make_folder(), tmp_path / "check.json"
    assert check_folder(root, progress=False, cache=cache).refused == []
    good = json.loads(cache.read_text())
    bad = json.loads(cache.read_text())
    if isinstance(entry, list) and entry[:1] == ["stamp"]:
        entry = [good["files"]["a/1.png"][0], *entry[1:]]
    bad["files"]["a/1.png"] = entry
    cache.write_text(json.dumps(bad))
    report = check_folder(root, progress=False, cache=cache)
    assert report.refused == [] and not report.converted
    assert json.loads(cache.read_text()) == good


@pytest.mark.parametrize("files", [[], None, "files", 3])
def test_a_cache_without_entries(make_folder, tmp_path, files):
    root, cache = make_folder(), tmp_path / "check.json"
    check_folder(root, progress=False, cache=cache)
    cache.write_text(json.dumps({**json.loads(cache.read_text()), "files": files}))
    assert check_folder(root, progress=False, cache=cache).refused == []


def test_a_name_that_is_no_utf_8_is_reported(make_folder, tmp_path):
    root = make_folder(classes=("a",), count=1)
    for name in (b"\xff\xfe.png", b"\xff\xfe.txt"):
        Path(os.fsdecode(os.fsencode(root / "a") + b"/" + name)).touch()
    for _ in range(2):  # the second time from the cache
        report = check_folder(root, progress=False, cache=tmp_path / "check.json")
        text = "\n".join(report.lines())
        assert "zero-byte     a/\\xff\\xfe.png" in text and "a/\\xff\\xfe.txt" in text
        text.encode()  # what a terminal does
