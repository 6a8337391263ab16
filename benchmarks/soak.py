"""Thousands of small steps of a real run: does memory, do files, do threads grow?

    python benchmarks/soak.py                       5,000 steps, about 10 minutes on one core
    python benchmarks/soak.py --steps 800 --json soak.json
    python benchmarks/soak.py --steps 20000

`ressl pretrain` on scikit-learn's digits with all that a long run does: InfoNCE for half of it and
the relational loss, online classifier and kNN every epoch, a checkpoint every 50 steps, CSV and
TensorBoard logs. After a warm-up of a fifth of the steps a sample is taken every 20: resident
memory of the process, open files, threads, bytes of its checkpoints.

    growth_percent   of resident memory, the last tenth's median over the first tenth's
    slope_kib        of resident memory per 1,000 steps, least squares
    disk_percent     growth of the checkpoints, likewise; logs grow with every step
    files, threads   the largest number in the last tenth less the largest in the first: the writer
                     of a checkpoint comes and goes
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import lightning.pytorch as pl
import numpy as np

EVERY = 20


class Watch(pl.Callback):
    """Samples of this process, (step, bytes, files, threads, worker processes), from /proc, and
    the bytes of the run's checkpoints."""

    def __init__(self):
        self.samples = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        """Between two steps."""
        if trainer.global_step % EVERY == 0:
            own = Path("/proc/self")
            pages = int((own / "statm").read_text().split()[1])
            files = len(os.listdir(own / "fd")) - 1  # without that of the listing
            threads = os.listdir(own / "task")
            children = (own / "task" / str(os.getpid()) / "children").read_text().split()
            memory = pages * os.sysconf("SC_PAGE_SIZE")
            run = Path(trainer.default_root_dir)
            disk = sum(path.stat().st_size for path in run.rglob("last.ckpt"))
            counts = (files, len(threads), len(children), disk)
            self.samples.append((trainer.global_step, memory, *counts))


def config(folder: Path, steps: int, backend: str):
    """digits/ressl with a narrow network: 22 steps of 16 images an epoch."""
    from ressl_plugin import config, data

    images = data.make_digits(folder / "digits")
    words = [
        f"run_dir={folder}/run", f"data.train_path={images}/train", f"data.val_path={images}/val",
        "backbone.name=timm:resnet10t", "backbone.stem=auto", f"data.backend={backend}",
        "backbone.kwargs={channels: [8, 8, 16, 16]}", "optimizer.batch_size=16",
        "data.fraction=0.25", f"max_epochs={-(-steps // 22)}",
        f"method_kwargs.infonce_epochs={steps // 44}", "checkpoint.every_n_steps=50",
        f"data.num_workers={int(backend == 'host')}", "accelerator=cpu",
        "enable_progress_bar=false", "enable_model_summary=false",
    ]  # fmt: skip
    return config.finish(config.load("digits/ressl", words))


def figures(samples, warm: int) -> dict[str, float]:
    """The growth after step `warm`."""
    step, memory, files, threads, children, disk = np.array([s for s in samples if s[0] >= warm]).T
    tenth = max(1, len(step) // 10)
    counts = {"files": files, "threads": threads, "workers": children}
    growth = lambda of: statistics.median(of[-tenth:]) / max(1, statistics.median(of[:tenth])) - 1
    return {
        "steps": int(samples[-1][0]),
        "resident_mib": statistics.median(memory[:tenth]) / 2**20,
        "growth_percent": 100 * growth(memory),
        "disk_percent": 100 * growth(disk),
        "slope_kib": 1000 * float(np.polyfit(step, memory / 2**10, 1)[0]),
        **{name: int(of[-tenth:].max() - of[:tenth].max()) for name, of in counts.items()},
    }


def main(argv=None) -> int:
    """Exit status 1 if resident memory grew by 1 per cent or more, or a file or thread was left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--backend", default="batched", choices=["batched", "host"])
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    args.threads, args.pairs = 1, 0
    common.begin(args, f"{args.steps} steps, {args.backend} back end, one thread")
    from ressl_plugin.train.pretrain import pretrain

    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        pretrain(config(Path(folder), args.steps, args.backend), callbacks=[watch])
    found = figures(watch.samples, args.steps // 5)
    rows = watch.samples[:: max(1, len(watch.samples) // 10)]
    common.table(
        [(str(s), m / 2**20, f, t, c) for s, m, f, t, c, _ in rows],
        ("step", "resident MiB", "files", "threads", "workers"),
    )
    print(
        f"after warm-up: memory {found['growth_percent']:+.2f} %, slope "
        f"{found['slope_kib']:+.1f} KiB per 1,000 steps; files {found['files']:+d}, "
        f"threads {found['threads']:+d}"
    )
    common.finish(args, found)
    grew = max(found["growth_percent"], found["disk_percent"]) >= 1
    return int(grew or max(found[name] for name in ("files", "threads", "workers")) > 0)


if __name__ == "__main__":
    sys.exit(main())
