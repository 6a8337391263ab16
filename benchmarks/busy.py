"""Images a second of a training on a machine that has something else to do, by how threads wait.

    python benchmarks/busy.py --pairs 3 --json busy.json

OpenMP's threads spin while they wait for each other, which takes the time of a core that another
process holds. Each setting is an environment variable of a `ressl pretrain` on scikit-learn's
digits, in a process of its own, once alone and once beside a process that never rests.
busy_KEY is its images/s beside it over those without any setting, quiet_KEY the same alone: what
it costs where nothing else runs. Above 1 is better.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import common

from ressl_plugin import data

SETTINGS = {
    "nothing": {},
    "spincount": {"GOMP_SPINCOUNT": "0"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "blocktime": {"KMP_BLOCKTIME": "0"},  # of Intel's OpenMP, where PyTorch was built with it
    "thread_fewer": {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) - 1))},
}
RESTLESS = [sys.executable, "-c", "while True: pass"]


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the benchmark; returns its figures."""
    parser = common.arguments(__doc__, pairs=3)
    parser.add_argument("--epochs", type=int, default=4, help="a run; the first is not counted")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("overrides", nargs="*", help="of digits/ressl, for every run")
    args = parser.parse_args(argv)
    common.begin(args, f"digits/ressl, {args.epochs} epochs, {args.pairs} pairs")
    names = list(dict.fromkeys(["nothing", *args.settings]))
    with tempfile.TemporaryDirectory() as folder:
        images = data.make_digits(Path(folder) / "digits")
        words = [
            f"data.train_path={images}/train", "data.val_path=null", "knn_eval.enabled=false",
            f"max_epochs={args.epochs}", "checkpoint.enabled=false", *args.overrides,
        ]  # fmt: skip
        runs = common.alternate({
            f"{place} {name}": lambda name=name, busy=busy: rate(folder, words, name, busy)
            for name in names for place, busy in (("quiet", False), ("busy", True))
        }, args.pairs)  # fmt: skip
    figures, rows = {}, []
    for name in names:
        row = [" ".join(f"{k}={v}" for k, v in SETTINGS[name].items()) or "no setting"]
        for place in ("quiet", "busy"):
            side = f"{place} {name}"
            middle, low, high = common.ratio(runs, side, f"{place} nothing")
            row += [common.middle(runs, side), middle, f"{low:.2f}-{high:.2f}"]
            figures[f"{place}_{name}"] = middle
        rows.append(tuple(row))
    head = [f"{place}, images/s" for place in ("alone", "busy")]
    common.table(rows, ("", head[0], "ratio", "range", head[1], "ratio", "range"))
    return common.finish(args, figures)


def rate(folder: str, words: list[str], name: str, busy: bool) -> float:
    """Images a second of one training under a setting, beside another process or alone."""
    other = subprocess.Popen(RESTLESS) if busy else None
    run = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-m", "ressl_plugin.cli", "pretrain", "digits/ressl", "--meter",
               f"run_dir={run}", "enable_progress_bar=false", *words]  # fmt: skip
    unset = {key for setting in SETTINGS.values() for key in setting}
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    try:
        subprocess.run(command, env={**environment, **SETTINGS[name]}, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    finally:
        if other is not None:
            other.kill()
            other.wait()
    records = json.loads((Path(run) / "results.json").read_text())
    return next(record["value"] for record in records if record["metric"] == "images/s")


if __name__ == "__main__":
    main()
