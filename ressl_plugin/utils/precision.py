"""Full precision where half of it would show."""

from contextlib import contextmanager

import torch


@contextmanager
def float32_products():
    """Full float32 products: "medium" precision means bfloat16 on some CPUs, "high" TF32 on GPUs,
    and at a temperature of 0.04 either shows in the target."""
    settings = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    before = [setting.fp32_precision for setting in settings]
    try:
        general = torch.get_float32_matmul_precision()
    except RuntimeError:  # they were set one by one, and have no name together
        general = None
    # Not one by one: torch.compile asks for the general setting, and PyTorch refuses to answer
    # when the two disagree.
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if general:
            torch.set_float32_matmul_precision(general)
        for setting, precision in zip(settings, before):
            setting.fp32_precision = precision
