"""One row of benchmarks/gpu.sh: `python gpu_rows.py ROW --json FILE`.

A row yields (what, figure, remark) with the figures for FILE, which is written anew after each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import common
import end_to_end
import loss
import torch
import training

from ressl_plugin.train import pretrain, profile
from ressl_plugin.views import batched, recipe

Line = tuple[tuple[str, str, str], dict[str, float]]
PLAIN = "performance.capture=false"


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run a row; returns its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    args.threads, args.pairs = torch.get_num_threads(), 3
    args.device = "cpu" if args.dry_run else "cuda"
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("no CUDA device is visible; --dry-run goes through it on the CPU")
    torch.set_float32_matmul_precision("high")  # as pretrain does
    common.begin(args, " ")
    found = {"machine": [common.hardware(), common.versions()], "rows": [], "figures": {}}
    with tempfile.TemporaryDirectory() as args.scratch:
        for line, figures in ROWS[args.row](args):
            print(*line, sep="  ", flush=True)
            found["rows"].append(line)
            found["figures"] |= figures
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return found["figures"]


def peak(work) -> tuple[float, float]:
    """(what `work` returns, GiB allocated at most while it ran); 0 GiB on the CPU."""
    if not torch.cuda.is_available():
        return work(), 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return work(), torch.cuda.max_memory_allocated() / 2**30


def cifar_config(args, epochs: int, overrides=()):
    """The paper's CIFAR-10 recipe on its images, or as many random ones; nothing is saved."""
    images, size, batch = (64, 8, 16) if args.dry_run else (50_000, 32, 256)
    words = [
        f"optimizer.batch_size={batch}", f"max_epochs={epochs}", "checkpoint.enabled=false",
        *_precision(args), *overrides,
    ]  # fmt: skip
    if args.data:
        return end_to_end.run_config(args.data, size, [*words, "data.dataset=cifar10"])
    file = end_to_end.random_npz(Path(args.scratch) / "random.npz", images, size)
    return end_to_end.run_config(file, size, words)


def _precision(args) -> list[str]:
    """Of both sides."""
    if args.dry_run:
        return ["precision=32-true", "accelerator=cpu", "batchnorm.groups=2"]
    return ["precision=bf16-mixed"]


def cifar(args, name: str, epochs: int, overrides=()) -> Iterator[Line]:
    """Ours, end to end: all that `ressl pretrain` does but saving; and the step within an epoch."""
    epochs, steps, warm = (2, 3, 1) if args.dry_run else (epochs, 150, 40)
    cfg = cifar_config(args, epochs, overrides)
    clock = end_to_end.Clock(warm, steps)
    total = epochs * (4 if args.dry_run else 195) - warm
    run = partial(end_to_end.ours, cfg, args.scratch, total, warm, callbacks=[clock])
    rate, memory = peak(run)
    key = f"cifar_{name}"
    yield (f"CIFAR-10 recipe, {name}, end to end, images/s (GiB)", f"{rate:,.0f} ({memory:.1f})",
           f">= 21,000; 200 epochs in {200 * 50_000 / rate / 60:.1f} min"
           ), {f"{key}_images_per_s": rate, f"{key}_gib": memory}  # fmt: skip
    step = 1e3 * clock.seconds / steps
    yield (f"CIFAR-10 recipe, {name}, a step, ms", f"{step:.2f}", ""), {f"{key}_step_ms": step}


def host(args) -> Iterator[Line]:
    """The host's own on the same settings, with its loader."""
    cfg = cifar_config(args, 1)
    steps, warm, size, workers = (1, 1, 8, 0) if args.dry_run else (150, 20, 32, args.workers)
    rate, memory = peak(partial(end_to_end.hosts, cfg, size, steps, workers, warm))
    yield (f"CIFAR-10, host's own, {workers} workers, images/s (GiB)",
           f"{rate:,.0f} ({memory:.1f})", ""), {"cifar_host_images_per_s": rate}  # fmt: skip


def phases(args) -> Iterator[Line]:
    """Where the time of an eager CIFAR-10 step goes, beside floors measured on this machine."""
    if args.dry_run:
        profile.WARM, profile.STEPS = 1, 1
    folder = Path(args.scratch) / "profile"
    pretrain.pretrain(cifar_config(args, 2, ["profile=true", f"run_dir={folder}", PLAIN]))
    lines = (folder / "profile.md").read_text().splitlines()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    for what, milliseconds, share, _, floors, *_ in cells[1:]:
        key = f"profile_eager_{what.replace(' ', '_')}_ms"
        yield (f"profile, eager: {what}, ms", milliseconds, f"{share}, {floors} x floor"
               ), {key: float(milliseconds)}  # fmt: skip


def losses(args) -> Iterator[Line]:
    """The relational loss beside the host's formula, over N, K and D."""
    for size in [(8, 64, 8)] if args.dry_run else [loss.LARGEST, *loss.SMALLER]:
        pairs = 1 if args.dry_run else 9
        seconds, (ratio, *_), *_ = loss.time_ratios(size, args.device, pairs)
        remark = ""
        if not args.dry_run:
            used = [loss.peak_bytes(side, size, "cuda") for side in ("ours", "host")]
            remark = f"peak bytes {used[0] / used[1]:.3f} of the host's"
        yield ("loss N {} K {} D {}: ours / host's".format(*size),
               f"{ratio:.3f} of {seconds * 1e3:.2f} ms", remark
               ), {"loss_" + "_".join(map(str, size)): ratio}  # fmt: skip


def views(args) -> Iterator[Line]:
    """The batched back end on the device, eager and compiled: both views of every image."""
    read = recipe.read(training.settings(overrides=["devices=1", *_precision(args)]).augmentations)
    cores = {"": None}
    if not args.dry_run:
        cores[", compiled"] = torch.compile(batched.apply_dense)
    for size, batch in ((8, 8),) if args.dry_run else ((32, 256), (224, 256)):
        scaled = replace(read, crops=[replace(view, crop_size=size) for view in read.crops])
        images = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8, device=args.device)
        for name, core in cores.items():
            draw = partial(batched.draw, images, scaled, torch.Generator(),
                           channels_last=True, core=core)  # fmt: skip
            repeats = 1 if args.dry_run else 50
            _times(draw, repeats // 5)
            rate = batch * repeats / _times(draw, repeats)
            yield (f"views {size}x{size}{name}, images/s", f"{rate:,.0f}", ""
                   ), {f"views_{size}{name.replace(', ', '_')}": rate}  # fmt: skip


def _times(work, count: int) -> float:
    """Seconds of doing it `count` times."""
    start = common.now()
    for _ in range(count):
        work()
    return common.now() - start


def imagenet(args) -> Iterator[Line]:
    """One step of ImageNet's shape, the batch already on the device, ours and the host's."""
    batch, size, queue, backbone = (8, 32, 64, "resnet18") if args.dry_run else (
        256, 224, 131072, "resnet50")  # fmt: skip
    cfg = training.settings("imagenet/ressl", [
        f"optimizer.batch_size={batch}", f"method_kwargs.queue_size={queue}", "devices=1",
        f"backbone.name={backbone}", "batchnorm.mode=group", "knn_eval.enabled=false",
        *(["accelerator=cpu", "method_kwargs.proj_hidden_dim=32"] if args.dry_run else []),
    ])  # fmt: skip
    cfg.data.num_classes = 1000
    precision, steps, warm = ("32-true", 1, 1) if args.dry_run else ("bf16-mixed", 15, 5)
    batches = training.Repeat(training.random_batch(batch, size, 2, 1000, args.device))
    sides = {"ours": training.ours, "host": training.hosts}
    if not args.dry_run:
        sides["ours, compiled"] = partial(training.ours, performance__compile=True)
    for name, make in sides.items():  # one model on the device at a time
        step = partial(training.seconds_a_step, make(cfg), batches, steps, warm)
        seconds, memory = peak(partial(step, precision=precision))
        del step
        key, rate = f"imagenet_{name.replace(', ', '_')}", batch / seconds
        yield (f"ImageNet step, {name}, images/s (GiB)", f"{rate:,.0f} ({memory:.1f})", ""
               ), {f"{key}_images_per_s": rate, f"{key}_gib": memory}  # fmt: skip


ROWS = {
    "captured": partial(cifar, name="captured", epochs=12, overrides=["performance.capture=true"]),
    "host": host,
    "eager": partial(cifar, name="eager", epochs=5, overrides=[PLAIN]),
    "profile": phases,
    "loss": losses,
    "views": views,
    "imagenet": imagenet,
}

if __name__ == "__main__":
    main()
