"""Methods on CIFAR-10 at equal epochs and at equal time, each at the best of the same few rates.

    python benchmarks/photographs.py --data cifar10.npz --held-out cifar10-held-out.npz

Both files are made by `ressl data cifar10` (bash scripts/benchmark/cifar10_cpu.sh makes them and
calls this). In three stages, each of cells that are not run again once they are finished, so that
days of interruptions do no harm:

rates    every method with every rate, on the training images without the held-out ones; the best
         kNN on these decides. The images/s of its cells give what --minutes buys it in epochs.
epochs   every method for the same number of epochs, on all training images
minutes  every method for what --minutes buy it: so many epochs, of a share of the images each that
         makes the time exact

The test images are seen by the evaluation of the last two alone.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import common
from omegaconf import OmegaConf

from ressl_plugin import config, data, run
from ressl_plugin.experiments import benchmark
from ressl_plugin.run import metrics
from ressl_plugin.utils import files
from ressl_plugin.utils.plot_style import MARKERS, PALETTE, figure_of

OTHERS = ("simclr", "byol", "simsiam", "mocov2plus", "ressl_host")  # of the host
IN_FIGURES = {"ressl": "paper", "ressl_fast": "fast"}  # the others by their own names
METHODS = ("ressl", "ressl_fast", *OTHERS, "supervised")
STAGES = ("epochs", "minutes")
LABELS = (50, 500)  # a class: 1 % and 10 %
# A ResNet-18 a quarter as wide, on the CPU; timm alone begins with blocks that do nothing yet.
QUARTER = [
    "backbone.name=timm:resnet18",
    "backbone.kwargs={channels: [16, 32, 64, 128], zero_init_last: false}",
    "method_kwargs.proj_hidden_dim=512", "optimizer.batch_size=128", "scheduler.warmup_epochs=1",
    "checkpoint.frequency=1", "check_val_every_n_epoch=5", "accelerator=cpu", "devices=1",
    "data.num_workers=0",
]  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run what is not done yet; returns the figures."""
    parser = common.arguments(__doc__, pairs=1)
    parser.add_argument("--data", type=Path, required=True, help="from `ressl data cifar10`")
    parser.add_argument("--held-out", type=Path, required=True, help="the same with --hold-out")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/cifar10_cpu"))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.06, 0.12, 0.24])
    parser.add_argument("--rate-epochs", type=float, default=6, help="of the first stage")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, help="after the rates"
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--settings", type=Path, help="of further methods, as `ressl benchmark`'s")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every cell")
    args = parser.parse_intermixed_args(argv)
    sizes = {"epochs": f"{args.epochs} epochs", "minutes": f"{args.minutes:g} minutes"}
    common.begin(args, f"{', '.join(sizes[s] for s in args.stages)}, seeds {args.seeds}")
    chosen = rates(args)
    images = len(data.build_dataset(_base(args, args.data), "train"))
    epochs = {
        "epochs": dict.fromkeys(chosen, args.epochs),
        "minutes": {
            name: 60 * args.minutes * one["images_per_s"] / images for name, one in chosen.items()
        },
    }
    budgets = {stage: epochs[stage] for stage in args.stages}
    for stage, of_stage in budgets.items():
        changes = {name: budget(chosen[name]["lr"], of_stage[name]) for name in chosen}
        train(args, stage, args.data, changes, args.seeds)
    if "minutes" in budgets:
        draw(args, chosen)
    return common.finish(args, report(args, budgets, chosen))


def rates(args) -> dict[str, dict[str, float]]:
    """Method -> its best rate and the images a second of its cells; kept once they are found."""
    file = args.out / "rates.yaml"
    found = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    if missing := [name for name in args.methods if name not in found]:
        cells: dict[str, list[dict]] = {name: [] for name in missing}
        for rate in args.rates:
            stage = f"rates/{rate:g}"
            changes = {name: budget(rate, args.rate_epochs) for name in missing}
            train(args, stage, args.held_out, changes, [1])
            for name in missing:
                of_cell = _values(args.out / stage / f"{name}-seed1")
                cells[name].append({"lr": rate, **of_cell})
        for name, tried in cells.items():
            best = max(tried, key=lambda cell: cell["knn"])
            speed = statistics.median(cell["images_per_s"] for cell in tried)
            found[name] = {"lr": best["lr"], "images_per_s": speed, "knn": best["knn"]}
        files.replace(file, OmegaConf.to_yaml(found).encode())
    rows = [(name, found[name]["lr"], found[name]["images_per_s"]) for name in args.methods]
    common.table(rows, ("best of the rates", "lr", "images/s"))
    return {name: found[name] for name in args.methods}


def budget(rate: float, epochs: float) -> dict:
    """The settings of a cell: whole epochs, each of a share of the images if need be."""
    whole = math.ceil(epochs)
    share = {"max_epochs": whole, "limit_train_batches": epochs / whole}
    return {"optimizer": {"lr": rate}, **share}


def train(args, stage: str, images: Path, changes: dict[str, dict], seeds: list[int]) -> None:
    """The cells of a stage, those that are not finished."""
    own = OmegaConf.load(args.settings) if args.settings else OmegaConf.create()
    for name, new in changes.items():
        own[name] = OmegaConf.merge(own.get(name, {}), new)
    folder = args.out / stage
    file = folder / "settings.yaml"
    files.replace(file, OmegaConf.to_yaml(own).encode())
    words = [*QUARTER, f"data.path={images}", *args.overrides]
    benchmark.benchmark("cifar/ressl", words, list(changes), seeds, folder, file, LABELS)


def report(args, budgets: dict[str, dict[str, float]], chosen: dict) -> dict[str, float]:
    """Print both tables; the figures: accuracies of each method, and of the best other."""
    figures = {}
    for stage, epochs in budgets.items():
        short = f"{args.epochs}epochs" if stage == "epochs" else f"{args.minutes:g}min"
        rows = []
        for name in chosen:
            cells = [_values(args.out / stage / f"{name}-seed{seed}") for seed in args.seeds]
            mean = {key: statistics.mean(cell[key] for cell in cells) for key in cells[0]}
            spread = max(c["linear"] for c in cells) - min(c["linear"] for c in cells)
            rows.append((name, f"{epochs[name]:.4g}", chosen[name]["lr"], mean["linear"], spread,
                         mean["knn"], mean["images_per_s"], mean["peak_mb"]))  # fmt: skip
            of = IN_FIGURES.get(name, name)
            figures |= {f"{key}_{of}_{short}": mean[key] for key in ("linear", "knn")}
        print(f"\n{short}:")
        common.table(rows, ("", "epochs", "lr", "linear", "range", "kNN", "images/s", "peak MB"))
        others = [figures[f"linear_{name}_{short}"] for name in OTHERS if name in chosen]
        figures[f"linear_best_other_{short}"] = max(others, default=0.0)
    return figures


def draw(args, chosen: dict) -> None:
    """Online accuracy against minutes of training, a line a method: OUT/minutes.png."""
    with figure_of(2.2, args.out / "minutes") as (figure, _):
        axes = figure.add_subplot()
        for name, color, marker in zip(chosen, PALETTE, MARKERS):
            folder = args.out / "minutes" / f"{name}-seed{args.seeds[0]}"
            done, accuracy = metrics.read_metrics(folder)["val_acc1"]
            minutes = (done + 1) * args.minutes / run.read_config(folder / "config.yaml").max_epochs
            axes.plot(minutes, accuracy, color=color, marker=marker, markersize=2, label=name)
        axes.set(xlabel="minutes of training", ylabel="online linear top-1, %")
        axes.legend()


def _base(args, images: Path):
    words = [*QUARTER, f"data.path={images}", *args.overrides]
    return config.finish(config.load("cifar/ressl", words))


def _values(folder: Path) -> dict[str, float]:
    """What the table shows of a finished cell."""
    records = benchmark.own_records(folder)
    latest = {(r["evaluator"], r["metric"]): r["value"] for r in records}
    return {
        "linear": latest["linear", "top1"],
        "knn": latest["knn", "top1"],
        "images_per_s": latest["training", "images/s"],
        "peak_mb": latest["training", "peak MB"],
    }


if __name__ == "__main__":
    main()
