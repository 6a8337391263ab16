"""YAML that somebody else wrote: a mapping, or one line about it, at once and in little memory."""

import json

import pytest

from ressl_plugin import config
from ressl_plugin.config import yaml_files
from ressl_plugin.utils.errors import UserError

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200))
WIDE = f"a: &a [{9000 * 'x,'}]\n" + "b: [*a, *a, *a]\n"
REFUSED = {
    BOMB: "nested more than 32 deep",
    WIDE: "more than 20000 values, aliases",
    CHAIN: "nested more than 32 deep",
    "a: &a [*a]": "nested more than 32 deep",
    "[1, 2]": "a list, not a mapping",
    "3": "the value '3', not a mapping",
    "null: 2": "the key 'None' is no word; put it in quotes",
    "a: {b: {yes: 1}}": r"a.b: the key 'True' is no word",
    "'': 1": "the key '' is empty",
    "a: " + "[" * 5000 + "]" * 5000: "not YAML",
    "{" * 5000: "not YAML",
    "a: !!python/object/apply:os.system [ls]": "could not determine a constructor for the tag",
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
    deep = '{"a": ' + "[" * 40 + "]" * 40 + "}"
    for text, message in (('{"a": ' + "[" * 100_000, "64 KiB"), ("{", "not JSON"),
                          (deep, "nested more than 32"), ("3", "not a mapping")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            yaml_files.read(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [mine]", r"mine\.yaml: it includes itself"),
        ("defaults: [_self_, other]", r"mine\.yaml: it includes itself"),
        ("defaults: [broken]", r"mine\.yaml: .*broken\.yaml"),
        ("defaults: 5", "defaults must be a list"),
        ("defaults: [[1]]", "Unsupported type in defaults"),
        ("defaults: [{a: b, c: d}]", "Too many keys in default item"),
        ("defaults: [nosuch]", "nosuch"),
    ],
)
def test_mistakes_in_what_it_is_composed_of_are_one_line(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("defaults: [mine]")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=message):
        config.load(str(tmp_path / "mine.yaml"))
