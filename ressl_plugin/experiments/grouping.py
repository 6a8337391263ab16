"""Runs and their records, read for a table: those of one experiment and several seeds together."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ressl_plugin.config import yaml_files
from ressl_plugin.config.diff import decisive
from ressl_plugin.data import identity
from ressl_plugin.evaluate.sampling import mean_spread
from ressl_plugin.evaluate.subject import method_name
from ressl_plugin.run import results
from ressl_plugin.utils.devices import device_count
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)

METRICS = ("top1", "mAP")  # that tables show


@dataclass(frozen=True)
class Evaluated:
    """A run as tables see it.

    Attributes:
        dir: its directory; cfg: its config as plain data, {} if it has none that can be used.
        latest: what a number is of -> its latest record, the latest of all last.
        trained_on: the identity of the images that it was trained on (`data.identify`), if known.
    """

    dir: Path
    cfg: dict
    latest: dict[tuple, dict]
    trained_on: dict | None


def groups(runs: Sequence[str | Path]) -> list[list[Evaluated]]:
    """Runs that differ in the seed alone together; a run without records is named in a warning."""
    found: dict[tuple, list[Evaluated]] = {}
    seen: Counter = Counter()
    for run in {Path(run).resolve(): Path(run) for run in runs}.values():
        cfg, records = read_config(run), results.read(run)
        if not records:
            log.warning("%s: no results; evaluate it first (`ressl linear RUN`, ...)", run)
        key = _experiment(cfg, run, records) if cfg else str(run)
        # a seed that is there already is no further seed: two imports, or the run made again
        seen[key, cfg.get("seed")] += 1
        group = found.setdefault((key, seen[key, cfg.get("seed")]), [])
        group.append(Evaluated(run, cfg, _latest(cfg, records), identity.of_run(run)))
    return list(found.values())


def _latest(cfg: dict, records: list[dict]) -> dict[tuple, dict]:
    latest = {}
    for record in records:
        record = _as_now(cfg, record)
        names = ("representation", "evaluator", "protocol", "data", "epochs")
        # a number of other images does not take the place of the one that is there
        splits = sorted((record.get("data_sets") or {}).items())
        images = tuple((split, images.get("digest")) for split, images in splits)
        listed = (record.get("details") or {}).get("list")  # of labelled images
        key = (*(record.get(name) for name in names), images, listed, record["metric"])
        before = latest.pop(key, {})  # the latest comes last
        if "place" in before and "place" not in record:  # made anew, by hand
            record = {**record, "place": before["place"]}
        latest[key] = record
    return latest


def evaluations(group: list[Evaluated], metrics=METRICS) -> Iterator[list[dict]]:
    """For each evaluation that is shown: its records, one a run of the group.

    Of a kNN sweep the default cell, k=20 and T=0.07, where it is there.
    """
    keys = dict.fromkeys(key for run in group for key in run.latest if key[-1] in metrics)
    sweep = [key for key in keys if key[1] == "knn" and key[0] is None]
    words = {key: key[2].replace(",", " ").split() for key in sweep}
    default = [key for key in sweep if {"k=20", "T=0.07"} <= {*words[key]}]
    hidden = set(sweep) - set(default) if default else set()
    for key in keys:
        if key not in hidden:
            yield [run.latest[key] for run in group if key in run.latest]


def summary(records: list[dict]) -> tuple[float, float | None]:
    """Mean and standard deviation over runs; of a single one, its value and own spread."""
    mean, spread = mean_spread([record["value"] for record in records])
    return mean, records[0].get("spread") if spread is None else spread


def _as_now(cfg: dict, record: dict) -> dict:
    """A record under the names of today: one number has one name.

    `ressl compare` makes the run's own kNN number, too, and once called it otherwise.
    """
    if record["protocol"].startswith("kNN, k="):
        protocol = record["protocol"].removeprefix("kNN, ").replace(" T=", " cosine T=")
        record = {**record, "protocol": protocol}
    if record["evaluator"] == "knn" and record.get("representation") == method_name(cfg):
        record = {**record, "representation": None}
    return record


def _experiment(cfg, run, records) -> str:
    """All of a config that bears on the numbers, but the seed; images a step, not devices; the
    content of the training data, not their place."""
    settings = decisive(cfg)
    place = (cfg.get("data") or {}).get("train_path")
    settings["data.train_path"] = identity.of_run(run) or place
    settings["ranks"] = device_count(settings.get("devices", 1), 1) * settings.get("num_nodes", 1)
    if not all("data_sets" in record for record in records):  # of version 0.1.0: their place is
        settings["data.val_path"] = (cfg.get("data") or {}).get("val_path")  # all that is known
    for key in ("seed", "devices", "num_nodes", "wandb_run_id"):
        settings.pop(key, None)
    return json.dumps(settings, sort_keys=True, default=str)


def read_config(run: str | Path) -> dict:
    """The run's config.yaml (or the host's args.json) as plain data; {} if it has neither, or one
    that names no data set, as the host's own.

    Raises:
        UserError: it cannot be read, a node of it is no mapping, or a mapping where none belongs.
    """
    there = [p for p in (Path(run, "config.yaml"), Path(run, "args.json")) if p.is_file()]
    if not there:
        return {}
    path = there[0]
    try:
        found = OmegaConf.create(yaml_files.read(path, words=False))
        cfg = OmegaConf.to_container(found, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: not a config: {' '.join(str(error).split())}") from None
    for key in ("data", "method_kwargs", "backbone"):
        if not isinstance(cfg.get(key, {}), dict | None):
            raise UserError(f"{path}: {key}={cfg[key]!r}: not a mapping (key: value)")
    for key in ("seed", "method"):
        if isinstance(cfg.get(key), dict | list):
            raise UserError(f"{path}: {key}={cfg[key]!r}: one value, not several")
    named = isinstance((cfg.get("data") or {}).get("dataset"), str)
    return cfg if named and "augmentations" in cfg else {}
