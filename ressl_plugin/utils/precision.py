"""The precision that suits a machine, and full precision where half of it would show."""

from contextlib import contextmanager
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
BFLOAT = {"avx512_bf16", "amx_bf16"}  # a processor's instructions that multiply bfloat16


def fastest(gpu: bool) -> str:
    """What `precision: auto` means: bf16-mixed where this machine multiplies bfloat16 itself.

    Else 32-true: emulated, as PyTorch does everywhere, it is several times slower than float32.
    """
    if gpu:
        itself = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        itself = torch.backends.mkldnn.is_available() and not BFLOAT.isdisjoint(_flags())
    return "bf16-mixed" if itself else "32-true"


def _flags() -> list[str]:
    """The processor's, as Linux names them; PyTorch's own test is true of an emulation, too."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    return next((line.split() for line in lines if line.startswith("flags")), [])


@contextmanager
def products(precision: str):
    """Within it products are as `torch.set_float32_matmul_precision(precision)` has them."""
    settings = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    before = [setting.fp32_precision for setting in settings]
    try:
        general = torch.get_float32_matmul_precision()
    except RuntimeError:  # they were set one by one, and have no name together
        general = None
    # Not one by one: torch.compile asks for the general setting, and PyTorch refuses to answer
    # when the two disagree.
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        if general:
            torch.set_float32_matmul_precision(general)
        for setting, one in zip(settings, before):
            setting.fp32_precision = one


def float32_products():
    """Full float32 products: "medium" precision means bfloat16 on some CPUs, "high" TF32 on GPUs,
    and at a temperature of 0.04 either shows in the target."""
    return products("highest")
