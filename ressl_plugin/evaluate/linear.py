"""`ressl linear`: a linear classifier on a run's frozen backbone, by a protocol or a recipe."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from ressl_plugin import data
from ressl_plugin.data import statistics
from ressl_plugin.evaluate import classifier, logistic, recipes
from ressl_plugin.evaluate.subject import Splits, append, device_named, with_overrides
from ressl_plugin.run import results
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


def evaluate(target, overrides, protocol=None, fast=False, device="auto", cfg=None) -> None:
    """A linear classifier on a run with a protocol by name, or by a linear recipe.

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
        recipes.check_overrides(overrides)
    if cfg:
        shown = recipe if recipe is not None else with_overrides(path, overrides).cfg
        print(OmegaConf.to_yaml(shown), end="")
        return
    if recipe is None:
        _by_protocol(with_overrides(path, overrides), protocol, fast, device)
        return
    if fast or protocol:
        raise UserError(
            f"{target} is a recipe with an optimizer of its own; --fast and --protocol are for a "
            "run: ressl linear RUN --fast --protocol small"
        )
    run = with_overrides(path, [])
    recipes.check_backbone(recipe, run)
    recipes.check_settings(recipe)
    trained_on = run.cfg.data.dataset
    run.cfg.data = OmegaConf.merge(run.cfg.data, recipe.data)
    statistics.keep(run.cfg, trained_on)
    _by_recipe(run, recipe, Path(target).stem if Path(target).is_file() else target, device)


def default_protocol(cfg) -> str:
    """The protocol by the size of the crops: `imagenet` from 160 pixels on, else `small`."""
    return "imagenet" if data.crop_size(cfg) >= 160 else "small"


def _by_protocol(run: Run, protocol: str | None, fast: bool, device: str) -> None:
    place, seed = device_named(device), run.cfg.seed
    if fast:
        parts = Splits(run, place).of(run.backbone())
    if fast and protocol is None:
        found = logistic.probe(*parts, seed=seed, device=place)
        _report(run, logistic.NAME, found, seed, details={"l2": found["l2"]})
    elif fast:
        how = classifier.PROTOCOLS[protocol]
        found = classifier.trained_on_features(*parts, how, seed, **_trainer_on(place))
        _report(run, f"{protocol}, cached features", found, seed)
    else:
        protocol = protocol or default_protocol(run.cfg)
        how, loaders = classifier.PROTOCOLS[protocol], recipes.loaders(run.cfg, 256, seed)
        found = classifier.trained(run.backbone(), *loaders, how, seed, **_trainer_on(place))
        _report(run, protocol, found, seed)
    _print_agreement(run, default_protocol(run.cfg))


def _by_recipe(run: Run, recipe, name: str, device: str) -> None:
    how = recipes.details(recipe)
    place = device_named(recipes.device(recipe) if device == "auto" else device)
    size, seed = recipes.scale(recipe), recipe.get("seed", run.cfg.seed)
    loaders = recipes.loaders(run.cfg, size, seed)
    trainer = {"precision": recipe.get("precision", "32-true"), **_trainer_on(place)}
    found = classifier.trained(run.backbone(), *loaders, recipe, seed, **trainer)
    _report(run, f"recipe {name}", found, seed, details=how)


def _trainer_on(place) -> dict:
    gpu = place.type == "cuda"
    return {"accelerator": "gpu" if gpu else "cpu", "devices": [place.index or 0] if gpu else 1}


def _report(run: Run, name: str, found: dict, seed: int, **more) -> None:
    top1, top5 = found["top1"], found["top5"]
    print(f"linear ({name}): top-1 {top1:.2f}   top-5 {top5:.2f}", flush=True)
    for metric in ("top1", "top5"):
        append(run, "linear", name, metric, found[metric], seeds=[seed], **more)


def _print_agreement(run: Run, protocol: str) -> None:
    """The fast probe beside the protocol's classifier, where the run has both."""
    latest = {
        r["protocol"]: r["value"]
        for r in results.read(run.dir)
        if (r["evaluator"], r["metric"], r["data"]) == ("linear", "top1", run.cfg.data.dataset)
    }
    trained, fast = latest.get(protocol), latest.get(logistic.NAME)
    if trained is not None and fast is not None:
        print(f"{protocol} {trained:.2f}, {logistic.NAME} {fast:.2f}: {fast - trained:+.2f}")
