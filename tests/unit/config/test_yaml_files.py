"""YAML that somebody else wrote: a mapping, or one line about it, at once and in little memory."""

import json

import pytest

from ressl_plugin import config
from ressl_plugin.config import yaml_files
from ressl_plugin.utils.errors import UserError

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200))
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)
)
REFUSED = {
    BOMB: "more than 20000 values",
    MERGED: "more than 20000 values, aliases",
    CHAIN: "nested more than 32 deep",
    "a: &a [*a]": r"line 1: \*a refers to itself",
    "[1, 2]": "a list, not a mapping",
    "3": "the value '3', not a mapping",
    "null: 2": "the key 'None' is no word; put it in quotes",
    "a: {b: {yes: 1}}": r"a.b: the key 'True' is no word",
    "'': 1": "the key '' is empty",
    "a: " + "[" * 5000 + "]" * 5000: "nested more than 32 deep",
    "{" * 5000: "nested more than 32 deep",
    "a: !!bool x": "tag tag:yaml.org,2002:bool",
    "a: !!python/object/apply:os.system [ls]": "tag ",
    "a: " + "9" * 5000: "not YAML: Exceeds the limit",
    "a: 0x_": "not YAML: invalid literal",
    "x: " + "y" * 10_000_000: "more than 64 KiB",
    "a: *b": "undefined alias",
    "a: 1\na: 2": "duplicate key",
    "a: \0": "not YAML",
    "a: 1\n---\nb: 2": "single document",
    "? [1]\n: 2": "unhashable",
    "a: [": "not YAML",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=REFUSED.values())
def test_what_is_no_mapping_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    for read in (yaml_files.read, lambda file: config.load(str(file))):
        with pytest.raises(UserError, match=rf"mine\.yaml: .*{message}"):
            read(tmp_path / "mine.yaml")


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    for name, message in (("latin.yaml", "not UTF-8 text"), ("", "Is a directory")):
        with pytest.raises(UserError, match=message):
            yaml_files.read(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["", "# nothing", "a: &a {b: 1}\nc: *a\n", "a: 1e-3", "{path: a:b}", "\ufeffa: 1"]
)
def test_what_is_one_is_read(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    assert isinstance(yaml_files.read(tmp_path / "mine.yaml"), dict)


def test_json_is_read_as_json(tmp_path):
    file = tmp_path / "args.json"
    given = {"name": "\U0001f600/", "lr": 1e-05, "on": True}
    file.write_text(json.dumps(given).replace("/", "\\/"))
    assert yaml_files.read(file) == given
    for text, message in (('{"a": ' + "[" * 100_000, "64 KiB|nested"), ("{", "not JSON"),
                          ("[" * 40 + "]" * 40, "nested"), ("3", "not a mapping")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            yaml_files.read(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [mine]", r"mine\.yaml: it includes itself"),
        ("defaults: [_self_, other]", r"mine\.yaml: it includes itself"),
        ("defaults: [{group: bomb}]", r"bomb\.yaml: .*more than 20000 values"),
        ("defaults: [group/bomb@here]", r"bomb\.yaml: .*more than 20000 values"),
        ("defaults: 5", "a list of files is expected"),
        ("defaults: [[1]]", "a file's name, or group: name"),
        ("defaults: [{a: b, c: d}]", "a file's name, or group: name"),
        ("defaults: [nosuch]", "nosuch"),
    ],
)
def test_the_files_that_it_is_composed_of_are_judged_too(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("defaults: [mine]")
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "bomb.yaml").write_text(BOMB)
    with pytest.raises(UserError, match=message):
        config.load(str(tmp_path / "mine.yaml"))


def test_the_file_that_an_override_names_is_judged_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: x")
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "bomb.yaml").write_text(BOMB)
    for word in ("+group=bomb", "group=bomb"):
        with pytest.raises(UserError, match=r"bomb\.yaml: .*more than 20000 values"):
            config.load(str(tmp_path / "mine.yaml"), [word])
