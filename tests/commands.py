"""The `ressl` command on a few images, in this process or one of its own."""

import logging
import math
import sys

from ranks import on_ranks

from ressl_plugin.cli.main import main
from ressl_plugin.method import ressl
from ressl_plugin.method.loss import relational_loss
from ressl_plugin.method.ressl import ReSSL


def command(images, run, *more):
    """6 steps of 8 images an epoch, two epochs, a checkpoint after every second step."""
    return [
        "pretrain", "digits/ressl", f"run_dir={run}", f"data.train_path={images}/train",
        "data.val_path=null", "backbone.name=timm:resnet10t", "backbone.stem=auto",
        "backbone.kwargs={channels: [8, 8, 16, 16]}", "method_kwargs.queue_size=40",
        "optimizer.batch_size=8", "max_epochs=2", "checkpoint.every_n_steps=2", "accelerator=cpu",
        "enable_progress_bar=false", "enable_model_summary=false", "data.backend=batched", *more,
    ]  # fmt: skip


def run_cli(words, happens=None, at=5, wrong=None):
    """Exit status of the command in this process; `happens()` in step `at`, and the loss of the
    steps in `wrong` is NaN."""
    step = ReSSL.training_step

    def training_step(self, batch, batch_idx):
        if happens and self.trainer.global_step == at:
            happens()
        return step(self, batch, batch_idx)

    count = [0]

    def loss(*args):
        found = relational_loss(*args)
        count[0] += 1
        return type(found)(found[0] * math.nan, found[1]) if count[0] in (wrong or ()) else found

    ReSSL.training_step, ressl.relational_loss = training_step, loss
    sys.argv = ["ressl", *words]
    try:
        return main(words)
    except SystemExit as error:
        return error.code


def run(folder, words, *args):
    """(exit status, standard error) of the command, in a process of its own."""
    err = folder / "err.txt"
    folder.mkdir(parents=True, exist_ok=True)

    def work():
        sys.stderr = err.open("w")  # pytest's own is no longer of interest
        logging.getLogger().handlers.clear()
        try:
            return run_cli(words, *args)
        finally:
            sys.stderr.flush()

    code = on_ranks(1, work, folder / "ranks")[0]
    return code, err.read_text()


def last_line(text):
    return [line for line in text.splitlines() if line.startswith("ressl: ")][-1]
