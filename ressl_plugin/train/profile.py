"""Where the time of a training step goes, phase by phase, beside what the machine could do.

`profile=true` writes RUN/profile.md. Every instant of the measured steps is attributed to exactly
one phase, on a GPU by events in the stream that does the work, so the shares add up to 1.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import torch

from ressl_plugin.train import roofline
from ressl_plugin.utils import files

log = logging.getLogger(__name__)

WARM, STEPS = 10, 300  # steps left out (allocations, autotuning, compilation); steps measured
STUDENT = ("backbone", "projector", "predictor")
TEACHER = ("momentum_backbone", "momentum_projector")
PHASES = ("data", "student forward", "teacher forward", "loss", "backward", "EMA and optimizer")
OUTSIDE = "outside"  # in no phase: validation, the end of an epoch
NETWORKS = ("student forward", "teacher forward", "backward")


class Phases(pl.Callback):
    """Seconds of each phase, over at most `steps` steps after the first `warm`.

    A phase lasts until the next one begins, at a hook of Lightning's or of a network's:

        data: waiting for a batch or drawing its views; callbacks and Lightning's work between two
            steps.
        student forward, teacher forward: their networks.
        loss: what else is in a step before the backward pass: the relation, the memory, the
            permuted batch, the online classifier, the means.
        backward.
        EMA and optimizer: what is after it.
    """

    def __init__(self, warm: int = WARM, steps: int = STEPS):
        self.warm, self.steps = warm, steps
        self.measured = 0  # steps
        self._seen = 0
        self._whole = 0  # marks up to the end of the last whole step
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self._hooks: list = []
        self._cuda = self._over = False

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds a step, every phase that occurred; empty before `warm` steps."""
        if self._cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = defaultdict(float)
        marks = self._marks[: self._whole]
        for (phase, start), (_, end) in pairwise(marks):
            total[phase] += start.elapsed_time(end) / 1e3 if self._cuda else end - start
        return {p: total[p] / self.measured for p in PHASES if p in total and self.measured}

    @torch.compiler.disable
    def begin(self, phase: str) -> None:
        """From now on the time is this phase's."""
        if self._over:
            return
        if self._cuda:
            at = torch.cuda.Event(enable_timing=True)
            at.record()
        else:
            at = time.perf_counter()
        self._marks.append((phase, at))

    def _watch(self, network: torch.nn.Module, phase: str) -> None:
        """Its forward passes are the phase's, but for those of a validation."""

        def before(network, _):
            if network.training:
                self.begin(phase)

        def after(network, *_):
            if network.training:
                self.begin("loss")

        self._hooks.append(network.register_forward_pre_hook(before))
        self._hooks.append(network.register_forward_hook(after))

    def on_train_start(self, trainer, module) -> None:
        self._cuda = module.device.type == "cuda"
        for names, phase in ((STUDENT, "student forward"), (TEACHER, "teacher forward")):
            for name in names:
                network = getattr(module, name, None)
                if network is not None:
                    self._watch(network, phase)

    def on_train_batch_start(self, *_) -> None:
        self.begin("loss")

    def on_before_backward(self, *_) -> None:
        self.begin("backward")

    def on_after_backward(self, *_) -> None:
        self.begin("EMA and optimizer")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """A step's measurement ends and the next one's begins."""
        if self._over:
            return
        self._seen += 1
        if self._seen == self.warm:
            self._marks.clear()
        self.begin("data")
        self.measured, self._whole = max(0, self._seen - self.warm), len(self._marks)
        if self.measured == self.steps:
            self.done(trainer, module)

    def _between_steps(self, *_) -> None:
        self.begin(OUTSIDE)

    def _await_batch(self, *_) -> None:
        self.begin("data")

    on_validation_start = on_train_epoch_end = _between_steps
    on_validation_end = on_train_epoch_start = _await_batch

    def on_train_end(self, trainer, module) -> None:
        self.done(trainer, module)  # a short run has not measured all its steps

    def done(self, trainer, module) -> None:
        """Take the clocks away."""
        self._over = True
        while self._hooks:
            self._hooks.pop().remove()


class Profile(Phases):
    """`Phases` that writes RUN/profile.md and prints it, once the steps are measured."""

    def __init__(self, folder: Path, precision):
        super().__init__(WARM, STEPS)
        self.folder, self.precision = Path(folder), precision
        self._shapes = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        self._shapes = self._shapes or [tuple(view.shape) for view in batch[1]]

    def done(self, trainer, module) -> None:
        if self._over:
            return
        super().done(trainer, module)
        if not trainer.is_global_zero:
            return
        if not self.measured:
            log.warning("profile=true: the run ended within the %d steps of warm-up", self.warm)
            return
        seconds = self.seconds()
        machine = roofline.measure(module.device, self.precision)
        least = roofline.of_step(module, self._shapes, machine)
        text = report(seconds, least, machine, self._shapes, self.measured)
        print(text)
        try:
            files.replace(self.folder / "profile.md", text.encode())
        except OSError as error:  # no reason to end a training
            log.error("%s/profile.md: not written: %s", self.folder, error.strerror)


def report(seconds, least, machine, shapes, steps: int) -> str:
    """The table as markdown: milliseconds and share of each phase, its floor and the ratio."""
    whole, images = sum(seconds.values()), shapes[0][0]
    networks = sum(seconds.get(name, 0.0) for name in NETWORKS)
    lines = [
        "# Profile",
        "",
        f"{steps} steps of {images} images, {whole * 1e3:.2f} ms a step, "
        f"{images / whole:,.0f} images/s a process; {machine}.",
        f"Outside the networks' forward and backward: {1 - networks / whole:.1%}.",
        "",
        "| phase | ms | share | floor ms | times floor | floor is |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for phase, value in seconds.items():
        floor = least.get(phase)
        bound = "- | - | "
        if floor and floor.seconds:
            bound = f"{floor.seconds * 1e3:.2f} | {value / floor.seconds:.1f} | {floor.what}"
        lines.append(f"| {phase} | {value * 1e3:.2f} | {value / whole:.1%} | {bound} |")
    total = sum(floor.seconds for floor in least.values())  # 0: a method without floors
    bound = f"{total * 1e3:.2f} | {whole / total:.1f} |" if total else "- | - |"
    lines.append(f"| step | {whole * 1e3:.2f} | 100% | {bound} |")
    return "\n".join([*lines, "", *NOTES, ""])


NOTES = (
    "A floor is the time that the phase's floating point operations take at the machine's own",
    "measured matrix product throughput, or its bytes at the measured copy bandwidth, whichever is",
    "more; no code can be expected to reach 1.0 everywhere. `data` is waiting for a batch, or",
    "drawing its views where no worker does, and callbacks between two steps; `loss` has the",
    "memory, the online classifier, the means and Lightning's work before the backward pass in it.",
)
