"""A trained backbone as safetensors under torchvision's or timm's names, with a JSON beside it."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ressl_plugin.config.diff import plain_config
from ressl_plugin.method import backbone
from ressl_plugin.run.weights import check_finite, difference, load_backbone, shapes
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError

FORMAT = "ressl-backbone-1"
FLAVOURS = ("torchvision", "timm")
FORBIDDEN = backbone.OF_FILES | {"num_classes"}


def export_backbone(state_dict, cfg, out_path, flavour=None, results=()) -> Path:
    """Write the student's encoder as ``out_path``.safetensors and what it is as .json.

    Args:
        state_dict: main's names; ``backbone.*`` is taken.
        cfg: the run's config.
        out_path: with or without ``.safetensors``.
        flavour: "torchvision" (its ResNets; names of torchvision.models.resnet, no fc) or "timm"
            (``timm:`` backbones, and ResNets, whose names are the same); None: by backbone.
        results: records of results.json to go along.

    Returns:
        The safetensors file.

    Raises:
        UserError: a backbone that the flavour does not have, weights of another architecture or
            not finite, a folder or a place that cannot be written.
    """
    from safetensors.torch import save

    out = Path(out_path)
    if out.is_dir():  # of an empty name, too: with a suffix they would be files beside it
        raise UserError(f"{out}: a folder; name the file, such as {out / 'backbone.safetensors'}")
    out = out if out.suffix == ".safetensors" else out.with_name(out.name + ".safetensors")
    flavour, name = _architecture(cfg, flavour)
    network = backbone.build(cfg)
    load_backbone(network, state_dict, Path("state_dict"))
    weights = {k: v.contiguous().cpu() for k, v in network.state_dict().items()}
    check_finite(weights, out)
    data = save(weights, {"format": "pt"})
    card = describe(cfg, network, flavour, name, results)
    card["sha256"] = hashlib.sha256(data).hexdigest()
    _belong(weights, card, out)  # what is written can be loaded
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.replace(out, data)
        files.replace(out.with_suffix(".json"), (json.dumps(card, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    return out


def describe(cfg, network, flavour, name, results=()) -> dict:
    """The JSON: what a user of the weights has to know, nothing of where they were made."""
    from ressl_plugin.data import crop_size, mean_std
    from ressl_plugin.run.results import versions

    mean, std = mean_std(cfg)
    size = crop_size(cfg)
    config = plain_config(cfg)
    for key in ("run_dir", "wandb", "resume", "resume_from_checkpoint", "auto_resume"):
        config.pop(key, None)
    for key in ("train_path", "val_path"):
        config.get("data", {}).pop(key, None)
    return {
        "format": FORMAT,
        "flavour": flavour,
        "architecture": name,
        "kwargs": {k: v for k, v in config["backbone"].get("kwargs", {}).items()},
        "stem": stem_of(network),
        "features_dim": _features(network, size),
        "input_size": [3, size, size],
        "mean": list(mean),
        "std": list(std),
        "training": config,
        "results": list(results),
        "versions": versions(),
    }


def load_exported(path) -> nn.Module:
    """The network of an export, in eval mode: (N, 3, H, W) normalised images to (N, d) features.

    Args:
        path: the .safetensors or the .json file, or their common name.

    Raises:
        UserError: absent, damaged, not finite, or something that torchvision or timm cannot build.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".json"):
        path = path.with_name(path.name + ".safetensors")
    file = path.with_suffix(".safetensors")
    card = read_card(path.with_suffix(".json"))
    weights = read_safetensors(file)
    if hashlib.sha256(file.read_bytes()).hexdigest() != card.get("sha256"):
        raise UserError(f"{file}: not the file that {file.with_suffix('.json')} describes (sha256)")
    _belong(weights, card, path)
    check_finite(weights, file)
    network = build(card, path)
    network.load_state_dict(weights)
    return network.eval()


def read_safetensors(path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError when it is absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def read_card(path) -> dict:
    """The JSON beside the weights. Raises UserError when it is absent or something else."""
    try:
        card = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the weights' JSON belongs there") from None
    except (ValueError, RecursionError) as error:  # not JSON, or nested without end
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(f"{path}: not the description of an exported backbone ({FORMAT})")
    return card


def build(card: dict, path) -> nn.Module:
    """The bare network that a card names; only names that the libraries list, nothing fetched.

    Raises:
        UserError: an unknown flavour or architecture, or an argument that would load a file.
    """
    import timm
    from torchvision import models

    name, kwargs = card.get("architecture"), card.get("kwargs") or {}
    if not isinstance(kwargs, dict):
        raise UserError(f"{path}: kwargs {kwargs!r}: a mapping is expected")
    if bad := FORBIDDEN & kwargs.keys():
        raise UserError(f"{path}: kwargs {', '.join(sorted(bad))} are not allowed in an export")
    if card.get("flavour") == "torchvision" and name in _torchvision_resnets():
        make = partial(models.get_model, name, weights=None)
    elif card.get("flavour") == "timm" and isinstance(name, str) and timm.is_model(name):
        make = partial(timm.create_model, name, pretrained=False, num_classes=0)
    else:
        raise UserError(f"{path}: {card.get('flavour')} has no architecture {name!r}")
    backbone.check_sizes(kwargs, f"{path}: kwargs")
    fault = f"{path}: {name} cannot be built with {kwargs}"
    network = backbone.with_arguments(make, kwargs, fault)
    if card["flavour"] == "torchvision":
        network.fc = nn.Identity()
    backbone.set_stem(network, card.get("stem", "auto"))
    return network


def stem_of(network: nn.Module) -> str:
    """What `backbone.set_stem` needs to make these first layers; auto where it has no say."""
    conv = getattr(network, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not hasattr(network, "maxpool"):
        return "auto"
    if conv.kernel_size == (7, 7):
        return "imagenet"
    return "paper" if conv.padding == (1, 1) else "solo"


def _architecture(cfg, flavour) -> tuple[str, str]:
    """(flavour, name in that library) of a config's backbone."""
    name = cfg.backbone.name
    if flavour not in (None, *FLAVOURS):
        raise UserError(f"flavour {flavour}: one of {', '.join(FLAVOURS)}")
    if name.startswith(backbone.TIMM) and flavour != "torchvision":
        return "timm", name.removeprefix(backbone.TIMM)
    if name in _torchvision_resnets():
        return flavour or "torchvision", name
    raise UserError(
        f"backbone.name={name}: {flavour or 'neither torchvision nor timm'} has no network of "
        "this name and these weights; exported are ResNets and timm:<model>"
    )


def _torchvision_resnets() -> list[str]:
    from torchvision import models

    names = models.list_models(models)
    return [n for n in names if models.get_model_builder(n).__module__ == models.resnet.__name__]


def _belong(weights: dict[str, Tensor], card: dict, path) -> None:
    with torch.device("meta"):  # nothing is allocated for a network that is another
        network = build(card, path)
    if differing := difference(weights, shapes(network)):
        raise UserError(f"{path}: not of the network that the JSON names: {differing}")


@torch.no_grad()
def _features(network: nn.Module, size: int) -> int:
    """Length of the feature vector, by trying: timm's num_features is another with some heads."""
    training = network.training
    out = network.eval()(torch.zeros(1, 3, size, size))
    network.train(training)
    return out.shape[-1]
