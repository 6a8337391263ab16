"""torch.compile of a run: the networks once each, for the batches that they are trained on."""

import lightning.pytorch as pl
import torch
from torch._inductor import config as inductor


def compile_networks(model: pl.LightningModule, whole: bool) -> None:
    """Compile a method's networks where they are, the first time that each is called.

    Args:
        model: of ours, or of the host's methods, of which the backbone is compiled.
        whole: refuse a network that is not one graph.
    """
    # An optimisation of Inductor's that failed on these networks on an H200 (torch 2.11, "512 v.s.
    # 4096") when batch norm in groups was still compiled with them; without it they have run there.
    if hasattr(inductor.triton, "mix_order_reduction"):
        inductor.triton.mix_order_reduction = False
    for network in getattr(model, "networks", [model.backbone]):
        network.compile(fullgraph=whole)


class EagerValidation(pl.Callback):
    """Validation runs uncompiled: its batches are of other sizes, the last of yet another, and
    nothing is differentiated, so that each network would be compiled anew for a few of them."""

    def on_validation_start(self, *_) -> None:
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, *_) -> None:
        torch.compiler.set_stance("default")

    on_exception = on_validation_end  # other runs of this process may follow
