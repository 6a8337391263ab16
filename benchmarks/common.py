"""What the benchmarks share: alternating runs in one process, ratios of pairs, one table.

A machine's speed drifts by tens of per cent within minutes. So the sides of a comparison take
turns, A B, B A, A B, ..., and a ratio is the median over the pairs of one side's figure over its
neighbour's. Absolute figures are printed for orientation only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# run as a script, this folder is on the path; the package and the plain algorithm are not
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import torch  # noqa: E402


def arguments(doc: str, pairs: int = 9, threads: int = 2) -> argparse.ArgumentParser:
    """A parser with --pairs, --threads and --json, headed by the script's first line."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=pairs, help="alternating runs of each side")
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    return parser


def begin(args, note: str = "") -> None:
    """Set the number of threads, silence the loops' chatter, print hardware and versions."""
    import logging

    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    print(hardware(), versions(), sep="\n")
    print(note or f"{args.threads} threads, {args.pairs} pairs")


def now() -> float:
    """Seconds, when the GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def hardware() -> str:
    """One line: processor, cores, GPU."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {os.cpu_count()} cores, {gpu}"


def versions() -> str:
    """One line: Python and the packages that the figures depend on."""
    found = [f"Python {platform.python_version()}"]
    for package in ("torch", "torchvision", "lightning", "timm", "solo-learn"):
        if package == "solo-learn" and os.environ.get("SOLO_LEARN"):
            found.append("solo-learn main branch")
            continue
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def alternate(sides: dict[str, Callable[[], float]], pairs: int) -> list[dict[str, float]]:
    """Call every side once a pair, the order reversed from pair to pair.

    Args:
        sides: name -> a function that does the work once and returns its figure.

    Returns:
        one {name: figure} a pair.
    """
    runs = []
    for i in range(pairs):
        names = list(sides)[:: -1 if i % 2 else 1]
        taken = {name: sides[name]() for name in names}
        runs.append({name: taken[name] for name in sides})
    return runs


def ratio(runs: list[dict[str, float]], ours: str, other: str) -> tuple[float, float, float]:
    """(median, lowest, highest) over the pairs of ours / other."""
    values = sorted(run[ours] / run[other] for run in runs)
    return statistics.median(values), values[0], values[-1]


def middle(runs: list[dict[str, float]], name: str) -> float:
    """Median figure of one side."""
    return statistics.median(run[name] for run in runs)


def table(rows: list[tuple], head: tuple) -> None:
    """Print aligned columns: the first to the left, the others to the right."""
    text = [[_cell(value) for value in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in text) for i in range(len(head))]
    for row in text:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        print("  ".join(cells).rstrip(), flush=True)


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def finish(args, figures: dict[str, float]) -> dict[str, float]:
    """Write the figures where --json says; return them."""
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
    return figures
