"""solo-learn 1.0.2 (2021) on today's torch and Lightning: its classes, mended in memory.

Each function names the fault. The host's files are never touched.
"""

import os
import types
from contextlib import suppress
from functools import wraps
from inspect import signature

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torchvision import transforms

from ressl_plugin.host.patches import replace_everywhere

IMAGENET_STD = (0.229, 0.224, 0.225)


def mend_validation() -> None:
    """Lightning 2 refuses `validation_epoch_end`, which averages over the validation set."""
    from solo.methods.base import BaseMethod, BaseMomentumMethod
    from solo.methods.linear import LinearModel

    def collect(self, outputs, batch, batch_idx, dataloader_idx=0):
        if not hasattr(self, "validation_step_outputs"):
            self.validation_step_outputs = []
        # The momentum base gives a pair, the second None without a momentum classifier.
        pair = outputs if isinstance(outputs, tuple) else (outputs,)
        merged = {key: value for part in pair if part for key, value in part.items()}
        self.validation_step_outputs.append(merged)

    def average(self):
        outputs = getattr(self, "validation_step_outputs", [])
        if not outputs:
            return
        count = sum(out["batch_size"] for out in outputs)
        means = {
            key: sum(out[key] * out["batch_size"] for out in outputs) / count
            for key in outputs[0]
            if key != "batch_size"
        }
        if getattr(self, "knn_eval", False) and not self.trainer.sanity_checking:
            means["val_knn_acc1"], means["val_knn_acc5"] = self.knn.compute()
        self.log_dict(means, sync_dist=True)
        self.validation_step_outputs = []

    del BaseMomentumMethod.validation_epoch_end
    for cls in (BaseMethod, LinearModel):
        del cls.validation_epoch_end
        cls.on_validation_batch_end = collect
        cls.on_validation_epoch_end = average


def mend_dino() -> None:
    """DINO's `clip_gradients(threshold)` has the name of a hook of Lightning's."""
    from solo.methods.dino import DINO

    clip = DINO.clip_gradients

    def clip_gradients(self, first, *args, **kwargs):
        if isinstance(first, int | float):
            return clip(self, first)
        return pl.LightningModule.clip_gradients(self, first, *args, **kwargs)

    DINO.clip_gradients = clip_gradients


def mend_whitening() -> None:
    """W-MSE calls torch.cholesky and torch.triangular_solve, which are gone."""
    from solo.utils import whitening

    class Torch:
        """The name `torch` in that one file, so that torch itself stays as it is."""

        def __getattr__(self, name):
            return getattr(torch, name)

        @staticmethod
        def cholesky(matrix):
            return torch.linalg.cholesky(matrix)

        @staticmethod
        def triangular_solve(right, matrix, upper=True):
            return torch.linalg.solve_triangular(matrix, right, upper=upper), matrix

    whitening.torch = Torch()


def mend_swav() -> None:
    """SwAV takes two crops alone, and lets its prototypes grow longer than one.

    As on the main branch and in its paper: each large crop's assignment is predicted from every
    other crop, small ones too.
    """
    from solo.methods.swav import SwAV

    host = SwAV.__init__

    @wraps(host)  # its arguments are asked for
    def __init__(self, *args, **kwargs):
        host(self, *args, **kwargs)
        self.prototypes.weight_g.data.fill_(1)
        self.prototypes.weight_g.requires_grad = False

    def training_step(self, batch, batch_idx):
        out = super(SwAV, self).training_step(batch, batch_idx)
        embedded = [F.normalize(self.projector(feats)) for feats in out["feats"]]
        scores = [self.prototypes(z) for z in embedded]
        losses = []
        for i, assignment in enumerate(self.get_assignments(scores[: self.num_large_crops])):
            others = scores[:i] + scores[i + 1 :]
            losses += [F.cross_entropy(p / self.temperature, assignment) for p in others]
        loss = sum(losses) / len(losses)
        if self.queue_size > 0:
            new = torch.stack(embedded[: self.num_large_crops]).detach()
            length = self.queue.size(1)
            self.queue.copy_(torch.cat((new, self.queue), dim=1)[:, :length])
        self.log("train_swav_loss", loss, on_epoch=True, sync_dist=True)
        return loss + out["loss"]

    SwAV.__init__, SwAV.training_step = __init__, training_step


def mend_lars() -> None:
    """LARSWrapper scales the gradients before the closure has computed them: LARS does nothing."""
    from solo.utils.lars import LARSWrapper

    scaled_step = LARSWrapper.step

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaled_step(self)
        return loss

    LARSWrapper.step = step


def mend_trainer() -> None:
    """Lightning's Trainer no longer fills an argument parser, which 1.0.2's parsers ask it to."""
    if hasattr(pl.Trainer, "add_argparse_args"):
        return
    parameters = dict(signature(pl.Trainer.__init__).parameters)
    parameters.pop("self")

    def literal(text):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(text)
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)

    def add_argparse_args(parser):
        group = parser.add_argument_group("pl.Trainer")
        for name, parameter in parameters.items():
            group.add_argument(
                f"--{name}", type=literal, default=parameter.default, nargs="?", const=True
            )
        # What 1.0.2 calls them, and what it multiplies the learning rate by the number of.
        group.add_argument("--gpus", type=str, default="0")
        return parser

    def from_argparse_args(args, **kwargs):
        given = {name: getattr(args, name, None) for name in parameters}
        given = {name: value for name, value in given.items() if value is not None}
        return pl.Trainer(**{**given, **kwargs})

    pl.Trainer.add_argparse_args = staticmethod(add_argparse_args)
    pl.Trainer.from_argparse_args = staticmethod(from_argparse_args)


def mend_umap() -> None:
    """AutoUMAP takes the first of `trainer.val_dataloaders`, which is now the loader itself."""
    with suppress(ImportError):
        from solo.utils.auto_umap import AutoUMAP

        plot = AutoUMAP.plot

        class Trainer:
            def __init__(self, trainer):
                self._trainer = trainer

            def __getattr__(self, name):
                value = getattr(self._trainer, name)
                loader = name == "val_dataloaders" and not isinstance(value, list)
                return [value] if loader else value

        AutoUMAP.plot = lambda self, trainer, module: plot(self, Trainer(trainer), module)


def mend_class_count() -> None:
    """Classes of a custom data set were counted from files as well as folders."""
    from solo.args import utils

    folders = lambda path: [entry for entry in os.scandir(path) if entry.is_dir()]
    utils.os = types.SimpleNamespace(scandir=folders)


def mend_imagenet_std() -> None:
    """ImageNet's red standard deviation is 0.229, not 0.228."""
    from solo.args import dataset as args
    from solo.utils import classification_dataloader, pretrain_dataloader

    def mend(compose):
        for step in compose.transforms:
            if isinstance(step, transforms.Normalize) and step.std[0] == 0.228:
                step.std = IMAGENET_STD

    def mended_init(init):
        def __init__(self, *args, **kwargs):
            init(self, *args, **kwargs)
            # A deviation given by the user stands.
            if "std" not in kwargs:
                mend(self.transform)

        return __init__

    for name in ("ImagenetTransform", "CustomTransform"):
        cls = getattr(pretrain_dataloader, name)
        cls.__init__ = mended_init(cls.__init__)

    prepare = classification_dataloader.prepare_transforms
    custom = classification_dataloader.build_custom_pipeline

    def prepare_transforms(dataset):
        pipelines = prepare(dataset)
        for pipeline in pipelines:
            mend(pipeline)
        return pipelines

    def build_custom_pipeline():
        pipelines = custom()
        for pipeline in pipelines.values():
            mend(pipeline)
        return pipelines

    classification_dataloader.prepare_transforms = prepare_transforms
    classification_dataloader.build_custom_pipeline = build_custom_pipeline

    add = args.custom_dataset_args

    def custom_dataset_args(parser):
        added = add(parser)
        parser.set_defaults(std=list(IMAGENET_STD))
        return added

    replace_everywhere("custom_dataset_args", add, custom_dataset_args)


def apply() -> None:
    """All of the above, once, after `solo` has been imported."""
    for mend in (
        mend_validation,
        mend_dino,
        mend_whitening,
        mend_swav,
        mend_lars,
        mend_trainer,
        mend_umap,
        mend_class_count,
        mend_imagenet_std,
    ):
        mend()
