"""What is remembered of data that were checked: nothing is decoded twice, in any run or place."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ressl_plugin import data
from ressl_plugin.data import check, known
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
    """What a run does before its first step; -> the digest of its data."""

    def check_run(root, **options):
        dataset = data.build_dataset(config("custom", root, **options), "pretrain")
        digest = data.identify(dataset)["digest"]
        data.check_once(dataset.root, not options.get("no_labels"), digest, progress=False)
        return digest

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


def test_bad_files_are_refused_every_time_and_cost_no_second_look_at_the_others(
    make_folder, check_run, decoded
):
    root = make_folder()
    (root / "a" / "0.png").write_bytes(b"")
    for count in (6, 7):
        with pytest.raises(UserError, match=r"a/0\.png \(zero-byte"):
            check_run(root)
        assert len(decoded) == count
    (root / "a" / "0.png").unlink()
    check_run(root)
    assert len(decoded) == 7


def test_a_file_that_changes_is_looked_at_again(make_folder, check_run, decoded):
    root = make_folder()
    check_run(root)
    Image.new("RGB", (5, 5)).save(root / "a" / "1.png")
    (root / "b" / "2.png").write_bytes(b"half")
    decoded.clear()
    with pytest.raises(UserError, match=r"b/2\.png \(not-an-image"):
        check_run(root)
    assert sorted(decoded) == ["1.png", "2.png"]


def spoil_facts(digest, root):
    (known.folder() / f"{digest}.json").write_bytes(CONTENT)


def spoil_stamps(digest, root):
    (known.folder() / f"{digest}.json").unlink()
    for file in known.folder().glob("sound-*"):
        file.write_bytes(CONTENT)


CONTENT = b""


@pytest.mark.parametrize("spoil", [spoil_facts, spoil_stamps])
@pytest.mark.parametrize(
    "content",
    [b"", b"{half", b"[]", b"null", b"[" * 99999, b"\xff" * 13, b'{"facts": 3}',
     b'{"facts": {"sound": true}}', b'{"pillow": "x", "facts": {"sound": true}}'],
)  # fmt: skip
def test_a_damaged_memory_only_costs_time(
    make_folder, check_run, decoded, monkeypatch, spoil, content
):
    monkeypatch.setitem(globals(), "CONTENT", content)
    root = make_folder()
    digest = check_run(root)
    spoil(digest, root)
    check_run(root)
    known_files = spoil is spoil_facts  # then each file is still known to be sound
    assert len(decoded) == (6 if known_files else 12)
    assert known.facts(digest) == {"sound": True}


def test_a_place_that_cannot_be_written_is_said_once_and_no_mistake(
    make_folder, check_run, monkeypatch, tmp_path, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESSL_CACHE", str(tmp_path / "file" / "below"))
    with caplog.at_level("INFO"):
        check_run(make_folder())
    assert caplog.text.count("RESSL_CACHE=DIR") == 1


def test_where_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("RESSL_CACHE", str(tmp_path))
    assert known.folder() == tmp_path
    monkeypatch.delenv("RESSL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert known.folder() == tmp_path / "x" / "ressl_plugin"


def test_names_that_no_terminal_should_get_raw(make_folder):
    root = make_folder(classes=("a",), count=1)
    for name in (b"\xff\xfe.png", b"\xff\xfe.txt", b"\x1b[31mred\n.png", b"\x1b]0;t\x07.gif\x1b"):
        Path(os.fsdecode(os.fsencode(root / "a") + b"/" + name)).touch()
    report = data.check_folder(root, progress=False)
    lines = list(report.lines())
    text = "\n".join(lines)
    assert "zero-byte     a/\\xff\\xfe.png" in text and "a/\\xff\\xfe.txt" in text
    assert r"a/\x1b[31mred\n.png" in text and "\x1b" not in text
    assert all(line.isprintable() for line in lines)
    text.encode()  # what a terminal does
    with pytest.raises(UserError) as caught:
        report.refuse()
    assert str(caught.value).isprintable()
