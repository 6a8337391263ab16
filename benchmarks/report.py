"""RESULTS.md from the files in benchmarks/results: what was asked for, what was measured, how.

Usage: python benchmarks/report.py
"""

from __future__ import annotations

import json
from itertools import starmap
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
GPU = RESULTS / "gpu_cifar10"  # what benchmarks/gpu_cifar10.sh and gpu.sh have left of one run
CIFAR_EPOCH = 195 * 256  # images
# (what, script, key, bound, sense)
BARS = [
    ("step, host's own ReSSL, both with its stem", "step", "time_ratio_host_stem", 0.70, "≤"),
    ("step, ours with the paper's stem, host's own", "step", "time_ratio_paper_stem", 0.5, "≤"),
    ("step, each as it comes: precision auto, host's float32", "step", "time_ratio_default",
     0.28, "≤"),
    ("step, both in bfloat16", "step", "time_ratio_bf16", 0.55, "≤"),
    ("share of a step outside the networks", "step", "outside_network_share", 0.12, "≤"),
    ("the same against the main branch: its stem", "step_main", "time_ratio_host_stem", 0.70, "≤"),
    ("the same: paper's stem", "step_main", "time_ratio_paper_stem", 0.50, "≤"),
    ("loss, time, N 256 K 131072 D 512", "loss", "time_ratio", 0.45, "≤"),
    ("loss, peak extra memory, the same", "loss", "peak_bytes_ratio", 1 / 16, "≤"),
    ("views, batched / host's loader, CIFAR size, images/s", "views", "batched_vs_host", 4.5, "≥"),
    ("views, DALI on the CPU / host's loader, 224 px", "views", "dali_cpu_vs_host", None, ""),
    ("end to end, ours / host's own ReSSL, images/s", "end_to_end", "images_per_s_ratio", 1.7, "≥"),
    ("end to end, each as it comes, images/s", "end_to_end", "images_per_s_ratio_default",
     3.3, "≥"),
    ("operations of a GPU in a step of the CIFAR recipe", "launches", "device_ops", 800, "≤"),
    ("waits for a GPU in it", "launches", "waits", 0, "≤"),
    ("graph breaks of views, student, teacher", "launches", "graph_breaks", 0, "≤"),
    ("a captured step: operations on the host", "launches", "captured_host_ops", 0, "≤"),
    ("the same: copies from the host", "launches", "captured_copies", 1, "≤"),
    ("the same: waits for a GPU", "launches", "captured_waits", 0, "≤"),
    ("stall of a training by a checkpoint, written meanwhile / waited for", "saving",
     "stall_ratio", 0.15, "≤"),
    ("online quality metrics, share of an epoch of the digits", "quality_cost", "online_share",
     0.02, "≤"),
    ("memory growth over 20,000 steps after warm-up, %", "soak", "growth_percent", 1.0, "≤"),
    ("runs killed with SIGKILL, resumed, bit-equal", "kill", "bit_equal", 20, "≥"),
    ("kills of one run of an hour, bit-equal to the run left alone", "kill_long", "kills", None,
     ""),
    ("step, ours / Algorithm 1 in plain PyTorch, paper's stem", "step", "time_ratio_plain",
     None, ""),
    ("CIFAR-10 on one GPU, linear top-1 (paper 90.20)", "gpu_cifar10", "linear", 90.2, "≥"),
    ("the same, kNN, the best k and temperature", "gpu_cifar10", "knn", 90.0, "≥"),
    ("the same, images/s", "gpu_cifar10", "images_per_s", 28_000, "≥"),
    ("the same, ours / host's own", "gpu_cifar10", "ratio", 4, "≥"),
    ("the same, minutes of the 200 epochs' steps", "gpu_cifar10", "minutes_200_epochs", 6, "≤"),
    ("CIFAR-10, a budget of 45 minutes of one CPU core: cifar/ressl_fast, linear",
     "cifar10_one_core", "linear_fast_45min", None, ""),
    ("the same: the best of five other methods", "cifar10_one_core", "linear_best_other_45min",
     None, ""),
    ("the same: solo-learn's own ReSSL", "cifar10_one_core", "linear_ressl_host_45min", None, ""),
    ("the same, 60 minutes of a core with AVX512-BF16 and today's recipe: cifar/ressl_fast, linear",
     "cifar10_one_core_bf16", "linear_fast_60min", None, ""),
    ("the same: SimCLR", "cifar10_one_core_bf16", "linear_simclr_60min", None, ""),
    ("the same: cifar/ressl_fast, kNN", "cifar10_one_core_bf16", "knn_fast_60min", None, ""),
    ("the same: SimCLR, kNN", "cifar10_one_core_bf16", "knn_simclr_60min", None, ""),
    ("gathering 32 keys of 256 a rank, 2 processes, ms", "gather",
     "gather_ms_32_65536", None, ""),
    ("plain head on the digits: target entropy / log K", "warmup", "plain_entropy", None, ""),
    ("the same after the InfoNCE warm-up", "warmup", "warmup_entropy", 0.9, "≤"),
]  # fmt: skip


BAR = "A bar is an aim that this project has set itself."


def read(name: str) -> dict:
    """Figures of one script; none if it has not been run."""
    if name == GPU.name:
        return gpu_figures()
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def bars() -> list[str]:
    """Rows of the table of bars."""
    rows = [(what, sense, bound, read(script).get(key)) for what, script, key, bound, sense in BARS]
    rows += warmup()
    for key, value in read("loss").items():
        if key.startswith("time_ratio_"):
            *_, n, k = key.split("_")
            what = f"loss, time / the formula's, N {n} K {k}"
            rows.append((what, "≤", 0.55 if k == "65536" else 1.0, value))
    return ["| what | bar | measured | |", "|---|---|---|---|", *starmap(_row, rows)]


def warmup() -> list[tuple]:
    """The few-label bars of the digits, of the plain head after the InfoNCE warm-up."""
    found = read("warmup")
    if not found:
        return []
    labels = {n: {side: found[f"warmup_{side}_{n}"] for side in ("trained", "untrained", "pixels")}
              for n in (1, 5, "all")}  # fmt: skip
    rows = [
        (f"the same: points ahead of {side}, {n} label(s) a class", "≥", 5,
         at["trained"] - at[side])
        for n, at in labels.items() if n != "all" for side in ("untrained", "pixels")
    ]  # fmt: skip
    return [*rows, ("the same: all labels, %", "≥", 98, labels["all"]["trained"])]


def _row(what: str, sense: str, bound: float | None, value: float | None) -> str:
    if value is None:
        return f"| {what} | {sense} {bound or ''} | not measured | |"
    met = bound is None or (value <= bound if sense == "≤" else value >= bound)
    bar = f"{sense} {bound:,.5g}" if bound is not None else ""
    shown = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"| {what} | {bar} | {shown} | {'' if met else 'missed'} |"


def pages() -> list[str]:
    """What every script printed."""
    out = []
    for file in sorted(RESULTS.glob("*.txt")):
        out += [f"### {file.stem}", "", "```", file.read_text().rstrip(), "```", ""]
    return out


def gpu_records() -> list[dict]:
    """What was measured of the training on a GPU: its results.json."""
    file = GPU / "results.json"
    return json.loads(file.read_text()) if file.is_file() else []


def gpu_figures() -> dict:
    """Its figures, beside the host's own on the same machine."""
    records = gpu_records()
    if not records:
        return {}
    top1 = {kind: [r["value"] for r in records if (r["evaluator"], r["metric"]) == (kind, "top1")]
            for kind in ("linear", "knn")}  # fmt: skip
    rate = next(r["value"] for r in records if r["metric"] == "images/s")
    host = json.loads((GPU / "host.json").read_text())["figures"]["cifar_host_images_per_s"]
    best = {kind: max(values) for kind, values in top1.items() if values}
    return {**best, "images_per_s": rate, "host_images_per_s": host, "ratio": rate / host,
            "minutes_200_epochs": 200 * CIFAR_EPOCH / rate / 60}  # fmt: skip


def gpu() -> list[str]:
    """The training of the paper's recipe on a GPU: every figure with its machine and command."""
    if not (records := gpu_records()):
        return []
    machine, versions = json.loads((GPU / "host.json").read_text())["machine"]
    host = gpu_figures()["host_images_per_s"]
    lines = [
        "## CIFAR-10 on one GPU", "", (GPU / "NOTES.md").read_text().rstrip(), "",
        "| what | figure | machine | command |", "|---|---:|---|---|",
        f"| the host's own ReSSL, images/s | {host:,.0f} | {machine}; {versions} "
        "| `benchmarks/gpu.sh --rows host` |",
    ]  # fmt: skip
    for record in records:
        if record["metric"] == "top5":
            continue
        value = record["value"]
        shown = f"{value:,.0f}" if value > 100 else f"{value:.2f}"
        what = f"{record['evaluator']}, {record['protocol']}, {record['metric']}"
        lines.append(f"| {what} | {shown} | {record['machine']} | `{record['command']}` |")
    return [*lines, ""]


def digits() -> list[str]:
    """The table of `bash scripts/benchmark/digits.sh`, copied to digits.md as it was written."""
    file = RESULTS / "digits.md"
    if not file.is_file():
        return []
    return ["## Methods on the digits", "", file.read_text().rstrip(), ""]


def main() -> None:
    """Write the page."""
    notes = (HERE / "NOTES.md").read_text().rstrip()
    text = ["# Results", "", notes, "", "## Against the bars", "", BAR, "", *bars(), ""]
    text += [*gpu(), *digits(), "## As printed", ""]
    (HERE / "RESULTS.md").write_text("\n".join([*text, *pages()]))


if __name__ == "__main__":
    main()
