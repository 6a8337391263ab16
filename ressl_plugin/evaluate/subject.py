"""What evaluators work on: a run with its overrides, its images' features, its results file."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.utils.data import DataLoader

from ressl_plugin import config, data
from ressl_plugin.data import statistics
from ressl_plugin.evaluate import features
from ressl_plugin.run import checkpoint, results
from ressl_plugin.run.directories import Run, open_run
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)
PIXELS = 2**29  # values that are held in memory; the classifier needs several times as much

METHODS = {
    "ressl": "ReSSL",
    "ressl_host": "ReSSL (solo-learn's)",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "mocov2plus": "MoCoV2",
    "swav": "SwAV",
    "supervised": "Supervised",
    "random": "Random",
}


# overrides that make no other protocol; of which images a number is, its record says itself
UNNAMED = (
    "data.path", "data.train_path", "data.val_path", "data.dataset", "data.format", "data.check",
    "data.num_workers", "data.download", "data.max_pixels", "accelerator", "devices", "seed",
    "optimizer.batch_size",
)  # fmt: skip


ALL_IMAGES = (
    "evaluators use all images; `ressl lowshot` and `ressl finetune --labels` take a part of them"
)


def method_name(cfg: Mapping) -> str:
    """The paper's name of a config's method, or the config's own."""
    name = cfg.get("method") or "?"
    return METHODS.get(name, name)


def device_named(name: str) -> torch.device:
    """`auto`: the GPU if there is one. Raises UserError where there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpus = torch.cuda.device_count()
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if name not in known:
        raise UserError(f"--device {name}: not usable here; auto or one of {', '.join(known)} is")
    return torch.device(name)


def held_out(cfg: Mapping) -> bool:
    """Whether there are validation images: of the config's own, or the data set's."""
    return cfg.data.val_path is not None or bool(data.row_of(cfg).torchvision)


def with_overrides(path: str, overrides: list[str]) -> Run:
    """The run, with `key=value` changes to its config."""
    run = open_run(path)
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or key.split(".")[0] not in config.known_keys():
            raise UserError(f"{word}: not key=value with a key of the run's config")
        if not value:
            raise UserError(f"{word}: no value; null where none is meant")
        if key == "data.fraction":
            raise UserError(f"{word}: {ALL_IMAGES}")
    changed = run.cfg.copy()
    try:
        for word in overrides:
            key, _, value = word.partition("=")
            OmegaConf.update(changed, key, OmegaConf.from_dotlist([f"value={value}"]).value)
    # nothing of ours is called there; TypeError: a word where a list wants a number
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{' '.join(overrides)}: {text}") from None
    config.refuse_two_places(changed, overrides)
    before, trained_on = run.cfg, run.cfg.data.dataset
    run.cfg = config.finish(changed)
    value = lambda cfg, word: OmegaConf.select(cfg, word.partition("=")[0])
    run.overrides = tuple(
        " ".join(word.split()) for word in overrides  # in records, which are of one line
        if word.partition("=")[0] not in UNNAMED and value(run.cfg, word) != value(before, word)
    )  # fmt: skip
    statistics.keep(run.cfg, trained_on)
    early = run.epochs not in (None, run.cfg.max_epochs) and run.file.name != checkpoint.BEST
    if early and run.cfg.method != "random":
        log.warning(
            "%s has trained %d of its %d epochs; its numbers are those of an unfinished run",
            run.dir,
            run.epochs,
            run.cfg.max_epochs,
        )
    return run


class Splits:
    """Features of a run's clean training and validation images, which must have labels."""

    def __init__(self, run: Run, device: torch.device):
        self.run, self.device = run, device
        self._loaders: dict[str, DataLoader] = {}

    def loader(self, split: str) -> DataLoader:
        """Batches (images, targets) of clean images, labels required."""
        if split not in self._loaders:
            self._loaders[split] = data.evaluation_loader(self.run.cfg, split)
        return self._loaders[split]

    def of(self, backbone) -> tuple:
        """(features_train, y_train, features_test, y_test) on the CPU."""
        train = features.extract(backbone, self.loader("train"), self.device)
        return (*train, *features.extract(backbone, self.loader("val"), self.device))

    def pixels(self) -> tuple | None:
        """The same of raw pixels; None, and a message, where they are beyond PIXELS."""
        datasets = [self.loader(split).dataset for split in ("train", "val")]
        images, each = sum(map(len, datasets)), datasets[0][0][0].numel()
        if images * each > PIXELS:
            log.warning(
                "raw pixels are left out: %.0f GB, at most %.0f are compared (CIFAR-10 takes 0.7); "
                "a smaller data.image_size takes less", images * each * 4 / 1e9, PIXELS * 4 / 1e9,
            )  # fmt: skip
            return None
        return self.of(torch.nn.Flatten())


def append(run: Run, evaluator: str, protocol: str, metric: str, value, **more) -> dict:
    """Add a record to the run's results.json and return it; `more`: its further keys."""
    return results.append(run.dir, _record(run, evaluator, protocol, metric, value, **more))


def protocol_of(run: Run, protocol: str) -> str:
    """For a record: with what is not the run's own, or it would pass for the usual number."""
    return ", ".join([protocol, *run.overrides])


def append_accuracies(
    run: Run, evaluator: str, found: dict[str, dict[str, float]], **more
) -> list[dict]:
    """`append` for `top1` and for `top5` of what was found by each protocol, all at once."""
    records = [
        _record(run, evaluator, protocol, metric, of_one[metric], **more)
        for protocol, of_one in found.items()
        for metric in ("top1", "top5")
    ]
    return results.append_all(run.dir, records)


def _record(run: Run, evaluator: str, protocol: str, metric: str, value, **more) -> dict:
    named = protocol_of(run, protocol)
    record = {"evaluator": evaluator, "protocol": named, "metric": metric, "value": value}
    record = {**record, "data": run.cfg.data.dataset, **weights_of(run), **more}
    if "data_sets" not in record:
        record["data_sets"] = data_sets_of(run)
    return record


_identities: dict[str, dict] = {}  # by the place: a sweep of many cells asks for it once


def data_sets_of(run: Run) -> dict[str, dict]:
    """For a record: split -> images, classes, digest of the images that evaluators use."""
    place = OmegaConf.to_yaml(run.cfg.data)
    if place not in _identities:
        splits = {split: data.build_dataset(run.cfg, split) for split in ("train", "val")}
        _identities[place] = {split: data.identify(images) for split, images in splits.items()}
    return _identities[place]


def weights_of(run: Run) -> dict:
    """For a record: which weights were evaluated, and how many epochs they have been trained."""
    return {"checkpoint": run.file.name, "epochs": run.epochs}
