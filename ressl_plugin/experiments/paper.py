"""`ressl paper NAME`: train and evaluate the cells of one of the paper's tables, then print it.

What the cells are is in scripts/ablation and scripts/paper, one YAML file a table (paper_spec.py).
Each cell is a run directory OUT/<recipe and words>/<cell>. A finished cell is not run again, an
interrupted one is resumed. Two tables share a cell where both have the recipe, the words and the
cell's name in common; the same training under another name is another cell.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ressl_plugin import config, run
from ressl_plugin.config.diff import config_differences
from ressl_plugin.evaluate import figures, finetune, linear, logistic, lowshot
from ressl_plugin.experiments import benchmark, paper_spec, sweep, tables
from ressl_plugin.experiments.paper_cells import VOC, cell
from ressl_plugin.run import checkpoint, results
from ressl_plugin.train.settling import settled
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.plot_style import need_matplotlib

# Table 3 takes the best one of them
TEMPERATURES = ("method_kwargs.temperature_q", "method_kwargs.temperature_k")
FORMATS = {"markdown": "md", "latex": "tex", "csv": "csv"}


def reproduce(
    name: str,
    overrides: list[str] = (),
    out: Path = Path("runs/paper"),
    only: list[str] | None = None,
    fast: bool = False,
    voc: Path | None = None,
    device: str = "auto",
    labels: list[str] | None = None,
    chosen: list[str] | None = None,
    dry: bool = False,
) -> str:
    """Run what is missing of a table or figure; print the table and write it under `out`.

    The file, the overrides, the cells that are there and the images are checked before the first
    training. A cell that fails does not keep the others from being run.

    Args:
        name: table1 ... table10, figure2, figure3, or a YAML file.
        overrides: for every cell, after its own words (`max_epochs=20`).
        only: data sets (`data.dataset`) to be run; None: all. The table shows every cell there is.
        fast: linear classifiers on features extracted once.
        voc: the VOCdevkit folder, for Table 9.
        labels: for Table 10, shares or lists of images in place of the file's, as SimCLR's.
        chosen: cells, as `cifar-ressl/simclr`; None: all.
        dry: train nothing, print the cells, what is done of each and its command.

    Raises:
        UserError: no such table, a mistake in its file, an override that cannot work, a cell of
            another config in `out`, data or a device that is not there.
        RunFault: a cell failed; the others are in the table.

    Example:
        >>> reproduce("table1", ["data.download=true"], only=["cifar10"])  # doctest: +SKIP
    """
    from ressl_plugin.evaluate.subject import device_named

    spec, out = paper_spec.read(name), Path(out)
    device_named(device)
    if not dry and ("figure" in spec or "figures" in spec["evaluate"]):
        need_matplotlib()
    with paper_spec.within(paper_spec.find(name)):
        _check_data_stay(spec, list(overrides), only, out)
        planned = cells(spec, list(overrides), out)
        if "table" in spec:
            _check_places(spec["table"], planned)
        wanted = _chosen(_of_data(planned, only, name), chosen, out)
        for cfg in wanted:
            sweep.same_experiment(cfg)
        if labels and "finetune" in spec["evaluate"]:
            for word in labels:
                finetune.labels_named(word)
            spec["evaluate"]["finetune"]["labels"] = labels
        if not dry and "lowshot" in spec["evaluate"]:
            _check_voc(voc)
        if not dry:
            sweep.check_images(wanted, labels="lowshot" not in spec["evaluate"])
    if dry:
        options = [*(["--fast"] if fast else []), *(["--voc", str(voc)] if voc else []),
                   *(["--labels", *labels] if labels else [])]  # fmt: skip
        text = "".join(_planned(name, overrides, out, options, spec, cfg, fast) for cfg in wanted)
        print(text, end="")
        return text

    def work(cfg):
        train(cfg)
        for evaluator, settings in spec["evaluate"].items():
            evaluate(Path(cfg.run_dir), evaluator, settings, fast, voc, device)

    failed = sweep.each(wanted, work)
    text = _printed(spec, planned, out, device) if not failed or "table" in spec else ""
    sweep.report(failed, wanted)
    return text


def _chosen(planned: list[DictConfig], names: list[str] | None, out: Path) -> list[DictConfig]:
    known = {str(Path(cfg.run_dir).relative_to(out)): cfg for cfg in planned}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UserError(f"--cells {' '.join(unknown)}: there are {', '.join(known)}")
    return [cfg for name, cfg in known.items() if not names or name in names]


def _planned(name, overrides, out, options, spec, cfg, fast) -> str:
    """The lines of `--plan` about one cell."""
    folder = Path(cfg.run_dir)
    wanted = 1 if cfg.method == "random" else cfg.max_epochs
    if sweep.finished(folder, wanted):
        state = "trained"
    elif run.has_checkpoint(folder):
        state = f"{run.open_run(folder).epochs} of {cfg.max_epochs} epochs trained"
    else:
        state = "to be trained"
    for evaluator, settings in spec["evaluate"].items():
        due = _due(folder, evaluator, settings, fast) if state == "trained" else ["all"]
        if due and due != ["all"]:
            state += f"; {evaluator}: {', '.join(map(str, due))} to be done"
        else:
            state += f"; {evaluator}: {'to be done' if due else 'done'}"
    command = ["ressl", "paper", name, *overrides, "--out", str(out), *options]
    cell_name = str(folder.relative_to(out))
    return f"{folder}: {state}\n    {shlex.join([*command, '--cells', cell_name])}\n"


def _printed(spec: dict, planned: list[DictConfig], out: Path, device: str) -> str:
    """The table or figure of what is there, printed and written under `out`."""
    if "figure" in spec:
        from ressl_plugin.experiments import paper_figures

        draw = {2: paper_figures.figure2, 3: paper_figures.figure3}[spec["figure"]]
        for file in draw([Path(cfg.run_dir) for cfg in planned], out, device):
            print(file)
    if "table" not in spec:
        return ""
    folders = [Path(cfg.run_dir) for cfg in planned if Path(cfg.run_dir).is_dir()]
    for format, suffix in FORMATS.items():
        text = tables.paper_table(spec["table"], folders, format, made_for_it=True)
        files.replace(out / f"table{spec['table']}.{suffix}", text.encode())
    text = tables.paper_table(spec["table"], folders, made_for_it=True)
    print(text)
    return text


def _check_data_stay(spec: dict, overrides: list[str], only: list[str] | None, out: Path) -> None:
    """One data set for all cells would make several cells one, and a column of none."""
    is_name = lambda word: word.lstrip("+").startswith("data.dataset=")
    if named := [word for word in overrides if is_name(word)]:
        planned = cells(spec, [word for word in overrides if not is_name(word)], out)
        there = dict.fromkeys(cfg.data.dataset for cfg in planned)
        raise UserError(
            f"{named[0]}: the cells asked for are of {', '.join(only or there)} and stay so; "
            "data.format=npz and data.train_path=… give them other images, --data chooses cells"
        )


def _of_data(planned: list[DictConfig], only: list[str] | None, name: str) -> list[DictConfig]:
    known = {cfg.data.dataset for cfg in planned}
    unknown = [data for data in only or () if data not in known]
    if unknown:
        raise UserError(f"--data {' '.join(unknown)}: {name} has {', '.join(sorted(known))}")
    return [cfg for cfg in planned if not only or cfg.data.dataset in only]


def _check_places(number: int, planned: list[DictConfig]) -> None:
    """A place in the table is for one cell and its seeds; the table would refuse others, too late.

    Overrides for every cell can undo what makes the difference between two.
    """
    record = {"evaluator": "linear", "metric": "top1", "protocol": "small"}
    if number == 9:
        record = {"evaluator": "lowshot", "metric": "mAP", "protocol": "full a class"}
    if number == 10:
        record = {"evaluator": "finetune", "metric": "top1", "protocol": "labels 1"}
    found: dict[tuple, list[DictConfig]] = {}
    for cfg in planned:
        data = VOC if number == 9 else cfg.data.dataset
        place = cell(number, OmegaConf.to_container(cfg), {**record, "data": data})
        if place is None:  # the table does not show it
            continue
        for other in found.setdefault(place, []):
            keys = {difference.partition(":")[0] for difference in config_differences(other, cfg)}
            free = {"seed", *TEMPERATURES} if number == 3 else {"seed"}
            if not keys or not keys <= free:
                raise UserError(
                    f"{other.run_dir} and {cfg.run_dir} are both {place[0]} / {place[1]} of Table "
                    f"{number}: cells must differ in what the table varies, or in the seed alone"
                )
        found[place].append(cfg)


def _check_voc(folder: Path | None) -> None:
    from ressl_plugin.evaluate import voc

    if folder is None:
        raise UserError("evaluate: lowshot is on PASCAL VOC07; give its folder: --voc VOCdevkit")
    for split in ("trainval", "test"):
        voc.VOC(folder, split)


def cells(spec: dict, overrides: list[str], out: Path) -> list[DictConfig]:
    """The complete config of every cell, `run_dir` set, in the order of the file, each once.

    Args:
        spec: of `paper_spec.read`; overrides: for every cell, after its own words.

    Raises:
        UserError: a recipe or method that is not there, a config that cannot work, two cells that
            differ and would have one folder.
    """
    made: dict[str, DictConfig] = {}
    for number, group in enumerate(spec["groups"], 1):
        with paper_spec.within(f"group {number}"):
            for cfg in _of_group(group, spec["operations"], overrides, out):
                first = made.setdefault(cfg.run_dir, cfg)
                differing = config_differences(first, cfg)
                if differing:
                    raise UserError(
                        f"{cfg.run_dir} is the folder of another cell, too, which is not the same: "
                        f"{'; '.join(differing)}; give one of them another name"
                    )
    return list(made.values())


def _of_group(group: dict, operations: dict, overrides: list[str], out: Path) -> Iterator:
    recipe, names = group["recipe"], group.get("words", [])
    folder = out / "-".join([recipe.replace("/", "-"), *map(sweep.short, names)])
    words = [operations.get(name, name) for name in names]
    if "methods" in group:
        base = config.finish(config.load(recipe, [*words, *overrides]))
        for method in group["methods"]:
            with paper_spec.within(f"method {method}"):
                cfg = _method(base, method, folder)
            yield cfg
        return
    for name, more in _named(group, operations).items():
        with paper_spec.within(f"cell {name}"):
            cfg = config.finish(config.load(recipe, [*words, *more, *overrides]))
        yield _placed(cfg, folder / name)


def _named(group: dict, operations: dict) -> dict[str, list[str]]:
    """Name -> overrides of a group's cells."""
    if "cells" in group:
        return {
            name: [operations.get(word, word) for word in words]
            for name, words in group["cells"].items()
        }
    with paper_spec.within("sweep"):
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
    cfg = settled(cfg)
    run.start(cfg, cfg)
    network = run.Run(folder, cfg, folder).backbone(trained=False)
    state = {f"backbone.{k}": v for k, v in network.state_dict().items()}
    checkpoint.save(folder / checkpoint.NAME, {"state_dict": state, "epoch": 0, "global_step": 0})


def evaluate(folder, evaluator, settings, fast=False, voc=None, device="auto") -> None:
    """One evaluator on a trained cell, unless its results are there as they are wanted.

    Args:
        evaluator, settings: of a file that `paper_spec.read` has checked.

    Raises:
        UserError: images or labels that the evaluator needs are not there.
    """
    due = _due(folder, evaluator, settings, fast)
    if evaluator == "figures" and due:
        figures.evaluate(folder, [], device)
    elif evaluator == "linear" and due:
        protocol = None if fast else due[0]
        linear.evaluate(str(folder), [], protocol, fast, device)
    elif evaluator == "lowshot" and due:
        lowshot.evaluate(folder, [], voc, list(map(str, due)), settings["draws"], device)
    elif evaluator == "finetune":
        for labels in due:
            finetune.evaluate(folder, [], str(labels), settings["epochs"], device=device)


def _due(folder: Path, evaluator: str, settings: dict, fast: bool) -> list:
    """What of an evaluator is still to be done on a trained cell."""
    opened = run.open_run(folder)
    if evaluator == "figures":
        return [] if _drawn(opened) else ["figures"]
    latest = _latest(opened, evaluator)
    if evaluator == "linear":
        protocol = logistic.NAME if fast else linear.default_protocol(opened.cfg)
        return [] if protocol in latest else [protocol]
    if evaluator == "lowshot":
        counts = [lowshot.count_named(str(count)) for count in settings["per_class"]]
        return [count for count in counts if not _drawn_as(latest, count, settings["draws"])]
    return [
        labels
        for labels in settings["labels"]
        if not _tuned_as(latest.get(f"labels {labels}"), settings["epochs"])
    ]


def _latest(opened: run.Run, evaluator: str) -> dict[str, dict]:
    """Protocol -> its last record, which is the one that a table shows, if it is of these weights.

    A run can be evaluated before it is finished, another checkpoint beside its own, and on images
    that are others by now. Records that do not say which weights they are of do not count.
    """
    from ressl_plugin.evaluate.subject import data_sets_of, weights_of

    here = ("lowshot", VOC, "mAP") if evaluator == "lowshot" else (
        evaluator, opened.cfg.data.dataset, "top1"
    )  # fmt: skip
    found = {
        record["protocol"]: record
        for record in results.read(opened.dir)
        if (record["evaluator"], record["data"], record["metric"]) == here
    }
    about = weights_of(opened) if found else {}
    if evaluator != "lowshot" and any("data_sets" in record for record in found.values()):
        with suppress(UserError):  # a plan can be made where the images are not
            about["data_sets"] = data_sets_of(opened)
    said = lambda record: {"data_sets": about.get("data_sets"), **record}  # not by earlier versions
    return {
        protocol: record
        for protocol, record in found.items()
        if all(key in said(record) and said(record)[key] == about[key] for key in about)
    }


def _drawn(opened: run.Run) -> bool:
    """Whether the last of the figures is there and younger than the weights."""
    trained = opened.file.stat().st_mtime
    files = [opened.dir / "figures" / f"neighbours{suffix}" for suffix in (".png", ".pdf")]
    return all(file.is_file() and file.stat().st_mtime >= trained for file in files)


def _drawn_as(latest: dict[str, dict], count: int | str, draws: int) -> bool:
    record = latest.get(f"{lowshot.TITLES['pcl']}, {count} a class", {})
    return len(record.get("seeds", ())) == (1 if count == "full" else draws)


def _tuned_as(record: dict | None, epochs: int) -> bool:
    """Whether a fine-tuning was the table's, not one with other epochs or rates."""
    how = (record or {}).get("details") or {}
    rates = how.get("lr_backbone"), how.get("lr_head")
    return how.get("epochs") == epochs and rates in finetune.RATES
