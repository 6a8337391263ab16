"""Tensors by their names, held against the networks that a config describes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ressl_plugin.utils.errors import UserError


def shapes(network: nn.Module, prefix: str = "") -> dict[str, torch.Size]:
    """Of a network's state dict."""
    return {prefix + key: tensor.shape for key, tensor in network.state_dict().items()}


def difference(have: dict[str, Tensor], want: dict[str, torch.Size]) -> str | None:
    """The first key that is not in both, or of another shape, in words."""
    for key in [*want, *have]:
        found = tuple(have[key].shape) if key in have else "absent"
        needed = tuple(want[key]) if key in want else "absent"
        if found != needed:
            return f"{key} is {found}, needed is {needed}"
    return None


def load_backbone(network: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Load a state dict's `backbone.*` into a bare encoder, every key of it.

    Raises:
        UserError: no such keys, or shapes of another architecture.
    """
    prefix = "backbone."
    own = {k: v for k, v in state.items() if k.startswith(prefix)}
    if not own:
        raise UserError(f"{source}: no weights under {prefix}; is it a solo-learn checkpoint?")
    if differing := difference(own, shapes(network, prefix)):
        raise UserError(
            f"{source}: weights of another architecture: {differing}; check backbone.name and "
            "backbone.stem"
        )
    network.load_state_dict({k.removeprefix(prefix): v for k, v in own.items()})


def check_finite(weights: dict[str, Tensor], file) -> None:
    """Refuse weights that are not finite in float32, in which networks are built."""
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise UserError(f"{file}: {key} is not finite (NaN or infinite); the training diverged")
