"""Data-parallel training that goes on, to the last bit, as if it had never been stopped."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.rendezvous import rendezvous


class SteadyDDP(DDPStrategy):
    """Lightning's, with the gradients in their places from the first step on.

    After its first backward pass DDP puts the gradients into buckets anew. Of three ranks or more
    the last bit of a sum depends on where in its bucket a gradient lies: so the first step after a
    resume would add in another order than the same step of a run that went on.

    The ranks that torchrun starts again (--max-restarts) meet anew: its store is that of the round
    before, in which they would find the addresses of ranks that are gone.
    """

    def setup_distributed(self) -> None:
        """Make the process group, which Lightning leaves alone where there is one."""
        if again := int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
            self._process_group_backend = self._get_process_group_backend()
            store, rank, ranks = next(rendezvous("env://"))
            dist.init_process_group(
                self._process_group_backend,
                store=dist.PrefixStore(f"restart {again}", store),
                rank=rank,
                world_size=ranks,
                timeout=self._timeout,
                device_id=self.root_device if self.root_device.type != "cpu" else None,
            )
        super().setup_distributed()

    def configure_ddp(self) -> None:
        super().configure_ddp()
        reducer = self.model.reducer  # goes through a backward pass that changes nothing
        with torch.enable_grad():
            reducer.prepare_for_forward()
            reducer.prepare_for_backward([])
            weights = [p for p in self.model.parameters() if p.requires_grad]
            sum(0 * p.reshape(-1)[0].float() for p in weights).backward()
        reducer._rebuild_buckets()
        self.model.zero_grad(set_to_none=True)
