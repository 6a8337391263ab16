"""States as tensors and plain values: what a checkpoint may hold, and loads without pickle."""

from __future__ import annotations

from collections import Counter, OrderedDict
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from omegaconf import Container, OmegaConf

from ressl_plugin.utils.errors import CheckpointError


def to_plain(value, where="checkpoint"):
    """Tensors and plain values of ``value``: what ``weights_only`` reads back.

    Raises:
        CheckpointError: something else, named by its place.
    """
    if value is None or isinstance(value, (torch.Tensor, bool, int, float, str, bytes)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, (torch.Size, torch.dtype, torch.device, Counter)):
        return value
    if isinstance(value, Container):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, OrderedDict) and all(isinstance(t, torch.Tensor) for t in value.values()):
        return value  # a state dict: it carries its modules' versions as an attribute
    if isinstance(value, dict):
        return {to_plain(k, where): to_plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [to_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, Enum):
        return to_plain(value.value, where)
    if isinstance(value, Path):
        return str(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise CheckpointError(f"{where} is a {kind}: a checkpoint holds tensors and plain values only")
