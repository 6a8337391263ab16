"""One results file a run: every evaluator appends a record, tables are made from these alone."""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ressl_plugin.data.identity import is_identity
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError

FILE = "results.json"
LONGEST = 18  # digits of a whole number: what is longer is no count of anything
DEEPEST = 16  # lists and mappings within each other


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_count(value) -> bool:
    return type(value) is int and value >= 0


def _is_text(value) -> bool:
    return isinstance(value, str) and value.isprintable()


def _or_null(check):
    return lambda value: value is None or check(value)


def _are_details(value) -> bool:
    return isinstance(value, dict) and _or_null(_is_number)(value.get("share"))


def _are_versions(value) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _are_data_sets(value) -> bool:
    return isinstance(value, dict) and all(map(is_identity, value.values()))


REQUIRED = {  # key -> what its value is, and whether it is that
    "evaluator": ("text", _is_text),
    "protocol": ("text", _is_text),
    "data": ("text", _is_text),
    "metric": ("text", _is_text),
    "value": ("a finite number", _is_number),
}
OPTIONAL = {
    "spread": ("a finite number or null", _or_null(_is_number)),
    "seeds": ("a list of whole numbers",
              lambda v: isinstance(v, list) and all(type(seed) is int for seed in v)),
    "versions": ("names and versions", _are_versions),
    "command": ("text", lambda value: isinstance(value, str)),
    "time": ("text", _is_text),
    "n": ("a whole number", _is_count),
    "details": ("a mapping", _are_details),
    "representation": ("text or null", _or_null(_is_text)),
    "epochs": ("a whole number or null", _or_null(_is_count)),
    "checkpoint": ("text", _is_text),
    "data_sets": ("data sets: images, classes, digest", _are_data_sets),
}  # fmt: skip


def fault_of(record) -> str | None:
    """What is wrong with a record, whoever wrote it; None if nothing is."""
    if not isinstance(record, dict):
        return "no mapping"
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        return f"without {', '.join(missing)}"
    for key, (what, check) in {**REQUIRED, **OPTIONAL}.items():
        if key in record and not check(record[key]):
            return f"{key}: {repr(record[key])[:40]} is not {what}"
    return None


def append(run_dir: str | Path, record: dict) -> dict:
    """Add one record to `run_dir`/results.json; whole file or nothing, safe between processes.

    Args:
        run_dir: the run's directory; made if absent.
        record: must have the keys of REQUIRED, may have those of OPTIONAL: of the weights `epochs`
            (trained) and `checkpoint` (file name), of the images `data_sets` (split -> what
            `data.identify` gives). versions, command and time (UTC) are filled in.

    Returns:
        The record as written.

    Raises:
        ValueError: a required key is missing, a key unknown, a value of another type.
        UserError: the file that is there is broken.
    """
    record = {
        **{key: record[key] for key in REQUIRED if key in record},
        "spread": None,
        "seeds": [],
        "versions": versions(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **{key: value for key, value in record.items() if key not in REQUIRED},
    }
    unknown = [key for key in record if key not in REQUIRED and key not in OPTIONAL]
    fault = f"unknown keys {unknown}" if unknown else fault_of(record)
    if fault:
        raise ValueError(f"result record: {fault}")
    record["value"] = float(record["value"])
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with files.locked(run_dir / f".{FILE}.lock", seconds=60):
        text = json.dumps([*read(run_dir), record], indent=1, allow_nan=False)
        files.replace(run_dir / FILE, f"{text}\n".encode())
    return record


def read(run_dir: str | Path) -> list[dict]:
    """The records of a run, oldest first; none if nothing has been evaluated yet.

    Raises:
        UserError: no such directory, or the file is not a list of records, each value of the kind
            that REQUIRED and OPTIONAL name.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"no run directory at {run_dir}; give one that `ressl pretrain` made")
    path = run_dir / FILE
    try:
        records = json.loads(
            path.read_bytes().decode(), parse_constant=_no_number, parse_int=_whole_number
        )
    except FileNotFoundError:
        return []
    except OSError as error:  # a directory, another user's
        raise UserError(f"{path}: cannot be read: {error.strerror}; move it away") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, no numbers, too deep
        raise UserError(f"{path} is broken ({error}); repair it or move it away") from None
    if not isinstance(records, list):
        fault = "not a list of records"
    elif _depth(records) > DEEPEST:
        fault = f"nested more than {DEEPEST} deep"
    else:
        faults = ((number, fault_of(record)) for number, record in enumerate(records, 1))
        fault = next((f"record {number}: {fault}" for number, fault in faults if fault), None)
    if fault:
        raise UserError(f"{path} is broken: {fault}; repair it or move it away")
    return records


def _no_number(word: str):
    raise ValueError(f"{word} is no number")


def _whole_number(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"{digits[:LONGEST]}… has {len(digits)} digits")
    return int(digits)


def _depth(value) -> int:
    """Lists and mappings within each other, level by level: as deep as they are."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, (list, dict))]:
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth


def versions() -> dict[str, str]:
    """What produced a number: interpreter, libraries, the host's generation, this plugin."""
    import ressl_plugin
    from ressl_plugin import host

    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "lightning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    found["solo"] = host.GENERATION
    found["solo_learn"] = host.version()
    found["ressl_plugin"] = ressl_plugin.__version__
    return found
