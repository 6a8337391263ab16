"""Evaluators on a run directory: read it, evaluate, append to its results.json, print."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Subset

from ressl_plugin import data
from ressl_plugin.data import statistics
from ressl_plugin.evaluate import features, logistic
from ressl_plugin.evaluate.subject import (
    Splits,
    append,
    data_sets_of,
    device_named,
    method_name,
    weights_of,
    with_overrides,
)
from ressl_plugin.evaluate.voc import NAME as VOC07
from ressl_plugin.run import metrics, results
from ressl_plugin.run.directories import Run
from ressl_plugin.utils.devices import device_count
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.plot_style import need_matplotlib


def knn(path, overrides, ks=None, temperatures=None, distance="cosine", device="auto") -> None:
    """`ressl knn`: a sweep, or the cells asked for."""
    from ressl_plugin.evaluate import knn as nearest

    if temperatures and distance == "euclidean":
        raise UserError("--temperature is of cosine distance; leave it out with euclidean")
    cells = {
        "ks": ks or nearest.KS,
        "temperatures": temperatures or nearest.TEMPERATURES,
        "distances": (distance,),
    }
    nearest.check_cells(**cells)
    run = with_overrides(path, overrides)
    splits = Splits(run, device_named(device))
    found = nearest.sweep(*splits.of(run.backbone()), **cells, device=splits.device)
    # all is printed before any of it is written: a full disk must not cost the numbers
    for cell in found["records"]:
        name = _cell_name(cell)
        print(f"kNN {name:<28} top-1 {cell['top1']:6.2f}   top-5 {cell['top5']:6.2f}")
    best = found["best"]
    print(f"best (chosen on these test images): k={best['k']} top-1 {best['top1']:.2f}", flush=True)
    for cell in found["records"]:
        for metric in ("top1", "top5"):
            append(run, "knn", _cell_name(cell), metric, cell[metric])


def _cell_name(cell: dict) -> str:
    at = "" if cell["temperature"] is None else f" T={cell['temperature']:g}"
    return f"k={cell['k']} {cell['distance']}{at}"


def linear(target, overrides, protocol=None, fast=False, device="auto", show=False) -> None:
    """`ressl linear`: on a run with a protocol by name, or by a linear recipe.

    fast: on features extracted once: logistic regression, or the protocol if one is named.
    """
    from ressl_plugin.evaluate import recipes

    path, recipe = recipes.resolve(target, overrides)
    if recipe is None:
        recipes.check_overrides(overrides)
    if show:
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
    from ressl_plugin.evaluate import linear as classifiers
    from ressl_plugin.evaluate import recipes

    place, seed = device_named(device), run.cfg.seed
    if fast:
        parts = Splits(run, place).of(run.backbone())
        if protocol is None:
            found = logistic.probe(*parts, seed=seed, device=place)
            _report(run, logistic.NAME, found, details={"l2": found["l2"]})
        else:
            found = classifiers.probe(*parts, protocol, seed=seed, device=place)
            _report(run, f"{protocol}, cached features", found)
    else:
        protocol = protocol or default_protocol(run.cfg)
        loaders = recipes.loaders(run.cfg, 256, seed)
        found = classifiers.trained(
            run.backbone(), *loaders, protocol=protocol, seed=seed, **_trainer_on(place)
        )
        _report(run, protocol, found)
    _print_agreement(run, default_protocol(run.cfg))


def _by_recipe(run: Run, recipe, name: str, device: str) -> None:
    from ressl_plugin.evaluate import linear as classifiers
    from ressl_plugin.evaluate import recipes

    how = recipes.details(recipe)
    place = device_named(recipes.device(recipe) if device == "auto" else device)
    size, seed = recipes.scale(recipe), recipe.get("seed", run.cfg.seed)
    found = classifiers.trained(
        run.backbone(),
        *recipes.loaders(run.cfg, size, seed),
        cfg=recipe,
        seed=seed,
        precision=recipe.get("precision", "32-true"),
        **_trainer_on(place),
    )
    _report(run, f"recipe {name}", found, details=how)


def _trainer_on(place) -> dict:
    gpu = place.type == "cuda"
    return {"accelerator": "gpu" if gpu else "cpu", "devices": [place.index or 0] if gpu else 1}


def _report(run: Run, name: str, found: dict, **more) -> None:
    top1, top5 = found["top1"], found["top5"]
    print(f"linear ({name}): top-1 {top1:.2f}   top-5 {top5:.2f}", flush=True)
    for metric in ("top1", "top5"):
        append(run, "linear", name, metric, found[metric], seeds=[found["seed"]], **more)


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


def compare(path, overrides, draws=10, device="auto") -> None:
    """`ressl compare`: trained, untrained and raw pixels at 1, 5 and all labels, and kNN."""
    from ressl_plugin.evaluate.compare import compare as side_by_side
    from ressl_plugin.evaluate.compare import comparison_table

    if draws < 2:
        raise UserError(f"--draws {draws}: at least 2, or there is no spread to state")
    run = with_overrides(path, overrides)
    splits = Splits(run, device_named(device))
    pixels = splits.pixels()
    representations = {
        method_name(run.cfg): splits.of(run.backbone()),
        "untrained backbone": splits.of(run.backbone(trained=False)),
        **({} if pixels is None else {"raw pixels": pixels}),
    }
    records = side_by_side(representations, run.cfg.data.dataset, draws=draws)
    table = comparison_table(records)
    print(table, flush=True)  # before it is written: a full disk must not cost the numbers
    for record in records:
        trained = record["representation"] == method_name(run.cfg)
        more = {"data_sets": data_sets_of(run), **(weights_of(run) if trained else {})}
        results.append(run.dir, {**record, **more})
    (run.dir / "comparison.md").write_text(table + "\n")


def lowshot(path, overrides, voc, per_class, draws, device="auto", protocol="pcl") -> None:
    """`ressl lowshot`: linear SVMs on VOC07, or on the run's own single-label folder."""
    from ressl_plugin.evaluate import lowshot as svm

    run = with_overrides(path, overrides)
    place = device_named(device)
    counts = [svm.count_named(word) for word in per_class]
    if draws < 1:
        raise UserError(f"--draws {draws}: at least 1")
    if voc is not None:
        found = svm.voc(run.backbone(), voc, run.cfg, counts, draws, place, protocol=protocol)
        title, metric, name = svm.TITLES[protocol], "mAP", VOC07
    else:
        found = svm.single_label(*Splits(run, place).of(run.backbone()), counts, draws)
        title, metric, name = "SVM", "top1", run.cfg.data.dataset
    for cell in found:
        spread = "" if cell["spread"] is None else f" ± {cell['spread']:.2f}"
        print(f"low-shot, {cell['count']} a class: {metric} {cell['mean']:.2f}{spread}", flush=True)
    for cell in found:
        append(
            run,
            "lowshot",
            f"{title}, {cell['count']} a class",
            metric,
            cell["mean"],
            spread=cell["spread"],
            seeds=cell["seeds"],
            data=name,
            details={key: cell[key] for key in ("cost", "ap", "sampling", "difficult")},
            **{key: cell[key] for key in ("data_sets",) if key in cell},
        )


def finetune(
    path, overrides, labels, epochs, lr_backbone=None, lr_head=None, device="auto"
) -> None:
    """`ressl finetune`: the whole network on a share of the labels, or on a list of images."""
    from ressl_plugin.evaluate import finetune as tuning
    from ressl_plugin.evaluate import recipes

    if epochs < 1:
        raise UserError(f"--epochs {epochs}: at least 1")
    for flag, rate in (("--lr-backbone", lr_backbone), ("--lr-head", lr_head)):
        if rate is not None and not 0 <= rate < float("inf"):
            raise UserError(f"{flag} {rate}: a learning rate is 0 or more")
    run = with_overrides(path, overrides)
    train, val = recipes.datasets(run.cfg)
    # as many images as a pre-training step had on all devices, now on one
    batch = run.cfg.optimizer.batch_size * device_count(run.cfg.devices, 1) * run.cfg.num_nodes
    found = tuning.finetune(
        run.backbone(),
        train,
        val,
        labels=tuning.labels_named(labels),
        epochs=epochs,
        lr_backbone=lr_backbone,
        lr_head=lr_head,
        batch_size=min(batch, 256),
        num_workers=run.cfg.data.num_workers,
        seed=run.cfg.seed,
        device=device_named(device),
    )
    how = {key: found[key] for key in ("epochs", "lr_backbone", "lr_head", "batch_size")}
    how["share"] = round(found["n"] / len(train), 4)
    accuracies = f"top-1 {found['top1']:.2f}   top-5 {found['top5']:.2f}"
    print(f"fine-tuned on {found['n']} images: {accuracies}", flush=True)
    for metric in ("top1", "top5"):
        append(run, "finetune", f"labels {labels}", metric, found[metric], seeds=[run.cfg.seed],
               n=found["n"], details=how)  # fmt: skip


def figures(path, overrides, device="auto") -> list[Path]:
    """`ressl figures`: curves, feature space (Fig. 3), neighbours (Fig. 2), as PNG and PDF.

    Labels colour the points and frame the neighbours, where there are any.
    """
    from ressl_plugin.evaluate import figures as drawing

    need_matplotlib()
    run = with_overrides(path, overrides)
    folder = run.dir / "figures"
    made = []
    if metrics.logged(run.dir):
        size = run.cfg.method_kwargs.get("queue_size")
        made += drawing.curves(run.dir, folder / "curves", size)
    place = device_named(device)
    loader = data.evaluation_loader(run.cfg, "train", need_labels=False)
    images = _sample(loader)  # the paper's are training images, too
    x, y = features.extract(run.backbone(), images, place)
    untrained, _ = features.extract(run.backbone(trained=False), images, place)
    classes = loader.dataset.classes
    spaces = {"untrained": untrained, method_name(run.cfg): x}
    made += drawing.feature_space(spaces, y, folder / "features", classes)
    made += drawing.neighbours_of_run(run, folder / "neighbours", place)
    for file in made:
        print(file)
    return made


def _sample(loader: DataLoader, limit: int = 10_000) -> DataLoader:
    """The loader's images, or `limit` of them drawn with a fixed seed."""
    count = len(loader.dataset)
    if count <= limit:
        return loader
    rows = np.sort(np.random.default_rng(0).choice(count, limit, replace=False))
    images = Subset(loader.dataset, rows.tolist())
    return DataLoader(images, loader.batch_size, num_workers=loader.num_workers)
