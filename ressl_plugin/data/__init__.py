"""Data sets, clean evaluation images, and the checks that keep bad files out of training."""

from ressl_plugin.data.batches import BatchedLoader, worker_loader
from ressl_plugin.data.catalogue import row_of
from ressl_plugin.data.check import Report, check_folder, check_once
from ressl_plugin.data.datasets import ArrayImages, Indexed, build_dataset
from ressl_plugin.data.digits import make_digits
from ressl_plugin.data.evaluation import crop_size, evaluation_loader, evaluation_transform
from ressl_plugin.data.folders import FlatFolder, FolderImages
from ressl_plugin.data.identity import identify
from ressl_plugin.data.images import load_image, printable, to_rgb
from ressl_plugin.data.memory import MemoryImages, common_size, memory_bytes
from ressl_plugin.data.npz import read_npz
from ressl_plugin.data.statistics import interpolation, mean_std, view_recipe
from ressl_plugin.data.tiny_imagenet import arrange as arrange_tiny_imagenet

__all__ = [
    "ArrayImages",
    "BatchedLoader",
    "FlatFolder",
    "FolderImages",
    "Indexed",
    "MemoryImages",
    "Report",
    "arrange_tiny_imagenet",
    "build_dataset",
    "check_folder",
    "check_once",
    "common_size",
    "crop_size",
    "evaluation_loader",
    "evaluation_transform",
    "identify",
    "interpolation",
    "load_image",
    "make_digits",
    "mean_std",
    "memory_bytes",
    "printable",
    "read_npz",
    "row_of",
    "to_rgb",
    "view_recipe",
    "worker_loader",
]
