"""`ressl features RUN OUT.npz`: the features of clean images, for other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ressl_plugin import data
from ressl_plugin.evaluate.features import extract
from ressl_plugin.evaluate.subject import device_named, held_out, with_overrides
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.files import replacing

COMMAND = {
    "name": "features",
    "help": "features of clean images into a .npz",
    "arguments": {"out": {"type": "Path", "help": "the .npz to write"}},
}


def evaluate(path, overrides, out, device="auto") -> Path:
    """Write the run's features, in the order of its data set.

    `out` gets train_features (N, d) float32, train_targets (N,), -1 without label, classes (their
    names), and val_features, val_targets if the run has validation images.

    Example:
        >>> evaluate("runs/mine", [], "features.npz")  # doctest: +SKIP
        >>> with np.load("features.npz") as file:  # doctest: +SKIP
        ...     x, y = file["train_features"], file["train_targets"]

    Raises:
        UserError: no such run, images missing, or a name that is not of an .npz.
    """
    out = Path(out)
    if out.suffix != ".npz" or out.is_dir():
        raise UserError(f"{out}: the file to write, a name that ends in .npz")
    run = with_overrides(path, overrides)
    place, backbone = device_named(device), run.backbone()
    arrays = {}
    for split in ["train", "val"] if held_out(run.cfg) else ["train"]:
        loader = data.evaluation_loader(run.cfg, split, need_labels=False)
        features, targets = extract(backbone, loader, place)
        arrays[f"{split}_features"] = features.numpy()
        arrays[f"{split}_targets"] = targets.numpy()
        if split == "train":
            arrays["classes"] = np.array([str(name) for name in loader.dataset.classes], dtype=str)
    with replacing(out) as file:
        np.savez(file, **arrays)
    for name, array in arrays.items():
        print(f"{name}: {' x '.join(map(str, array.shape))} {array.dtype}")
    print(out)
    return out
