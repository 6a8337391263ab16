"""Data-parallel training whose sums are those of a run that was never stopped."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import DDPStrategy


class SteadyDDP(DDPStrategy):
    """Lightning's, with the gradients in their places from the first step on.

    After its first backward pass DDP puts the gradients into buckets anew. Of three ranks or more
    the last bit of a sum depends on where in its bucket a gradient lies: so the first step after a
    resume would add in another order than the same step of a run that went on.
    """

    def configure_ddp(self) -> None:
        """Wrap the model, and go through a backward pass that changes nothing."""
        super().configure_ddp()
        reducer = self.model.reducer
        with torch.enable_grad():
            reducer.prepare_for_forward()
            reducer.prepare_for_backward([])
            weights = [p for p in self.model.parameters() if p.requires_grad]
            sum(0 * p.reshape(-1)[0].float() for p in weights).backward()
        reducer._rebuild_buckets()
        self.model.zero_grad(set_to_none=True)
