"""`ressl paper NAME`: train and evaluate the cells of one of the paper's tables, then print it.

What the cells are is in scripts/ablation and scripts/paper, one YAML file a table:

    table: 4                      of the paper; a figure has none
    evaluate: {linear: {}}        evaluators and their settings: linear, lowshot, finetune, figures
    operations: {name: override}  short names for overrides, used in `cells`
    groups:                       lists of
      - recipe: cifar/ressl       with
        words: [key=value]        for the whole group, and one of
        sweep: [key=a,b]          every combination (Hydra's grammar, as `ressl pretrain -m`)
        cells: {name: [words]}    named ones
        methods: [simclr]         by scripts/benchmark/methods.yaml; random: the untrained network

Each cell is a run directory OUT/<recipe and words>/<cell>. A finished cell is not run again, an
interrupted one is resumed, and groups that are alike are shared between tables.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ressl_plugin import benchmark, checkpoint, config, results, run, sweep, tables
from ressl_plugin.cells import VOC
from ressl_plugin.devices import runnable
from ressl_plugin.errors import UserError
from ressl_plugin.evaluate import finetune

FOLDERS = ("ablation", "paper")
FORMATS = {"markdown": "md", "latex": "tex", "csv": "csv"}


def reproduce(
    name: str,
    overrides: list[str] = (),
    out: Path = Path("runs/paper"),
    only: list[str] | None = None,
    fast: bool = False,
    voc: Path | None = None,
    device: str = "auto",
) -> str:
    """Run what is missing of a table or figure; print the table and write it under `out`.

    Args:
        name: table1 ... table10, figure2, figure3, or a YAML file.
        overrides: for every cell, after its own words (`max_epochs=20`).
        only: data sets (`data.dataset`) to be run; None: all. The table shows every cell there is.
        fast: linear classifiers on features extracted once.
        voc: the VOCdevkit folder, for Table 9.

    Raises:
        UserError: no such table, an override that cannot work, data that is not there.
    """
    spec = read(name)
    plan = cells(spec, list(overrides), Path(out))
    wanted = [cfg for cfg in plan if not only or cfg.data.dataset in only]
    if not wanted:
        known = ", ".join(sorted({cfg.data.dataset for cfg in plan}))
        raise UserError(f"--data {' '.join(only)}: {name} has {known}")
    for i, cfg in enumerate(wanted, 1):
        print(f"[{i}/{len(wanted)}] {cfg.run_dir}", flush=True)
        train(cfg)
        for evaluator, settings in spec["evaluate"].items():
            evaluate(Path(cfg.run_dir), evaluator, settings, fast, voc, device)
    if "table" not in spec:
        return ""
    folders = [Path(cfg.run_dir) for cfg in plan if Path(cfg.run_dir).is_dir()]
    for format, suffix in FORMATS.items():
        text = tables.paper_table(spec["table"], folders, format)
        run.write_text(Path(out) / f"table{spec['table']}.{suffix}", text)
    text = tables.paper_table(spec["table"], folders)
    print(text)
    return text


def known() -> dict[str, Path]:
    """The tables and figures that there is a file for."""
    files = [f for folder in FOLDERS for f in (config.RECIPES / folder).glob("*.yaml")]
    return {file.stem: file for file in sorted(files, key=lambda f: (len(f.stem), f.stem))}


def read(name: str) -> dict:
    """The YAML file of a table or figure as plain data."""
    path = known().get(name) or Path(name)
    if not path.is_file():
        raise UserError(f"{name}: no such table or figure; there are {', '.join(known())}")
    spec = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(spec, dict) or not {"groups", "evaluate"} <= spec.keys():
        raise UserError(f"{path}: not the description of a table: `groups` and `evaluate` needed")
    return spec


def cells(spec: dict, overrides: list[str], out: Path) -> list[DictConfig]:
    """The complete config of every cell, `run_dir` set, in the order of the file."""
    made = []
    for group in spec["groups"]:
        words = group.get("words", [])
        folder = out / "-".join([group["recipe"].replace("/", "-"), *map(sweep.short, words)])
        if "methods" in group:
            base = config.finish(config.load(group["recipe"], [*words, *overrides]))
            made += [_method(base, method, folder) for method in group["methods"]]
            continue
        for name, more in _named(group, spec.get("operations", {})).items():
            cfg = config.finish(config.load(group["recipe"], [*words, *more, *overrides]))
            made.append(_placed(cfg, folder / name))
    return made


def _named(group: dict, operations: dict) -> dict[str, list[str]]:
    """Name -> overrides of a group's cells."""
    if "cells" in group:
        return {
            name: [operations.get(word, word) for word in words]
            for name, words in group["cells"].items()
        }
    combinations = sweep.combinations(group["sweep"])
    return {",".join(map(sweep.short, words)): words for words in combinations}


def _method(base: DictConfig, method: str, folder: Path) -> DictConfig:
    if method == "random":
        cfg = OmegaConf.create({**OmegaConf.to_container(base), "method": "random"})
        return _placed(config.finish(cfg), folder / method)
    settings = benchmark.read_methods(base)
    if method not in settings:
        raise UserError(f"{benchmark.METHODS_FILE}: no method {method}; {', '.join(settings)}")
    cfg = benchmark.cell_config(base, method, settings[method], base.seed, folder)
    return _placed(cfg, folder / method)


def _placed(cfg: DictConfig, folder: Path) -> DictConfig:
    cfg.run_dir, cfg.resume, cfg.name = str(folder), True, f"{folder.parent.name}-{folder.name}"
    return cfg


def train(cfg: DictConfig) -> None:
    """Train a cell unless it is finished; `random` is the backbone as it is initialised."""
    folder = Path(cfg.run_dir)
    sweep.same_experiment(cfg)
    if sweep.finished(folder, 1 if cfg.method == "random" else cfg.max_epochs):
        return
    if cfg.method != "random":
        sweep.train(cfg)
        return
    cfg = runnable(cfg)
    run.start(cfg, cfg)
    network = run.Run(folder, cfg, folder).backbone(trained=False)
    state = {f"backbone.{k}": v for k, v in network.state_dict().items()}
    checkpoint.save(folder / checkpoint.NAME, {"state_dict": state, "epoch": 0, "global_step": 0})


def evaluate(folder, evaluator, settings, fast=False, voc=None, device="auto") -> None:
    """One evaluator on a cell, unless its results are there.

    Raises:
        UserError: unknown evaluator, or no VOCdevkit for `lowshot`.
    """
    from ressl_plugin.evaluate import on_run

    data = VOC if evaluator == "lowshot" else run.read_config(folder / "config.yaml").data.dataset
    records = [r for r in results.read(folder) if (r["evaluator"], r["data"]) == (evaluator, data)]
    done = {record["protocol"] for record in records}
    if evaluator == "linear":
        if not done:
            on_run.linear(str(folder), [], fast=fast, device=device)
    elif evaluator == "lowshot":
        if voc is None:
            raise UserError("Table 9 is of PASCAL VOC07; give its folder: --voc VOCdevkit")
        if not done:
            counts = [str(count) for count in settings["per_class"]]
            on_run.lowshot(folder, [], voc, counts, settings["draws"], device)
    elif evaluator == "finetune":
        done = {r["protocol"] for r in records if _as_usual(r, settings["epochs"])}
        for labels in settings["labels"]:
            if f"labels {labels}" not in done:
                on_run.finetune(folder, [], str(labels), settings["epochs"], device=device)
    elif evaluator == "figures":
        if not (folder / "figures").is_dir():
            on_run.figures(folder, [], device)
    else:
        raise UserError(f"evaluate: {evaluator}; linear, lowshot, finetune or figures")


def _as_usual(record: dict, epochs: int) -> bool:
    """Whether a fine-tuning was the table's, not one with other epochs or rates."""
    how = record.get("details") or {}
    rates = how.get("lr_backbone"), how.get("lr_head")
    return how.get("epochs") == epochs and rates in finetune.RATES
