"""Everything that needs a GPU, measured for the first time, which may be the only one.

    benchmarks/gpu.sh [--data FILE.npz] [--out OUT]      (or --dry-run: tiny, on the CPU)

A row of ROWS is a process with its own time, the most valuable first, and writes OUT/ROW.json as it
goes: what fails, hangs or no longer fits in --seconds takes nothing else with it, and is said in
the table, OUT/gpu.md, which is made anew after every row. OUT holds results alone; images and runs
are in a temporary folder. FILE.npz is `ressl data cifar10`'s; without it the images are random,
which changes no speed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

WORKER = Path(__file__).with_name("gpu_rows.py")
# name -> seconds that it may take at most
ROWS = {"captured": 100, "host": 75, "eager": 75, "profile": 60, "loss": 60,
        "views": 60, "imagenet": 150}  # fmt: skip
LEAST = 20  # seconds: less is not enough to import and begin
GRACE = 10  # seconds between being told to stop and being stopped


def main(argv: list[str] | None = None) -> int:
    """Run every row; exit status 1 if one of them failed or was left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="of the results")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as one file")
    parser.add_argument("--seconds", type=float, default=480, help="of all rows together")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--workers", type=int, default=16, help="of the host's loader")
    parser.add_argument("--dry-run", action="store_true", help="tiny settings, on the CPU")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    words = ["--workers", str(args.workers), *(["--dry-run"] if args.dry_run else [])]
    words += ["--data", str(args.data.resolve())] if args.data else []
    end, found = time.monotonic() + args.seconds, {}
    for name in args.rows:
        (args.out / f"{name}.json").unlink(missing_ok=True)
        left = end - time.monotonic()
        most = left if args.dry_run else min(ROWS[name], left)  # of a CPU nobody knows
        found[name] = row(name, words, args.out, most)
        (args.out / "gpu.md").write_text(table(found, args.dry_run))
        (args.out / "gpu.json").write_text(json.dumps(figures(found), indent=2) + "\n")
    print((args.out / "gpu.md").read_text())
    return int(any(one["lacks"] for one in found.values()))


def row(name: str, words: list[str], out: Path, seconds: float) -> dict:
    """What a row's process has written, and under "lacks" why there is not more."""
    file, lacks = out / f"{name}.json", ""
    start = time.monotonic()
    if seconds < LEAST:
        lacks = "left out: the time is spent"
    else:
        with (out / f"{name}.txt").open("w") as text:
            command = [sys.executable, str(WORKER), name, "--json", str(file), *words]
            process = subprocess.Popen(command, stdout=text, stderr=subprocess.STDOUT)
            try:
                if process.wait(max(1, seconds - GRACE)):
                    lacks = f"failed, see {name}.txt"
            except subprocess.TimeoutExpired:
                lacks = f"cut off after {seconds - GRACE:.0f} s"
                _stop(process)
            except BaseException:
                _stop(process)
                raise
    known = json.loads(file.read_text()) if file.is_file() else {"rows": [], "figures": {}}
    return {**known, "lacks": lacks, "seconds": time.monotonic() - start}


def _stop(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def figures(found: dict[str, dict]) -> dict[str, float]:
    """Of all rows, and how much faster ours is than the host's."""
    merged = {key: value for one in found.values() for key, value in one["figures"].items()}
    for what in ("cifar", "imagenet"):
        keys = [key for key in merged if key.startswith(what) and key.endswith("images_per_s")]
        rates = {key: merged[key] for key in keys}
        host = rates.pop(f"{what}_host_images_per_s", None)
        if host and rates:
            merged[f"{what}_ratio"] = max(rates.values()) / host
    return merged


def table(found: dict[str, dict], dry: bool) -> str:
    """The page: a line a figure, and what there is none of."""
    title = "# GPU measurement" + (" (dry run: no figure means anything)" if dry else "")
    machine = next((one["machine"] for one in found.values() if "machine" in one), [])
    lines = [title, "", *machine, "", "| what | figure | bar or remark |", "|---|---:|---|"]
    for name, one in found.items():
        lines += [f"| {' | '.join(cells)} |" for cells in one["rows"]]
        lines.append(f"| ({name}: seconds) | {one['seconds']:.0f} | {one['lacks']} |")
    bars = {"cifar_ratio": ">= 4", "imagenet_ratio": ">= 1.4"}
    for key, value in figures(found).items():
        if key in bars:
            lines.append(f"| {key.split('_')[0]}, the best of ours / host's | {value:.2f} "
                         f"| {bars[key]} |")  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
