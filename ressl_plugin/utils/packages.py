"""Packages that the plugin needs and may not find, and how each is installed."""

from __future__ import annotations

import importlib.util

from ressl_plugin.utils.errors import UserError

# by the name that is imported
INSTALL = {
    "PIL": "Pillow", "einops": "einops", "hydra": "hydra-core",
    "lightning": "lightning", "matplotlib": "ressl_plugin[figures]", "numpy": "numpy",
    "nvidia": "ressl_plugin[dali]", "omegaconf": "omegaconf",
    "onnx": "ressl_plugin[onnx]", "onnxruntime": "ressl_plugin[onnx]",
    "onnxscript": "ressl_plugin[onnx]", "safetensors": "safetensors",
    "sklearn": "scikit-learn", "tensorboard": "tensorboard", "timm": "timm", "torch": "torch",
    "torchmetrics": "torchmetrics", "torchvision": "torchvision", "tqdm": "tqdm",
    "wandb": "ressl_plugin[wandb]", "yaml": "PyYAML",
}  # fmt: skip


def need(package: str, what: str) -> None:
    """Whether a package is there that `what` needs.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} needs {package}, which is not installed: {_how(package)}")


def missing(error: ModuleNotFoundError) -> str | None:
    """One line about a package that is not installed; None where it is, or is none of ours.

    A module that is missing in a package that is there is a bug, or another version: a traceback.
    """
    package = (error.name or "").partition(".")[0]
    if package not in INSTALL or importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed: {_how(package)}"


def _how(package: str) -> str:
    name = INSTALL[package]
    return f"pip install {name!r}" if "[" in name else f"pip install {name}"
