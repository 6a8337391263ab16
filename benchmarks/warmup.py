"""Collapse and its cure by the InfoNCE warm-up: the paper's plain head on the digits.

    python benchmarks/warmup.py --seeds 1 2 3 --json warmup.json

A whole ResNet-18 on 16x16 digits, batch 32, no BatchNorm in the head: plain ReSSL stays at the
uniform target. The same run with the first epochs mixed with InfoNCE on the same memory leaves it.
Printed: the target's entropy over log K (1 is collapse) and the linear accuracy with few labels on
frozen features, over 10 draws, beside the untrained backbone and raw pixels.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import common
import torch

from ressl_plugin import config, run
from ressl_plugin.data.digits import make_digits
from ressl_plugin.evaluate import compare, subject
from ressl_plugin.run import metrics
from ressl_plugin.train.pretrain import pretrain

SIDES = ("trained", "untrained", "pixels")
COLUMNS = ["entropy", *(f"{side} {labels}" for side in SIDES for labels in (1, 5, "all"))]


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the measurement; returns its figures, means over the seeds."""
    parser = common.arguments(__doc__, pairs=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--warm", type=int, default=8, help="epochs of the InfoNCE warm-up")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    args = parser.parse_args(argv)
    common.begin(args, f"digits, plain head, {args.epochs} epochs, seeds {args.seeds}")
    rows, found = [], {"plain": [], "warm-up": []}
    with tempfile.TemporaryDirectory() as folder:
        make_digits(Path(folder) / "digits")
        for seed in args.seeds:
            for kind, warm in (("plain", 0), ("warm-up", args.warm)):
                words = [f"seed={seed}", f"max_epochs={args.epochs}",
                         f"method_kwargs.infonce_epochs={warm}", *args.overrides]  # fmt: skip
                measured = train(Path(folder), f"{kind}-{seed}", words)
                found[kind].append(measured)
                rows.append((f"{kind}, seed {seed}", *(measured[key] for key in COLUMNS)))
    common.table(rows, ("", *COLUMNS))
    figures = {
        f"{kind}_{key}".replace(" ", "_").replace("-", ""): statistics.mean(m[key] for m in runs)
        for kind, runs in found.items()
        for key in COLUMNS
    }
    return common.finish(args, figures)


def train(folder: Path, name: str, words: list[str]) -> dict[str, float]:
    """One run and its evaluation: the columns of the table."""
    where = folder / name
    cfg = config.load("digits/ressl_v2", [
        f"run_dir={where}", f"data.train_path={folder}/digits/train",
        f"data.val_path={folder}/digits/val", "backbone.kwargs={zero_init_last: false}",
        "method_kwargs.predictor=false", "knn_eval.enabled=false", "accelerator=cpu",
        "enable_progress_bar=false", "enable_model_summary=false", *words,
    ])  # fmt: skip
    pretrain(config.finish(cfg))
    opened = run.open_run(where)
    splits = subject.Splits(opened, torch.device("cpu"))
    backbones = splits.of(opened.backbone()), splits.of(opened.backbone(trained=False))
    accuracy = {
        f"{r['representation']} {r['protocol'].split()[1]}": r["value"]
        for r in compare.compare(dict(zip(SIDES, (*backbones, splits.pixels()))), "digits")
        if r["evaluator"] == "few-labels"
    }
    _, entropy = metrics.read_metrics(where / "metrics.csv")["target_entropy"]
    return {"entropy": float(entropy[-1]), **accuracy}


if __name__ == "__main__":
    main()
