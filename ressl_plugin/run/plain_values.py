"""States as tensors and plain values: what a checkpoint may hold, and loads without pickle."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from omegaconf import Container, OmegaConf

from ressl_plugin.utils.errors import CheckpointError


def to_plain(value, where="checkpoint"):
    """A copy of ``value`` of tensors in host memory and plain values: what ``weights_only`` reads
    back. What becomes of ``value`` later does not change it.

    Raises:
        CheckpointError: something else, named by its place.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Enum):
        return to_plain(value.value, where)
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, (torch.Size, torch.dtype, torch.device, Counter)):
        return value
    if isinstance(value, Container):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, OrderedDict) and all(isinstance(t, torch.Tensor) for t in value.values()):
        copied = copy.copy(value)  # a state dict: it carries its modules' versions as an attribute
        copied.update((key, to_plain(tensor)) for key, tensor in value.items())
        return copied
    if isinstance(value, dict):
        return {to_plain(k, where): to_plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [to_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, Path):
        return str(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise CheckpointError(f"{where} is a {kind}: a checkpoint holds tensors and plain values only")
