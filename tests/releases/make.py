"""Make the tiny run directory of a release, which test_releases.py then holds every later one to.

    python tests/releases/make.py tests/releases/0.2.0.zip      with that release installed

`ressl pretrain` on 144 digits, stopped in the middle of its second epoch of three and evaluated;
beside the run, in losses.json, those of the steps that were still to come, as that release itself
went on with them.
"""

import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch

from ressl_plugin import data

STOP = 12  # of 24 steps
RUN = "run"  # all paths are relative: nothing of this machine is stored
WORDS = [
    "pretrain", "digits/ressl", f"run_dir={RUN}", "data.train_path=digits/train",
    "data.val_path=digits/val", "data.fraction=0.1", "data.backend=batched",
    "backbone.name=timm:resnet18", "backbone.kwargs={channels: [8, 8, 8, 8], layers: [1, 1, 1, 1]}",
    "method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=8",
    "method_kwargs.queue_size=64", "optimizer.batch_size=16", "max_epochs=3",
    "scheduler.warmup_epochs=1", "knn_eval.k=5", "devices=1", "accelerator=cpu",
    "precision=32-true", "enable_progress_bar=false", "enable_model_summary=false",
]  # fmt: skip


class Watch(pl.Callback):
    """The losses, and the signal by which a cluster takes its machine back."""

    def __init__(self, stop):
        self.stop, self.losses = stop, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        if trainer.global_step == self.stop:
            os.kill(os.getpid(), signal.SIGUSR1)


def ressl(*words):
    """The command, in this process, of any version; its exit status."""
    sys.argv[1:] = words
    try:
        runpy.run_module("ressl_plugin.cli", run_name="__main__")
    except SystemExit as end:
        return end.code or 0


def train(words, stop=None):
    """The losses of the steps of a training, to its end or to a stop."""
    watch, fit = Watch(stop), pl.Trainer.fit

    def watched(trainer, *args, **kwargs):
        trainer.callbacks.insert(0, watch)
        return fit(trainer, *args, **kwargs)

    pl.Trainer.fit = watched
    assert ressl(*words) == (os.EX_TEMPFAIL if stop else 0)
    pl.Trainer.fit = fit
    return watch.losses


def make(out):
    """The run, and what is kept of it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        data.make_digits("digits")
        train(WORDS, STOP)
        assert ressl("knn", RUN, "--k", "5", "--temperature", "0.07", "--device", "cpu") == 0
        # TensorBoard's file has the host's name in its own
        left_out = shutil.ignore_patterns("*tfevents*", "*.lock", "previous", "cache", "args.json")
        shutil.copytree(RUN, "kept/run", ignore=left_out)
        Path("kept/losses.json").write_text(json.dumps(train([*WORDS, "resume=true"])))
        shutil.make_archive(str(out.with_suffix("")), "zip", "kept")


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
