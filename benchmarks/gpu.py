"""Everything that needs a GPU, measured unattended in under ten minutes, in one table.

    benchmarks/gpu.sh [--data DIR] [--out DIR]      (or --dry-run: tiny, on the CPU)

Each part stands alone: what fails is said in the table, and what no longer fits in --minutes is
left out and said, too. DIR holds CIFAR-10, as torchvision keeps it (cifar-10-batches-py) or as an
image folder with train/ and test/; without it the images are random, which changes no speed.
gpu.md is rewritten after every part, so that a run cut short keeps what it has.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import common
import end_to_end
import loss
import torch
import training

from ressl_plugin.train import pretrain, profile
from ressl_plugin.views import batched, recipe

DRY = ["precision=32-true", "accelerator=cpu", "batchnorm.groups=2"]
Row = tuple[str, str, str]  # what, figure, bar or remark


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run every part; returns the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=9.0, help="no part starts later")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--workers", type=int, default=16, help="of the host's loader")
    parser.add_argument("--dry-run", action="store_true", help="tiny settings, on the CPU")
    args = parser.parse_args(argv)
    args.threads, args.clock, args.pairs = torch.get_num_threads(), "wall", 3
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("gpu.py: no CUDA device is visible; --dry-run goes through it on the CPU")
    torch.set_float32_matmul_precision("high")  # as pretrain does
    args.out.mkdir(parents=True, exist_ok=True)
    common.begin(args, "dry run: no figure below means anything" if args.dry_run else " ")
    start, rows, figures = time.monotonic(), [], {}
    for name in args.parts:
        spent = time.monotonic() - start
        if spent > args.minutes * 60:
            rows.append((name, "left out", f"{spent / 60:.1f} minutes were spent already"))
            continue
        try:
            done, found = PARTS[name](args)
        except Exception as error:
            traceback.print_exc()
            done, found = [(name, "failed", f"{type(error).__name__}: {error}".split("\n")[0])], {}
        rows += done
        figures |= found
        rows.append((f"({name}: seconds)", f"{time.monotonic() - start - spent:.0f}", ""))
        _write(args.out, rows, figures, args.dry_run)
    common.table(rows, ("what", "figure", "bar or remark"))
    print(f"written: {args.out / 'gpu.md'}, {args.out / 'gpu.json'}")
    return figures


def _write(folder: Path, rows: list[Row], figures: dict, dry: bool) -> None:
    lines = ["# GPU measurement" + (" (dry run)" if dry else ""), "", common.hardware(), ""]
    lines += [common.versions(), "", "| what | figure | bar or remark |", "|---|---:|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")
    (folder / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n")


def device(args) -> str:
    """Where the measured work is done."""
    return "cpu" if args.dry_run else "cuda"


def peak(work) -> tuple[float, float]:
    """(what `work` returns, GiB allocated at most while it ran); 0 GiB on the CPU."""
    if not torch.cuda.is_available():
        return work(), 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return work(), torch.cuda.max_memory_allocated() / 2**30


def cifar_part(args):
    """The paper's CIFAR-10 recipe end to end, ours and the host's own in the same run."""
    epochs, images, size = (1, 64, 8) if args.dry_run else (12, 50_000, 32)
    batch = 16 if args.dry_run else 256
    overrides = [f"optimizer.batch_size={batch}", f"max_epochs={epochs}", *_tiny(args)]
    if args.data:
        cfg = end_to_end.run_config(args.out, size, [*overrides, *_cifar_files(args.data)])
    else:
        file = end_to_end.random_npz(args.out / "random.npz", images, size)
        cfg = end_to_end.run_config(file, size, overrides)
    run = functools.partial(end_to_end.ours, folder=args.out)
    steps = max(1, epochs * (images // batch) - (warm := 2 if args.dry_run else 40))
    rows, figures = [], {}
    for name, changes in (("", {}), (", compiled", {"performance__compile": True})):
        if args.dry_run and changes:
            continue
        one = training.changed(cfg, changes)
        rate, memory = peak(lambda one=one: run(one, steps=steps, warm=warm))
        key = "cifar_images_per_s" + name.replace(", ", "_")
        figures |= {key: rate, f"{key}_gib": memory}
        rows.append((f"CIFAR-10 recipe{name}, images/s (GiB)", f"{rate:,.0f} ({memory:.1f})",
                     f">= 21,000; 200 epochs in {200 * 50_000 / rate / 60:.1f} min"))  # fmt: skip
    steps, warm = (1, 1) if args.dry_run else (150, 20)
    rate, memory = peak(lambda: end_to_end.hosts(
        cfg, size, steps, 0 if args.dry_run else args.workers, warm))  # fmt: skip
    best = max(v for k, v in figures.items() if not k.endswith("gib"))
    figures |= {"cifar_host_images_per_s": rate, "cifar_ratio": best / rate}
    rows.append((f"host's own, {args.workers} workers, images/s (GiB)",
                 f"{rate:,.0f} ({memory:.1f})", ""))  # fmt: skip
    rows.append(("CIFAR-10 ours / host's", f"{best / rate:.2f}", ">= 4"))
    return rows, figures


def _tiny(args) -> list[str]:
    return DRY if args.dry_run else ["precision=bf16-mixed"]  # of both sides


def _cifar_files(folder: Path) -> list[str]:
    """Overrides that read CIFAR-10 from where it is."""
    if (folder / "cifar-10-batches-py").is_dir():
        return ["data.dataset=cifar10", "data.format=image_folder", "knn_eval.enabled=true",
                f"data.train_path={folder}", f"data.val_path={folder}"]  # fmt: skip
    return ["data.dataset=custom", "data.format=image_folder", f"data.train_path={folder}/train",
            "data.check=false"]  # fmt: skip


def profile_part(args):
    """Where the time of a CIFAR-10 step goes, from a short profiled run."""
    if args.dry_run:
        profile.WARM, profile.STEPS = 1, 1
    images, size, batch = (48, 8, 16) if args.dry_run else (256 * 150, 32, 256)
    file = end_to_end.random_npz(args.out / "profile.npz", images, size)
    cfg = end_to_end.run_config(file, size, [
        f"optimizer.batch_size={batch}", "max_epochs=1", "profile=true",
        f"run_dir={args.out / 'profile'}",
        *_tiny(args),
    ])  # fmt: skip
    shutil.rmtree(args.out / "profile", ignore_errors=True)
    pretrain.pretrain(cfg)
    lines = (args.out / "profile" / "profile.md").read_text().splitlines()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    return [(f"profile: {c[0]}, ms", c[1], f"{c[2]}, {c[4]} x floor") for c in cells[1:]], {}


def imagenet_part(args):
    """One step of ImageNet's shape, the batch already on the device, ours and the host's."""
    batch, size, queue, name = (8, 32, 64, "resnet18") if args.dry_run else (
        256, 224, 131072, "resnet50")  # fmt: skip
    cfg = training.settings("imagenet/ressl", [
        f"optimizer.batch_size={batch}", f"method_kwargs.queue_size={queue}", "devices=1",
        f"backbone.name={name}", "batchnorm.mode=group", "knn_eval.enabled=false",
        *(["accelerator=cpu", "method_kwargs.proj_hidden_dim=32"] if args.dry_run else []),
    ])  # fmt: skip
    cfg.data.num_classes = 1000
    precision = "32-true" if args.dry_run else "bf16-mixed"
    steps, warm = (1, 1) if args.dry_run else (15, 5)
    batches = training.Repeat(training.random_batch(batch, size, 2, 1000, device(args)))
    makers = {"host": lambda: training.hosts(cfg), "ours": lambda: training.ours(cfg)}
    if not args.dry_run:
        makers["ours, compiled"] = lambda: training.ours(cfg, performance__compile=True)
    memory, runs = {}, []
    for i in range(1 if args.dry_run else 2):  # one model on the device at a time
        taken = {}
        for name in list(makers)[:: -1 if i else 1]:
            model = makers[name]()
            run = lambda model=model: training.seconds_a_step(
                model, batches, steps, warm, precision=precision
            )
            taken[name], memory[name] = peak(run)
            del model, run
        runs.append(taken)
    rows, figures = [], {}
    for name in makers:
        rate = batch / common.middle(runs, name)
        key = f"imagenet_{name.replace(', ', '_')}"
        figures |= {f"{key}_images_per_s": rate, f"{key}_gib": memory[name]}
        speed = 1 / common.ratio(runs, name, "host")[0]
        rows.append((f"ImageNet step, {name}, images/s (GiB)", f"{rate:,.0f} ({memory[name]:.1f})",
                     f"{speed:.2f} of the host's; >= 1.4, less memory"))  # fmt: skip
    figures["imagenet_ratio"] = max(
        1 / common.ratio(runs, n, "host")[0] for n in makers if n != "host"
    )
    return rows, figures


def loss_part(args):
    """The relational loss beside the host's formula, over N, K and D."""
    sizes = [(8, 64, 8)] if args.dry_run else [loss.LARGEST, *loss.SMALLER]
    rows, figures = [], {}
    for size in sizes:
        seconds, (ratio, *_), *_ = loss.time_ratios(size, device(args), 1 if args.dry_run else 9)
        figures["loss_" + "_".join(map(str, size))] = ratio
        memory = ""
        if not args.dry_run:
            used = [loss.peak_bytes(side, size, "cuda") for side in ("ours", "host")]
            memory = f"peak bytes {used[0] / used[1]:.3f} of the host's"
        rows.append((f"loss N {size[0]} K {size[1]} D {size[2]}: ours / host's",
                     f"{ratio:.3f} of {seconds * 1e3:.2f} ms", memory))  # fmt: skip
    return rows, figures


def views_part(args):
    """The batched back end on the device, eager and compiled: both views of every image."""
    rows, figures = [], {}
    read = recipe.read(training.settings(overrides=["devices=1", *_tiny(args)]).augmentations)
    cores = {"": None}
    if not args.dry_run:
        cores[", compiled"] = torch.compile(batched.apply_dense)
    for size, batch in ((8, 8),) if args.dry_run else ((32, 256), (224, 256)):
        scaled = replace(read, crops=[replace(view, crop_size=size) for view in read.crops])
        images = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8, device=device(args))
        for name, core in cores.items():
            draw = functools.partial(batched.draw, images, scaled, torch.Generator(),
                                     channels_last=True, core=core)  # fmt: skip
            repeats = 1 if args.dry_run else 50
            _times(draw, repeats // 5)
            rate = batch * repeats / _times(draw, repeats)
            figures[f"views_{size}{name.replace(', ', '_')}"] = rate
            rows.append((f"views {size}x{size}{name}, images/s", f"{rate:,.0f}", ""))
    return rows, figures


def _times(work, count: int) -> float:
    """Seconds of doing it `count` times."""
    start = common.now()
    for _ in range(count):
        work()
    return common.now() - start


PARTS = {"cifar": cifar_part, "imagenet": imagenet_part, "loss": loss_part, "views": views_part,
         "profile": profile_part}  # fmt: skip

if __name__ == "__main__":
    main()
