"""What is remembered of data that were checked: nothing is decoded twice, in any run or place."""

import os
import shutil
from pathlib import Path

import pytest

from ressl_plugin import data
from ressl_plugin.data import check
from ressl_plugin.utils.errors import UserError


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were decoded, in any order."""
    files, decode = [], check.decode
    monkeypatch.setattr(
        check, "decode", lambda path, **how: (files.append(Path(path).name), decode(path, **how))[1]
    )
    return files


@pytest.fixture
def check_run(config):
    """What a run does before its first step."""

    def check_run(root, **options):
        dataset = data.build_dataset(config("custom", root, **options), "pretrain")
        digest = data.identify(dataset)["digest"]
        data.check_once(dataset, digest)

    return check_run


@pytest.mark.parametrize("options", [{}, {"no_labels": True}])
def test_the_second_run_decodes_nothing_nor_does_one_on_a_copy(
    make_folder, check_run, decoded, tmp_path, options
):
    root = make_folder()
    check_run(root, **options)
    assert len(decoded) == 6
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copy)  # other times
    for place in (root, tmp_path / "copy"):
        check_run(place, **options)
    assert len(decoded) == 6


def test_bad_files_are_refused_every_time(make_folder, check_run):
    root = make_folder()
    (root / "a" / "0.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match=r"a/0\.png \(empty"):
            check_run(root)
    (root / "a" / "0.png").unlink()
    check_run(root)


def test_a_file_that_changes_is_looked_at_again(make_folder, check_run):
    root = make_folder()
    check_run(root)
    (root / "b" / "2.png").write_bytes(b"half")
    with pytest.raises(UserError, match=r"b/2\.png \(empty, damaged"):
        check_run(root)


def test_a_place_that_cannot_be_written_is_said_once_and_no_mistake(
    make_folder, check_run, monkeypatch, tmp_path, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESSL_CACHE", str(tmp_path / "file" / "below"))
    with caplog.at_level("INFO"):
        check_run(make_folder())
    assert caplog.text.count("RESSL_CACHE=DIR") == 1


def test_names_that_no_terminal_should_get_raw(make_folder):
    root = make_folder(classes=("a",), count=1)
    for name in (b"\xff\xfe.png", b"\xff\xfe.txt", b"\x1b[31mred\n.png", b"\x1b]0;t\x07.gif\x1b"):
        Path(os.fsdecode(os.fsencode(root / "a") + b"/" + name)).touch()
    report = data.check_folder(root)
    lines = list(report.lines())
    text = "\n".join(lines)
    assert "a/\\udcff\\udcfe.png" in text and "2 .txt" not in text
    assert r"a/\x1b[31mred\n.png" in text and "\x1b" not in text
    assert all(line.isprintable() for line in lines)
    text.encode()  # what a terminal does
    with pytest.raises(UserError) as caught:
        report.refuse()
    assert str(caught.value).isprintable()
