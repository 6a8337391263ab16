"""A run is a directory: config.yaml, args.json, last.ckpt, logs/, results.json, figures/, ..."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ressl_plugin import config
from ressl_plugin.config import yaml_files
from ressl_plugin.method import backbone
from ressl_plugin.run import checkpoint, results
from ressl_plugin.run.checkpoint_schema import check_weights
from ressl_plugin.run.weights import load_backbone
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.launch import launched_first

LOCK_SECONDS = 20  # that a process still in the run directory has to leave it


@dataclass
class Run:
    """A finished or unfinished pre-training run.

    Attributes:
        dir: its directory.
        cfg: the resolved config, learning rates as given (for a batch of 256).
        file: the checkpoint to read.
        overrides: of the config, for the evaluation; they are in the name of what is measured.
    """

    dir: Path
    cfg: DictConfig
    file: Path
    overrides: tuple[str, ...] = ()

    @cached_property
    def _read(self) -> tuple:
        saved = checkpoint.load(self.file)  # its optimizer's state is not kept
        check_weights(self.file, saved)
        imported = "imported" in saved
        return saved["state_dict"], None if imported else epochs_trained(saved), imported

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """Weights by the host's names."""
        return self._read[0]

    @property
    def epochs(self) -> int | None:
        """Whole epochs behind the checkpoint; None where it does not say (an import)."""
        return self._read[1]

    @property
    def imported(self) -> bool:
        """Whether `ressl import` has brought the weights, of which nobody knows how they came."""
        return self._read[2]

    def backbone(self, trained: bool = True) -> nn.Module:
        """The encoder with plain BatchNorm, in eval mode; untrained: its random initialisation.

        Raises:
            UserError: the checkpoint is of another architecture.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.cfg.seed)
            network = backbone.build(self.cfg)
        if trained:
            load_backbone(network, self.state, self.file)
        return network.eval()


def epochs_trained(state: dict) -> int | None:
    """Whole epochs that a checkpoint has behind it; 0 if it was written without training."""
    if "loops" not in state:
        return 0
    try:
        return state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    except (KeyError, TypeError):  # of another Lightning
        return None


def open_run(path: str | Path) -> Run:
    """A run by its directory or by a checkpoint in it.

    Raises:
        UserError: no such run, or it has no config or no checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such run directory or checkpoint; `ressl pretrain` makes one")
    folder = path if path.is_dir() else path.parent
    file = checkpoint.find(path)
    for name in ("config.yaml", "args.json"):
        if (folder / name).is_file():
            return Run(folder, read_config(folder / name), file)
    raise UserError(f"{folder}: no config.yaml or args.json beside the checkpoint {file.name}")


def best(path: str | Path) -> Path:
    """The checkpoint that `checkpoint.best` has kept in a run directory."""
    file = Path(path) / checkpoint.BEST
    if not file.is_file():
        raise UserError(f"no {file}; a training with checkpoint.best=knn (…) keeps one")
    return file


def read_config(path: Path) -> DictConfig:
    """config.yaml of a run, or args.json of one that the host made."""
    cfg = OmegaConf.create(yaml_files.read(path))  # JSON is YAML, too
    cfg.pop("wandb_run_id", None)
    return config.finish(cfg)


def directory(cfg: DictConfig) -> Path:
    """Where this config's run goes: `run_dir`, or runs/<name>."""
    if cfg.run_dir:
        return Path(cfg.run_dir).expanduser()
    parts = Path(cfg.name).parts
    if not parts or cfg.name.startswith("/") or ".." in parts or "\0" in cfg.name:
        raise UserError(
            f"config: name={cfg.name!r}: names the run's folder in runs/; a word, or run_dir=…"
        )
    return Path("runs") / cfg.name


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has got as far as a checkpoint there."""
    file = folder / checkpoint.NAME
    return file.is_file() or checkpoint.previous(file).is_file()


def start(cfg: DictConfig, scaled: DictConfig, source: Path | None = None) -> Path:
    """Make the run's directory and write its config; the first process does it for all.

    Args:
        source: the checkpoint that the run goes on from.

    Raises:
        UserError: the directory holds a run already that is not the one resumed; it cannot be made.
    """
    folder = directory(cfg)
    if not launched_first():
        return folder
    goes_on = source is not None and source.resolve().is_relative_to(folder.resolve())
    if not goes_on and (there := held(folder)):
        if has_checkpoint(folder):
            there = "a run already: resume=true continues it"
        raise UserError(f"run_dir={folder} holds {there}; another run_dir=… starts afresh")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / "config.yaml", OmegaConf.to_yaml(cfg).encode())
        text = json.dumps(OmegaConf.to_container(scaled), indent=1)
        files.replace(folder / "args.json", text.encode())
    except OSError as error:
        raise UserError(f"run_dir={folder}: cannot be written: {error.strerror}") from None
    return folder


def held(folder: Path) -> str | None:
    """A file that another run has left there: its results would be taken for a new run's."""
    files_there = [*folder.glob("*.ckpt"), *folder.glob(f"{checkpoint.PREVIOUS}/*.ckpt"),
                   *folder.glob(results.FILE)]  # fmt: skip
    return f"{files_there[0].name} of another run" if files_there else None


@contextlib.contextmanager
def locked(folder: Path):
    """The run directory for this process alone (the first, of several ranks) while it trains.

    Raises:
        UserError: another process trains there, or the directory cannot be made.
    """
    if not launched_first():
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(files.locked(folder / ".lock", LOCK_SECONDS))
        except TimeoutError:
            raise UserError(
                f"run_dir={folder}: another process trains there; another run_dir=…, or wait for "
                "its end"
            ) from None
        except OSError as error:
            raise UserError(f"run_dir={folder}: cannot be written: {error.strerror}") from None
        yield
