"""faults.non_finite=skip: a batch whose loss is not finite leaves no trace."""

from __future__ import annotations

from lightning.pytorch import Callback
from torch import Tensor

from ressl_plugin.method.batchnorm import running_statistics


class SkipNonfinite(Callback):
    """Neither weights nor batch-norm statistics see a batch that `ReSSL.training_step` leaves out.

    The step counts as one all the same, so that the run ends where its schedule does: the
    learning rate moves on, and the teacher takes another step to the student as it is (Eq. 6).
    """

    def __init__(self):
        self._before: list[Tensor] = []  # what a forward pass changes, as it was
        self._accepted = False  # whether a batch since the last optimizer step was not left out

    def on_train_batch_start(self, trainer, module, batch, batch_idx: int) -> None:
        self._before = [b.clone() for b in running_statistics(module.networks)]

    def on_after_backward(self, trainer, module) -> None:
        """The step has decided: undo the forward pass and count, or go on."""
        if module.seen is not None:
            self._accepted, module.skipped_in_a_row = True, 0
            return
        module.skipped_steps += 1
        module.skipped_in_a_row += 1
        for buffer, before in zip(running_statistics(module.networks), self._before):
            buffer.copy_(before)

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        """Without gradients the optimizer moves nothing: no momentum, no weight decay."""
        if not self._accepted:
            self._record_no_overflow(trainer, optimizer)
            optimizer.zero_grad(set_to_none=True)
        self._accepted = False

    def _record_no_overflow(self, trainer, optimizer) -> None:
        """With precision=16-mixed the scaler must have seen gradients, or fails: those of a batch
        that was left out are 0. A fused optimizer unscales in its step, which finds none any more;
        for others Lightning has unscaled them already.

        To fill them with inf, so that the scaler skips the step, is not enough: a fused SGD whose
        first step is skipped keeps momentum buffers that nobody has written.
        """
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
