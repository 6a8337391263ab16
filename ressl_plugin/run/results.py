"""One results file a run: every evaluator appends a record, tables are made from these alone."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ressl_plugin.config.kinds import NULL, Kind, whole
from ressl_plugin.data.identity import is_identity
from ressl_plugin.run.structure import NUMBER, TEXT, fault
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError

FILE = "results.json"
DEEPEST = 16  # lists and mappings within each other

REQUIRED = {"evaluator": TEXT, "protocol": TEXT, "data": TEXT, "metric": TEXT, "value": NUMBER}
OPTIONAL = {
    "spread": NUMBER | NULL,
    "seeds": [whole()],
    "versions": {"*": TEXT},
    "command": Kind("text", lambda value: isinstance(value, str)),
    "time": TEXT,
    "n": whole(0),
    "details": {"share?": NUMBER | NULL},
    "representation": TEXT | NULL,
    "epochs": whole(0) | NULL,
    "checkpoint": TEXT,
    "data_sets": {"*": Kind("a data set: images, classes, digest", is_identity)},
    "place": [{"table": whole(0), "row": TEXT, "column": TEXT}],  # in the paper
}
RECORD = {**REQUIRED, **{f"{key}?": of for key, of in OPTIONAL.items()}}


def append(run_dir: str | Path, record: dict) -> dict:
    """`append_all` of one record."""
    return append_all(run_dir, [record])[0]


def append_all(run_dir: str | Path, records: list[dict]) -> list[dict]:
    """Add records to `run_dir`/results.json; whole file or nothing, safe between processes.

    Args:
        run_dir: the run's directory; made if absent.
        records: each must have the keys of REQUIRED, may have those of OPTIONAL: of the weights
            `epochs` (trained) and `checkpoint` (file name), of the images `data_sets` (split ->
            what `data.identify` gives), `place` (see `put_in_place`). versions, command and time
            (UTC) are filled in.

    Returns:
        The records as written.

    Raises:
        ValueError: a required key is missing, a key unknown, a value of another type.
        UserError: the file that is there is broken.
    """
    records = list(map(_complete, records))
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with _locked(run_dir):
        _write(run_dir, [*read(run_dir), *records])
    return records


def _complete(record: dict) -> dict:
    """With what is filled in; checked."""
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
    wrong = f"unknown keys {unknown}" if unknown else fault(record, RECORD)
    if wrong:
        raise ValueError(f"result record: {wrong}")
    record["value"] = float(record["value"])
    return record


def put_in_place(run_dir: str | Path, record: dict, table: int, row: str, column: str) -> None:
    """Write into a record, one of `read`, which cell of the paper's tables it is the number of.

    One number may be in several tables: a cell of Table 2 is one of Table 3's grid, too.

    Raises:
        ValueError: the record is not there, the place is none.
    """
    place = {"table": table, "row": row, "column": column}
    if place in record.get("place", ()):
        return
    run_dir = Path(run_dir)
    with _locked(run_dir):
        records = read(run_dir)
        # another process may have put a place into it since
        same = records[[*map(_placeless, records)].index(_placeless(record))]
        same["place"] = [*(one for one in same.get("place", ()) if one != place), place]
        if wrong := fault(same, RECORD):
            raise ValueError(f"result record: {wrong}")
        _write(run_dir, records)


def _placeless(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "place"}


def _locked(run_dir: Path):
    return files.locked(run_dir / f".{FILE}.lock", seconds=60)


def _write(run_dir: Path, records: list[dict]) -> None:
    text = json.dumps(records, indent=1, allow_nan=False)
    files.replace(run_dir / FILE, f"{text}\n".encode())


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
        records = json.loads(path.read_bytes().decode(), parse_constant=partial(_refuse, path))
    except FileNotFoundError:
        return []
    except OSError as error:  # a directory, another user's
        raise UserError(f"{path}: cannot be read: {error.strerror}; move it away") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, no numbers, too deep
        raise UserError(f"{path} is broken ({error}); repair it or move it away") from None
    wrong = f"nested more than {DEEPEST} deep" if _depth(records) > DEEPEST else None
    if wrong := wrong or fault(records, [RECORD], "records"):
        raise UserError(f"{path} is broken: {wrong}; repair it or move it away")
    return records


def _refuse(path: Path, word: str):
    raise UserError(f"{path} is broken: {word} is no number; repair it or move it away")


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
