"""A run's backbone as a folder that timm loads and a hub takes as it is.

    config.json         the architecture, and how images are prepared, as timm reads them
    model.safetensors   the weights, under timm's names; torchvision's ResNets have the same
    modeling.py         where timm has no ResNet with the run's first layer: registers one
    model.onnx          where it is asked for
    README.md           the model card (experiments/model_card.py)

Nothing of the machine that trained it is in any of them.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ressl_plugin import data
from ressl_plugin.config.diff import plain_config
from ressl_plugin.method import backbone
from ressl_plugin.run.directories import Run
from ressl_plugin.run.weights import check_finite, difference, shapes
from ressl_plugin.utils import packages
from ressl_plugin.utils.errors import RunFault, UserError

TORCHVISIONS = ("resnet18", "resnet50")  # among the host's backbones
# timm's names of torchvision's arguments; what only initialises has none
TIMMS = {"groups": "cardinality", "width_per_group": "base_width", "zero_init_residual": None}
MODELING = '''"""{base} with a first layer for small images, which timm's own has not.

Importing this file makes it known to timm, which then loads the folder by its name.
"""

import timm
from timm.models import load_pretrained, register_model
from torch import nn


@register_model
def {name}(pretrained=False, **kwargs):
    model = timm.model_entrypoint("{base}")(pretrained=False, **kwargs)
    width = model.conv1.out_channels
    model.conv1 = nn.Conv2d(model.conv1.in_channels, width, 3, 1, {padding}, bias=False)
    model.maxpool = nn.Identity()
    if pretrained:
        load_pretrained(model, num_classes=model.num_classes)
    return model
'''
ONNX_TOLERANCE = 1e-4  # of the largest feature


class Model:
    """A run's student's encoder, as timm has it.

    Attributes:
        network: the encoder, in eval mode; `cfg`: the run's config.
        base: timm's name of it; `name`: the same, or what modeling.py calls it.
        kwargs: arguments in timm's words.
        padding: of a first layer for small images; None if the first layer is timm's.
        torchvisions: whether torchvision has it, under `base`.
        config: config.json.

    Raises:
        UserError: timm cannot build the network; weights that are not finite.
    """

    def __init__(self, run: Run):
        import timm

        self.cfg, self.network = run.cfg, run.backbone()
        check_finite(self.network.state_dict(), run.file)
        given = self.cfg.backbone.name
        self.torchvisions = given in TORCHVISIONS
        if not self.torchvisions and not given.startswith(backbone.TIMM):
            raise UserError(
                f"backbone.name={given}: timm has no network of this name and these weights; "
                "exported are torchvision's ResNets and timm:<model>"
            )
        self.base = given.removeprefix(backbone.TIMM).partition(".")[0]  # without a tag of weights
        self.kwargs = plain_config(self.cfg.backbone).get("kwargs") or {}
        if self.torchvisions:
            self.kwargs = {TIMMS.get(key, key): value for key, value in self.kwargs.items()}
            self.kwargs.pop(None, None)
        make = partial(timm.create_model, self.base, num_classes=0)
        fault = f"backbone.kwargs={self.kwargs}: timm's {self.base} does not take them"
        with torch.device("meta"):  # nothing is allocated
            theirs = backbone.with_arguments(make, self.kwargs, fault)
        self.padding, self.name = None, self.base
        if backbone.has_stem(self.network) and self.network.conv1.kernel_size == (3, 3):
            self.padding = self.network.conv1.padding[0]
            self.name = f"{self.base}_3x3_pad{self.padding}"
            with torch.device("meta"):
                backbone.set_stem(theirs, "paper")
        if differing := difference(self.network.state_dict(), shapes(theirs)):
            raise UserError(f"backbone.name={given}: timm's {self.base} is another: {differing}")
        self.config = self._config(theirs.pretrained_cfg)

    def _config(self, of_theirs: dict) -> dict:
        """Images are to be prepared as evaluators prepare a run's own."""
        shorter, size, interpolation = data.fitting(self.cfg)
        mean, std = data.mean_std(self.cfg)
        kept = ("first_conv", "classifier", "fixed_input_size")
        return {
            "architecture": self.name,
            "num_classes": 0,
            "num_features": _features(self.network, size),
            **({"model_args": self.kwargs} if self.kwargs else {}),
            "pretrained_cfg": {
                "num_classes": 0,
                "input_size": [3, size, size],
                "interpolation": interpolation.value,
                "crop_pct": size / (shorter + 0.5),  # of which timm makes floor(size / crop_pct)
                "crop_mode": "center",
                "mean": list(mean),
                "std": list(std),
                **{key: value for key, value in of_theirs.items() if key in kept},
            },
        }


def export(model: Model, out: str | Path, card: str, onnx: bool = False) -> Path:
    """Write the folder `out`, whole or not at all.

    Args:
        out: a new or an empty folder.
        card: text of README.md.
        onnx: model.onnx, too, for batches (n, 3, S, S) of any n.

    Raises:
        UserError: `out` holds files or cannot be written; onnx is not installed.
        RunFault: what onnxruntime computes is something else.
    """
    out = Path(out)
    if onnx:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            packages.need(package, "onnx", "--onnx")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: holds something already; give a new folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
            whole = Path(place) / "export"
            whole.mkdir()
            _write(whole, model, card)
            if onnx:
                _write_onnx(whole / "model.onnx", model)
            whole.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from None
    return out


def _write(folder: Path, model: Model, card: str) -> None:
    from safetensors.torch import save

    weights = {key: value.contiguous() for key, value in model.network.state_dict().items()}
    # not save_file, which leaves a file that nobody else may read
    (folder / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")
    (folder / "README.md").write_text(card, encoding="utf-8")
    if model.padding is not None:
        (folder / "modeling.py").write_text(MODELING.format(**vars(model)))


@torch.no_grad()
def _write_onnx(file: Path, model: Model) -> None:
    import onnx
    import onnxruntime

    size = data.crop_size(model.cfg)
    images = torch.randn(2, 3, size, size)
    program = torch.onnx.export(
        model.network,
        (images,),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    _forget_sources(proto)
    onnx.save(proto, file)
    images = torch.randn(3, 3, size, size)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    wanted = model.network(images)
    error = (torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max()
    if not error <= ONNX_TOLERANCE:
        raise RunFault(
            f"model.onnx: onnxruntime's features are {error:.1e} of the largest off, more than "
            f"{ONNX_TOLERANCE:g}; nothing was written"
        )


def _forget_sources(proto) -> None:
    """Drop where in the sources each operation stands: paths of this machine."""
    parts = [proto, proto.graph, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]
    for body in (proto.graph, *proto.functions):
        parts += [body, *body.node, *body.value_info]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@torch.no_grad()
def _features(network: nn.Module, size: int) -> int:
    """Length of the feature vector, by trying: timm's num_features is another with some heads."""
    return network(torch.zeros(1, 3, size, size)).shape[-1]
