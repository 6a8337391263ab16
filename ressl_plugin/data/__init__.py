"""Data sets, clean evaluation images, and the checks that keep bad files out of training."""

from ressl_plugin.data.datasets import ArrayImages, Indexed, open
from ressl_plugin.data.digits import make_digits
from ressl_plugin.data.evaluation import (
    crop_size,
    evaluation_loader,
    evaluation_transform,
    mean_std,
)
from ressl_plugin.data.folders import FlatFolder, FolderImages
from ressl_plugin.data.images import load_image, to_rgb
from ressl_plugin.data.npz import read_npz

__all__ = [
    "ArrayImages",
    "FlatFolder",
    "FolderImages",
    "Indexed",
    "crop_size",
    "evaluation_loader",
    "evaluation_transform",
    "load_image",
    "make_digits",
    "mean_std",
    "open",
    "read_npz",
    "to_rgb",
]
