"""Data sets, clean evaluation images, and the checks that keep bad files out of training."""

from ressl_plugin.data.batches import BatchedLoader, UndrawnLoader, WorkerLoader
from ressl_plugin.data.catalogue import row_of
from ressl_plugin.data.check import check_folder, check_once
from ressl_plugin.data.datasets import build_dataset, keep_fraction
from ressl_plugin.data.digits import make_digits
from ressl_plugin.data.evaluation import (
    crop_size,
    evaluation_loader,
    evaluation_transform,
    fitting,
    given_loader,
    picture_transform,
)
from ressl_plugin.data.identity import identify
from ressl_plugin.data.images import load_image
from ressl_plugin.data.memory import MemoryImages
from ressl_plugin.data.packing import PACKED, pack
from ressl_plugin.data.statistics import interpolation, mean_std, view_recipe
from ressl_plugin.data.tiny_imagenet import arrange as arrange_tiny_imagenet
