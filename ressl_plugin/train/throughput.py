"""Throughput and peak memory of a training, measured while it runs."""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path

import lightning.pytorch as pl
import torch

from ressl_plugin.run import results

MEGABYTE = 1e6
SELF = Path("/proc/self")


class Meter(pl.Callback):
    """Append images/s (median over the epochs, without the first) and peak MB to results.json.

    An epoch is timed from its start to its last batch, drawing the views included, validation
    excluded. Memory: allocated on the GPU, else resident (the whole process).
    """

    def __init__(self, folder: Path, data: str):
        self.folder, self.data = Path(folder), data
        self.rates: list[float] = []
        self.images, self.start, self.pause = 0, 0.0, 0.0

    def on_train_start(self, trainer, module) -> None:
        self.rates.clear()
        # an epoch that is resumed within does not start again
        self.images, self.start = 0, now(module.device)
        reset_peak(module.device)

    def on_train_epoch_start(self, trainer, module) -> None:
        self.images, self.start = 0, now(module.device)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx: int) -> None:
        self.images += len(batch[0]) * trainer.world_size
        if trainer.is_last_batch:  # validation has not begun
            self.rates.append(self.images / (now(module.device) - self.start))

    def on_validation_start(self, trainer, module) -> None:
        self.pause = now(module.device)

    def on_validation_end(self, trainer, module) -> None:
        self.start += now(module.device) - self.pause  # within an epoch (val_check_interval)

    def on_train_end(self, trainer, module) -> None:
        if not trainer.is_global_zero or not self.rates:
            return
        rate = statistics.median(self.rates[1:] or self.rates)
        batch = module.cfg.optimizer.batch_size
        protocol = f"batch {trainer.world_size} x {batch}, {module.device.type}"
        for metric, value in (("images/s", rate), ("peak MB", peak(module.device) / MEGABYTE)):
            record = {"evaluator": "training", "protocol": protocol, "data": self.data}
            results.append(self.folder, {**record, "metric": metric, "value": value})


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far, where the system allows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (SELF / "clear_refs").exists():
        (SELF / "clear_refs").write_text("5")  # Linux: VmHWM falls back to what is resident now


def peak(device: torch.device) -> float:
    """Bytes at the highest since `reset_peak`; resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (SELF / "status").exists():
        lines = (SELF / "status").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
