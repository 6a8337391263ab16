"""`ressl linear`: a linear classifier on a run's frozen backbone, by a protocol or a recipe."""

from __future__ import annotations

from omegaconf import OmegaConf

from ressl_plugin import data
from ressl_plugin.evaluate import classifier, logistic, recipes
from ressl_plugin.evaluate.subject import Splits, append_accuracies, device_named, with_overrides
from ressl_plugin.run.directories import Run
from ressl_plugin.utils.errors import UserError

COMMAND = {
    "name": "linear",
    "help": "linear classifier on the frozen backbone",
    "recipes": "a run directory or a checkpoint in one (with --protocol or --fast); or a linear "
    "recipe that names its run: ",
    "arguments": {
        "--protocol": {
            "choices": ("small", "imagenet"),
            "help": "the paper's for small images or ImageNet; default: by crop size",
        },
        "--fast": {
            "action": "store_true",
            "help": "on features extracted once: logistic regression at its optimum, or the "
            "--protocol that is named",
        },
    },
}


def evaluate(target, overrides, protocol=None, fast=False, device="auto", cfg=None) -> list[dict]:
    """A linear classifier on a run with a protocol by name, or by a linear recipe; its records.

    Args:
        target: a run directory, a checkpoint in one, or a recipe that names its run.
        protocol: small or imagenet; None: by the crop size.
        fast: on features extracted once: logistic regression, or the protocol if one is named.
        cfg: given: print the config and stop.

    Example:
        >>> evaluate("runs/mine", [], fast=True)  # doctest: +SKIP
    """
    path, recipe = recipes.resolve(target, overrides)
    if recipe is None:
        recipes.check_overrides(overrides, fast)
    elif fast or protocol:
        raise UserError(
            f"{target} is a recipe with an optimizer of its own; --fast and --protocol are for a "
            "run: ressl linear RUN --fast --protocol small"
        )
    if cfg:
        shown = recipe if recipe is not None else with_overrides(path, overrides).cfg
        print(OmegaConf.to_yaml(shown), end="")
        return []
    run = with_overrides(path, overrides if recipe is None else [])
    if recipe is not None:
        recipes.settle(recipe, run)
        name = recipes.record_name(target, overrides)
        place = device_named(recipes.device(recipe) if device == "auto" else device)
        # the learning rate as given, for 256 images
        how = {key: recipe.optimizer[key] for key in ("lr", "weight_decay", "batch_size")}
        how |= {"optimizer": recipe.optimizer.name, "scheduler": recipe.scheduler.name}
        how["epochs"] = recipe.max_epochs
        return _trained(run, name, recipe, recipe.seed, place, details=how)
    place, seed = device_named(device), run.cfg.seed
    features = Splits(run, place).of(run.backbone()) if fast else None
    if fast and protocol is None:
        found = logistic.probe(*features, seed=seed, device=place)
        return _report(run, logistic.NAME, found, seed, details={"l2": found["l2"]})
    protocol = protocol or default_protocol(run.cfg)
    name = f"{protocol}, cached features" if fast else protocol
    return _trained(run, name, recipes.protocol(protocol), seed, place, features)


def default_protocol(cfg) -> str:
    """The protocol by the size of the crops: `imagenet` from 160 pixels on, else `small`."""
    return "imagenet" if data.crop_size(cfg) >= 160 else "small"


def _trained(run: Run, name: str, recipe, seed: int, place, features=None, **more) -> list[dict]:
    """Train by the recipe on the run's images, or on `features` of them, and report it."""
    size, gpu = recipe.optimizer.batch_size, place.type == "cuda"
    if features is None:
        network, loaders = run.backbone(), recipes.loaders(run.cfg, size, seed)
    else:
        network, loaders = recipes.cached(*features, size, seed)
    found = classifier.trained(
        network,
        *loaders,
        recipe,
        seed,
        accelerator="gpu" if gpu else "cpu",
        devices=[place.index or 0] if gpu else 1,
        precision=recipe.precision,
    )
    return _report(run, name, found, seed, **more)


def _report(run: Run, name: str, found: dict, seed: int, **more) -> list[dict]:
    print(f"linear ({name}): top-1 {found['top1']:.2f}   top-5 {found['top5']:.2f}", flush=True)
    return append_accuracies(run, "linear", {name: found}, seeds=[seed], **more)
