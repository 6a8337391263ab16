"""`ressl benchmark`: several methods on the same data, backbone and budget, over seeds.

Every cell is a run directory `OUT/<method>-seed<seed>`; a finished one is not run again. All are
trained by pretrain.pretrain and evaluated alike on the frozen backbone: linear classifier, a few
labels a class, kNN. benchmark.md and benchmark.tex are made from the results files alone.
"""

from __future__ import annotations

import logging
import re
import shutil
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ressl_plugin import config, data, run
from ressl_plugin.config import yaml_files
from ressl_plugin.config.kinds import FLAG, Kind, judged, nearest, number, one_of, whole
from ressl_plugin.evaluate import logistic
from ressl_plugin.evaluate.sampling import mean_spread, there_are
from ressl_plugin.experiments import sweep
from ressl_plugin.run import checkpoint, results
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.render import number as shown
from ressl_plugin.utils.render import render
from ressl_plugin.views import recipe

log = logging.getLogger(__name__)

METHODS_FILE = config.RECIPES / "benchmark" / "methods.yaml"
_WORD = Kind("a word", lambda v: isinstance(v, str))
_MAPPING = Kind("a mapping, key: value", lambda v: isinstance(v, dict))
# what an entry of methods.yaml may have; what is in the mappings is a config's
ENTRY = {
    "title": _WORD,
    "backprop": _WORD,
    "views": one_of("recipe", "contrastive", "pair", "weak"),
    "by_default": FLAG,
    "method": _WORD,
    "recipe": _WORD,
    "max_epochs": whole(1),
    "limit_train_batches": number(0),
    **dict.fromkeys(("method_kwargs", "batchnorm", "momentum", "optimizer", "scheduler"), _MAPPING),
}
NEEDED = ("title", "backprop", "views")
LABELS = (1, 5)  # a class, drawn ten times
PROTOCOLS = {  # of `evaluate` and of the meter
    "training": ".*",
    "linear": re.escape(logistic.NAME),
    "few-labels": r"linear, \d+ a class",
    "knn": "kNN, k=.*",
}


def benchmark(
    target: str,
    overrides: list[str],
    methods,
    seeds: list[int],
    out: Path,
    own: Path | None = None,
    labels: tuple[int, ...] = LABELS,
) -> str:
    """Train and evaluate every method with every seed, print the table and write it to `out`.

    Args:
        target, overrides: the recipe, one of ReSSL's, that all methods share.
        methods: names in scripts/benchmark/methods.yaml; None for all seven.
        own: a file like methods.yaml, which stands before it; see `read_methods`.
        labels: numbers of labels a class for the linear classifiers of few labels.

    Raises:
        UserError: unknown method, a recipe that cannot work, a cell of another config in `out`,
            images or labels that are not there.
        RunFault: a cell failed; the others are in the table.
    """
    if min(labels) < 1:
        raise UserError(f"--labels {min(labels)}: labels a class, from 1 on")
    base = config.finish(config.load(target, overrides))
    settings = read_methods(base, own)
    usual = [name for name, its in settings.items() if its.get("by_default", True)]
    names = list(dict.fromkeys(methods or usual))
    unknown = [name for name in names if name not in settings]
    if unknown:
        raise UserError(f"--methods {' '.join(unknown)}: known are {', '.join(settings)}")
    plan = [(name, seed) for seed in dict.fromkeys(seeds) for name in names]
    cells = [cell_config(base, name, settings[name], seed, out) for name, seed in plan]
    for cfg in cells:
        sweep.same_experiment(cfg)
    sweep.check_images(cells)
    targets = data.build_dataset(base, "train", need_labels=True).targets
    labels = tuple(there_are(labels, targets))  # or a cell would never be complete
    failed = sweep.each(cells, partial(run_cell, labels=labels))
    folders = [Path(cfg.run_dir) for cfg in cells if Path(cfg.run_dir).is_dir()]
    if not any(map(own_records, folders)):
        sweep.report(failed, cells)
    text, latex = table(folders, settings), table(folders, settings, "latex")
    files.replace(Path(out) / "benchmark.md", text.encode())
    files.replace(Path(out) / "benchmark.tex", latex.encode())
    print(text, end="")
    sweep.report(failed, cells)
    return text


def read_methods(base: DictConfig, own: Path | None = None) -> dict[str, dict]:
    """methods.yaml with the recipe's values in it: method -> title, backprop, views, changes.

    Args:
        own: another such file, whose entries change those of methods.yaml or are new ones.

    Raises:
        UserError: that file cannot be read, has a key or a value that is none of ENTRY, or a new
            method without what is NEEDED.
    """
    if base.method not in ("ressl", "ressl_host"):
        raise UserError(
            f"config: method={base.method}: a recipe of ReSSL is needed; all methods share its "
            "settings"
        )
    changes = yaml_files.read(own) if own else {}
    for name, its in changes.items():
        if name == "recipe" or not isinstance(its, dict):
            raise UserError(f"{own}: {name}: a method and its settings are expected, key: value")
        for key in its.keys() - set(ENTRY):
            raise UserError(f"{own}: {name}: unknown key {key}{nearest(key, ENTRY)}")
    given = OmegaConf.merge({"recipe": base}, OmegaConf.load(METHODS_FILE), changes)
    try:
        found = OmegaConf.to_container(given, resolve=True)
    except OmegaConfBaseException as error:  # of an interpolation
        raise UserError(f"{own}: {' '.join(str(error).split())}") from None
    del found["recipe"]
    for name in changes:
        if lacking := [key for key in NEEDED if key not in found[name]]:
            raise UserError(f"{own}: {name}: {' and '.join(lacking)} needed")
        for key, value in found[name].items():
            judged(f"{name}.{key}", value, ENTRY[key], f"{own}: ")
    return found


def cell_config(base: DictConfig, name: str, settings: dict, seed: int, out: Path) -> DictConfig:
    """The complete config of one training of the method that stands under `name` in methods.yaml.

    Raises:
        UserError: its own recipe is not there; settings that cannot work.
    """
    cfg, own = OmegaConf.to_container(base), base
    epochs = settings.get("max_epochs", base.max_epochs)
    if recipe_name := settings.get("recipe"):
        own = config.finish(config.load(recipe_name, [f"max_epochs={epochs}"]))
        for node in ("momentum", "optimizer", "scheduler"):
            cfg[node] = OmegaConf.to_container(own[node])
        cfg["optimizer"]["batch_size"] = base.optimizer.batch_size
    cfg.update(
        method=settings.get("method", name),
        name=f"{name}-seed{seed}",
        seed=seed,
        run_dir=str(Path(out) / f"{name}-seed{seed}"),
        resume=True,
        max_epochs=epochs,
        method_kwargs=settings.get("method_kwargs", own.method_kwargs),
        batchnorm=settings.get("batchnorm", own.batchnorm if own is not base else _usual(base)),
        augmentations=views(own, settings["views"]),
    )
    if "limit_train_batches" in settings:
        cfg["limit_train_batches"] = settings["limit_train_batches"]
    every = base.get("check_val_every_n_epoch") or cfg["max_epochs"]
    cfg["check_val_every_n_epoch"] = min(cfg["max_epochs"], every)
    # the evaluators follow once the training is done
    cfg["knn_eval"]["enabled"] = cfg["quality_eval"]["enabled"] = False
    cfg["checkpoint"]["best"] = None
    for node in ("momentum", "optimizer", "scheduler"):
        cfg[node].update(settings.get(node, {}))
    return config.finish(OmegaConf.create(cfg))


def _usual(base: DictConfig) -> dict:
    """Batch norm of the host's methods: over all devices where ReSSL's batches are shuffled over
    them, because the few images of one would give away which key belongs to which query."""
    return {"mode": "sync"} if base.batchnorm.mode == "shuffle" else {}


def views(base: DictConfig, kind: str) -> list[dict]:
    """Augmentations of a method, made of the recipe's contrastive and weak views.

    Raises:
        UserError: the recipe has no weak view.
    """
    entries = recipe.expand(base.augmentations)
    if kind == "recipe":
        return entries
    if not {"student", "teacher"} <= {entry.get("role") for entry in entries}:
        raise UserError("augmentations: entries with role: student and role: teacher are needed")

    def views_of(role: str, count: int) -> dict:
        """The first view of a role, so many times, for whoever it is."""
        first = next(entry for entry in entries if entry.get("role") == role)
        return {**{k: v for k, v in first.items() if k != "role"}, "num_crops": count}

    made = {
        "contrastive": [views_of("student", 2)],
        "pair": [views_of("student", 1), views_of("teacher", 1)],
        "weak": [views_of("teacher", 2)],
    }
    return made[kind]


def run_cell(cfg: DictConfig, labels: tuple[int, ...] = LABELS) -> None:
    """Train and evaluate, whichever is still to be done; keep one checkpoint."""
    folder = Path(cfg.run_dir)
    sweep.train(cfg, meter=True)
    if not complete(folder, labels):
        evaluate(folder, labels)
    if not any(record["evaluator"] == "training" for record in results.read(folder)):
        log.warning("%s: its images/s were not measured to the end; train it anew for them", folder)
    shutil.rmtree(folder / checkpoint.PREVIOUS, ignore_errors=True)


def complete(folder: Path, labels: tuple[int, ...] = LABELS) -> bool:
    """Whether a trained cell has been evaluated in every way that the table shows."""
    found = {(r["evaluator"], r["protocol"]) for r in own_records(folder)}
    few = {("few-labels", f"linear, {n} a class") for n in labels}
    return few <= found and {"linear", "knn"} <= {evaluator for evaluator, _ in found}


def own_records(folder: Path) -> list[dict]:
    """Of a cell's records those that the table shows: by `evaluate`'s protocols, of the last epoch.

    Not what other commands have added: another k of kNN, the paper's protocol, raw pixels, other
    images than those of the first of them.
    """
    records = results.read(folder)
    epochs = run.read_config(folder / "config.yaml").max_epochs if records else None
    found = [
        record
        for record in records
        if re.fullmatch(PROTOCOLS.get(record["evaluator"], "(?!)"), record["protocol"])
        and record.get("representation") is None
        and record.get("checkpoint") in (None, checkpoint.NAME)
        and record.get("epochs") in (None, epochs)
    ]
    images = next((record["data_sets"] for record in found if "data_sets" in record), None)
    return [record for record in found if record.get("data_sets", images) == images]


def evaluate(folder: Path, labels: tuple[int, ...]) -> None:
    """Append the frozen backbone's linear, few-label and kNN accuracy to the cell's results."""
    from ressl_plugin.evaluate import compare, subject

    opened = run.open_run(folder)
    device = subject.device_named("cpu" if opened.cfg.accelerator == "cpu" else "auto")
    parts = subject.Splits(opened, device).of(opened.backbone())
    name, seed = opened.cfg.data.dataset, opened.cfg.seed
    found = logistic.probe(*parts, seed=seed, device=device)
    subject.append(opened, "linear", logistic.NAME, "top1", found["top1"], seeds=[seed],
                   details={"l2": found["l2"]})  # fmt: skip
    for record in compare.compare({opened.cfg.method: parts}, name, per_class=labels):
        del record["representation"]
        subject.append(opened, **record)


def table(folders: list[Path], settings: dict, format: str = "markdown") -> str:
    """Methods by evaluations, mean ± standard deviation over the seeds, out of the results files.

    Raises:
        UserError: no cell has results.
    """
    groups: dict[str, list[tuple[DictConfig, list[dict]]]] = {}
    for folder in folders:
        if records := own_records(folder):
            cfg = run.read_config(folder / "config.yaml")
            name = folder.name.removesuffix(f"-seed{cfg.seed}")
            groups.setdefault(name, []).append((cfg, records))
    if not groups:
        raise UserError(f"no results in {', '.join(map(str, folders))}; run the benchmark first")
    found = [record for cells in groups.values() for _, records in cells for record in records]
    rows, shown = [], columns(found)
    for method in (m for m in settings if m in groups):
        cells = groups[method]
        numbers = [_number(cells, *column[1:]) for column in shown]
        rows.append([settings[method]["title"], settings[method]["backprop"], *numbers])
    header = ["method", "backprop", *(title for title, *_ in shown)]
    caption = _caption(groups)
    lead = f"% {caption}\n" if format == "latex" else f"{caption}\n\n"
    return lead + render(header, rows, format)


def columns(records: list[dict]) -> list[tuple[str, str, str, str]]:
    """Of the table: title, evaluator, how its protocol begins, metric."""
    few = {r["protocol"] for r in records if r["evaluator"] == "few-labels"}
    counts = sorted({int(protocol.split()[1]) for protocol in few})
    titles = [f"{n} label{'s' * (n > 1)} a class" for n in counts]
    return [
        ("linear", "linear", "", "top1"),
        *((title, "few-labels", f"linear, {n} ", "top1") for title, n in zip(titles, counts)),
        ("kNN", "knn", "", "top1"),
        ("images/s", "training", "", "images/s"),
        ("peak MB", "training", "", "peak MB"),
    ]


def _number(cells, evaluator: str, protocol: str, metric: str) -> str:
    """One entry of the table: of each seed the latest record, then mean ± spread."""
    values = []
    for _, records in cells:
        of_metric = [r for r in records if (r["evaluator"], r["metric"]) == (evaluator, metric)]
        values += [r["value"] for r in of_metric if r["protocol"].startswith(protocol)][-1:]
    if not values:
        return ""
    mean, spread = mean_spread(values)
    if evaluator == "training":
        return f"{mean:.0f}" + ("" if spread is None else f" ± {spread:.0f}")
    return shown(mean, spread)


def _caption(groups) -> str:
    """What the numbers are, from the cells themselves."""
    cells = [cell for group in groups.values() for cell in group]
    cfg, records = cells[0]
    seeds = sorted({cfg.seed for cfg, _ in cells})
    epochs, batches = (
        " to ".join(map(str, sorted({min(values), max(values)})))
        for values in zip(*((cfg.max_epochs, cfg.optimizer.batch_size) for cfg, _ in cells))
    )
    versions = records[-1].get("versions") or {}
    return (
        f"{cfg.data.train_path or cfg.data.dataset}: {cfg.backbone.name}, stem "
        f"{cfg.backbone.stem}, {epochs} epochs, batch {batches}, seeds "
        f"{', '.join(map(str, seeds))}; top-1 in %, mean ± standard deviation over the seeds; "
        f"peak memory {'resident' if cfg.accelerator == 'cpu' else 'allocated on the GPU'} in "
        f"training; torch {versions.get('torch', '?')}, solo-learn "
        f"{versions.get('solo_learn', '?')}."
    )
