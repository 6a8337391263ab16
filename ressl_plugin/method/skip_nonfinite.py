"""What keeps a step whole: batches that are left out, and statistics that all ranks share."""

from __future__ import annotations

from torch import Tensor, nn

from ressl_plugin.utils import distributed


class SkipNonfinite:
    """Mixed into the method: skips non-finite batches, averages batch norm over ranks.

    Attributes:
        skipped_steps: batches left out so far (faults.non_finite=skip).
        skipped_in_a_row: those since the last one that was not.
    """

    skipped_steps = 0
    skipped_in_a_row = 0
    _accepted = False  # whether a batch since the last optimizer step was not skipped

    def rest_untrained(self) -> None:
        """Without labels the online classifiers do not train, and DDP must not wait for them."""
        for classifier in (self.classifier, self.momentum_classifier):
            if classifier is not None and self.num_classes < 2:
                classifier.requires_grad_(False)

    def before_step(self) -> None:
        """Remember what a forward pass changes, in case its batch is left out."""
        skips = self.cfg.faults.non_finite == "skip"
        self._before = [b.clone() for b in self.statistics()] if skips else None

    def to_be_skipped(self, loss: Tensor) -> bool:
        """Whether any rank's loss is not finite, where such batches are left out."""
        if self._before is None or bool(distributed.all_true(loss.isfinite())):
            self._accepted, self.skipped_in_a_row = True, 0
            return False
        return True

    def skip(self) -> Tensor:
        """Neither weights, memory nor batch-norm statistics see this batch, on any rank.

        The step counts as one all the same, so that the run ends where its schedule does: the
        learning rate moves on, and the teacher takes another step to the student as it is (Eq. 6).

        Returns:
            0 that reaches every weight: Lightning refuses None and DDP waits for every gradient.
        """
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        for buffer, before in zip(self.statistics(), self._before):
            buffer.copy_(before)
        weights = [p for group in self.learnable_params for p in group["params"]]
        return sum(0 * p.flatten()[0] for p in weights if p.requires_grad)

    def on_before_optimizer_step(self, optimizer) -> None:
        """Without gradients the optimizer moves nothing: no momentum, no weight decay."""
        if not self._accepted:
            self._record_no_overflow(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self._accepted = False

    def _record_no_overflow(self, optimizer) -> None:
        """With precision=16-mixed the scaler must have seen gradients, or fails: those of a batch
        that was left out are 0. A fused optimizer unscales in its step, which finds none any more;
        for others Lightning has unscaled them already.

        To fill them with inf, so that the scaler skips the step, is not enough: a fused SGD whose
        first step is skipped keeps momentum buffers that nobody has written.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)

    def statistics(self) -> list[Tensor]:
        """Running means and variances of every batch norm."""
        batch_norm = nn.modules.batchnorm._BatchNorm
        norms = [m for network in self.networks for m in network.modules()]
        norms = [m for m in norms if isinstance(m, batch_norm) and m.running_mean is not None]
        return [b for m in norms for b in (m.running_mean, m.running_var)]

    def on_validation_start(self) -> None:
        """All ranks evaluate the same network: each has normalised its own images, and the mean
        of their statistics is what one process with as many groups has."""
        distributed.average_(self.statistics())

    def on_save_checkpoint(self, checkpoint) -> None:
        """As for evaluation; the state dict, made already, holds the very tensors changed here."""
        super().on_save_checkpoint(checkpoint)
        distributed.average_(self.statistics())
