"""The random number generators of a process, as values that a checkpoint can hold."""

from __future__ import annotations

import random

import numpy as np
import torch


def rng_state() -> dict:
    """This process's generators (Python, NumPy, torch, its CUDA device) as tensors and numbers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_rng(state: dict) -> None:
    """Set this process's generators to what `rng_state` gave."""
    _set(state, random, np.random, torch.default_generator)
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def refused(state: dict) -> str | None:
    """What the libraries have against a state of the right types and shapes; None: nothing."""
    try:
        _set(state, random.Random(), np.random.RandomState(), torch.Generator())
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        return str(error)
    return None


def _set(state: dict, python, numpy, torchs) -> None:
    version, words, gauss = state["python"]
    python.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    keys = keys.cpu().numpy().astype(np.uint32)
    numpy.set_state((name, keys, position, has_gauss, cached))
    torchs.set_state(state["torch"].cpu())
