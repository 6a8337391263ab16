"""One results file a run: every evaluator appends a record, tables are made from these alone."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ressl_plugin.errors import UserError

FILE = "results.json"
REQUIRED = ("evaluator", "protocol", "data", "metric", "value")
OPTIONAL = ("spread", "seeds", "versions", "command", "n", "details", "representation", "epochs",
            "checkpoint")  # fmt: skip


def append(run_dir: str | Path, record: dict) -> dict:
    """Add one record to `run_dir`/results.json; whole file or nothing, safe between processes.

    Args:
        run_dir: the run's directory; made if absent.
        record: must have evaluator, protocol, data, metric (strings) and value (a finite number);
            may have spread, seeds, n, details, representation, and of the weights epochs (trained)
            and checkpoint (file name). versions and command are filled in.

    Returns:
        The record as written.

    Raises:
        ValueError: a required key is missing, a key unknown, a value not a finite number.
        UserError: the file that is there is broken.
    """
    from filelock import FileLock

    missing = [key for key in REQUIRED if key not in record]
    unknown = [key for key in record if key not in REQUIRED + OPTIONAL]
    if missing or unknown:
        raise ValueError(f"result record: missing keys {missing}, unknown keys {unknown}")
    value = float(record["value"])
    if not math.isfinite(value):
        raise ValueError(f"result record: {record['metric']} = {value} is not finite")
    record = {
        **{key: record[key] for key in REQUIRED},
        "spread": None,
        "seeds": [],
        "versions": versions(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **{key: record[key] for key in OPTIONAL if key in record},
    }
    record["value"] = value
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(str(run_dir / f".{FILE}.lock"), timeout=60):
        _write(run_dir / FILE, [*read(run_dir), record])
    return record


def read(run_dir: str | Path) -> list[dict]:
    """The records of a run, oldest first; none if nothing has been evaluated yet.

    Raises:
        UserError: no such directory, or the file is not a list of records.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"no run directory at {run_dir}; give one that `ressl pretrain` made")
    path = run_dir / FILE
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is broken ({error}); repair it or move it away") from None
    sound = isinstance(records, list) and all(
        isinstance(r, dict) and all(key in r for key in REQUIRED) for r in records
    )
    if not sound:
        raise UserError(
            f"{path} is broken: not a list of records with {', '.join(REQUIRED)}; "
            "repair it or move it away"
        )
    return records


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
    found["ressl_plugin"] = ressl_plugin.__version__
    return found


def _write(path: Path, records: list[dict]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(records, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; results are there to be shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
