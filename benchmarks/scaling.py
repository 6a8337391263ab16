"""Predicted time and cost of the paper's recipes on 1 to 64 GPUs: writes benchmarks/SCALING.md.

    python benchmarks/scaling.py [--gpu-json runs/gpu/gpu.json] [--out benchmarks/SCALING.md]

The model is one line: a step takes the longer of its arithmetic and of what launching it takes,
and then the gradients' exchange, which is taken not to overlap. FLOPs are counted on the very
networks that are trained. Without a gpu.json (benchmarks/gpu.sh) every time is computed; with one,
the share of the peak that is reached is the measured one, for that GPU.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import common
import training

from ressl_plugin.train import roofline
from ressl_plugin.views import recipe


@dataclass(frozen=True)
class GPU:
    """Peaks from the vendor's data sheet (dense), TFLOP/s; an assumed price, $ an hour."""

    name: str
    half: float
    single: float
    price: float


GPUS = (GPU("H200", 989, 67, 3.8), GPU("H100 SXM", 989, 67, 3.0), GPU("A100 SXM", 312, 19.5, 1.8),
        GPU("L4", 121, 30.3, 0.8))  # fmt: skip
COUNTS = (1, 2, 4, 8, 16, 32, 64)
# Assumed share of the peak, where none is measured: what supervised speed-runs of ResNet-18 on
# CIFAR-10 reach on an A100 (2.2 s an epoch of 167 TFLOP).
REACHED = 0.25
LAUNCH = 0.0097  # s: assumed least time of a step, whatever its size: that of CIFAR's on an H200
NODE, BETWEEN = 300e9, 40e9  # B/s: assumed all-reduce bandwidth within 8 GPUs, and between nodes
LEAST = 32  # images a GPU: the paper's share of 8; below that more GPUs mean a larger batch
RECIPES = {  # title -> (recipe, overrides, images an epoch)
    "CIFAR-10, ResNet-18": ("cifar/ressl", [], 50_000),
    "STL-10, ResNet-18": ("stl10/ressl", [], 105_000),
    "Tiny ImageNet, ResNet-18": ("tiny-imagenet/ressl", [], 100_000),
    "ImageNet, ResNet-18": ("imagenet/ressl", ["backbone.name=resnet18"], 1_281_167),
    "ImageNet, ResNet-50, 1x": ("imagenet/ressl", [], 1_281_167),
    "ImageNet, ResNet-50, 2x": ("imagenet/ressl_2x", [], 1_281_167),
    "ImageNet, ResNet-50, 4 crops": ("imagenet/ressl_multicrop4", [], 1_281_167),
    "ImageNet, ResNet-50, 5 crops": ("imagenet/ressl_multicrop5", [], 1_281_167),
}
MEASURED = {"ImageNet, ResNet-50, 1x": "imagenet_ours{}_images_per_s",
            "CIFAR-10, ResNet-18": "cifar_{}_images_per_s"}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What an image costs: FLOPs of the networks, of the loss; bytes of gradients a step."""

    networks: float
    loss: float
    gradients: float
    epochs: int
    images: int


def main(argv: list[str] | None = None) -> str:
    """Write the page; returns it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu-json", type=Path, help="figures of benchmarks/gpu.sh")
    parser.add_argument("--gpu", default="H200", help="the GPU that they were measured on")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("SCALING.md"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args(argv)
    measured = json.loads(args.gpu_json.read_text()) if args.gpu_json else {}
    works = {title: work(*RECIPES[title]) for title in args.recipes}
    reached = shares(works, measured, next(gpu for gpu in GPUS if gpu.name == args.gpu))
    text = page(works, reached, args)
    args.out.write_text(text)
    print(text)
    return text


def work(name: str, overrides: list[str], images: int) -> Work:
    """Count a recipe's work for one image."""
    small = ["method_kwargs.queue_size=4", "accelerator=cpu", "devices=1", "precision=32-true"]
    cfg = training.settings(name, [*overrides, *small])
    rows = training.config.load(name, overrides).method_kwargs.queue_size
    model = training.ours(cfg, batchnorm__groups=0)
    crops = [(2, 3, c.crop_size, c.crop_size) for c in recipe.read(cfg.augmentations).crops]
    student = roofline.network_flops(model, [crops[i] for i in model.student_views])
    teacher = roofline.network_flops(model, [crops[model.teacher_view]])[0]
    loss = 4 * (1 + len(model.student_views)) * rows * model.queue.shape[1]
    weights = sum(p.numel() for s, _ in model.momentum_pairs for p in s.parameters())
    return Work((sum(student) + teacher) / 2, loss, 4 * weights, cfg.max_epochs, images)


def shares(works: dict[str, Work], measured: dict, gpu: GPU) -> dict[tuple[str, str], float]:
    """(GPU, recipe) -> share of the half-precision peak that a measurement has shown."""
    found = {}
    for title, key in MEASURED.items():
        rates = [measured.get(key.format(s)) for s in ("eager", "captured", "", "_compiled")]
        if title in works and any(rates):
            best = max(rate for rate in rates if rate)
            seconds = 1 / best - works[title].loss / (gpu.single * 1e12 * REACHED)
            found[gpu.name, title] = works[title].networks / seconds / (gpu.half * 1e12)
    return found


def step(item: Work, gpu: GPU, count: int, share: float) -> tuple[int, float]:
    """(images a step over all GPUs, seconds a step)."""
    here = max(LEAST, 256 // count)
    arithmetic = item.networks / (gpu.half * share) + item.loss / (gpu.single * REACHED)
    exchange = 2 * (count - 1) / count * item.gradients / (NODE if count <= 8 else BETWEEN)
    return here * count, max(LAUNCH, here * arithmetic / 1e12) + exchange


def page(works: dict[str, Work], reached: dict, args) -> str:
    """The page as markdown."""
    command, source = "python benchmarks/scaling.py", "none: **every time below is computed**"
    if reached:
        command += f" --gpu-json {args.gpu_json}"
        shares = ", ".join(f"{share:.0%} of the peak in {t}" for (_, t), share in reached.items())
        source = f"`{args.gpu_json}`, on {args.gpu}: {shares}"
    assumed = [
        f"{REACHED:.0%} of the peak where nothing is measured, as supervised ResNet-18 speed-runs "
        "reach on an A100 (the loss: of the float32 peak)",
        f"at least {LAUNCH * 1e3:g} ms a step, whatever its size: CIFAR-10's time on an H200",
        f"gradients in float32 exchanged at {NODE / 1e9:.0f} GB/s within 8 GPUs and "
        f"{BETWEEN / 1e9:.0f} GB/s between nodes, without overlap",
        "data and views keep up (the images/s needed are given)",
        "prices of " + ", ".join(f"{g.name} {g.price:g}" for g in GPUS) + " $ an hour",
        "vendors' dense bf16 peaks of " + ", ".join(f"{g.name} {g.half:g}" for g in GPUS)
        + " TFLOP/s",
    ]  # fmt: skip
    lines = [
        "# Time and cost of the paper's recipes, 1 to 64 GPUs", "",
        f"Written by `{command}`, {date.today()}, {common.versions()}.", "",
        f"**Measured:** {source}.", "",
        "**Counted:** FLOPs of the trained networks' own forward and backward passes "
        "(torch.utils.flop_counter), and of the loss.", "",
        "**Assumed:** " + "; ".join(assumed) + ".", "",
        f"The batch is 256 in all, and {LEAST} images a GPU beyond 8 GPUs (the learning rate grows "
        "with it): there the recipe is no longer the paper's, whose accuracy is not promised.", "",
    ]  # fmt: skip
    for title, item in works.items():
        lines += [
            f"## {title}, {item.epochs} epochs", "",
            f"{item.networks / 1e9:.1f} GFLOP an image in the networks, {item.loss / 1e9:.2f} in "
            f"the loss, {item.gradients / 1e6:.0f} MB of gradients. Hours ($):", "",
            "| GPUs | batch | " + " | ".join(g.name + (
                " (measured on 1)" if (g.name, title) in reached else "") for g in GPUS)
            + f" | images/s needed, {GPUS[0].name} |",
            "|---:|---:|" + "---:|" * (len(GPUS) + 1),
        ]  # fmt: skip
        for count in COUNTS:
            cells = []
            for gpu in GPUS:
                batch, seconds = step(item, gpu, count, reached.get((gpu.name, title), REACHED))
                hours = item.images / batch * item.epochs * seconds / 3600
                price = hours * count * gpu.price
                cells.append(f"{hours:.2f} ({price:,.{0 if price >= 10 else 2}f})")
            batch, seconds = step(item, GPUS[0], count, reached.get((GPUS[0].name, title), REACHED))
            lines.append(f"| {count} | {batch} | {' | '.join(cells)} | {batch / seconds:,.0f} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
