"""Which checkpoint a run goes on from, and whether it can."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from ressl_plugin import run
from ressl_plugin.config.diff import config_differences, plain_config
from ressl_plugin.data import identity
from ressl_plugin.data.training import DATA, TRAIN
from ressl_plugin.run import checkpoint
from ressl_plugin.run.checkpoint import Loaded
from ressl_plugin.run.checkpoint_schema import check_training
from ressl_plugin.train.checkpointing import CONFIG
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)

# whose state is of no use to another, forced or not
_OPTIMIZER = ("name", "exclude_bias_n_norm_wd")


def resume_from(cfg: DictConfig) -> Loaded | None:
    """The checkpoint to go on from: of this run directory, or the one that is named."""
    resume = cfg.resume_from_checkpoint or cfg.resume
    if not resume:
        return None
    folder = run.directory(cfg)
    if resume is True and not run.has_checkpoint(folder):
        log.info("resume=true: no checkpoint in %s yet, starting afresh", folder)
        return None
    source = checkpoint.find(folder if resume is True else Path(resume).expanduser())
    found = Loaded(source, checkpoint.load(source))
    check_training(source, found.state)
    return found


def check_same_config(found: Loaded, config) -> None:
    """That ``found`` was trained with this config, or ``config.resume_force`` is true.

    A checkpoint without a config (the host's) is taken as it is.
    """
    source, saved = found.path, found.state.get(CONFIG)
    config = plain_config(config)
    if saved is None:
        log.warning("%s holds no config: it cannot be compared with this one", source)
        return
    if differing := config_differences(saved, config):
        listed = "; ".join(differing)
        if not config.get("resume_force"):
            raise UserError(
                f"{source} was made with another config: {listed}. Set them back, or "
                "resume_force=true to go on with the new ones"
            )
        log.warning("resume_force: going on with another config: %s", listed)


def check_same_data(found: Loaded, config: DictConfig, data: dict) -> None:
    """The data are those that the checkpoint was trained on, wherever they lie now."""
    source, state, path = found.path, found.state, config.data.train_path
    if DATA not in state:  # the host's, or of a version that did not write it down
        before = ((state.get(CONFIG) or {}).get("data") or {}).get("train_path")
        if before not in (None, path):
            log.warning("%s was trained on %s; is %s a copy? Nothing tells", source, before, path)
        return
    saved = state[DATA].get(TRAIN) if isinstance(state[DATA], dict) else None
    if not identity.is_identity(saved):
        raise UserError(f"{source}: {DATA}.{TRAIN} is no identity of a data set; it is damaged")
    if differing := identity.differences(saved, data):
        if not config.get("resume_force"):
            raise UserError(
                f"{source} was trained on other data than data.train_path={path}: {differing}. "
                "Give the same images, or resume_force=true to go on with these"
            )
        log.warning("resume_force: going on with other data: %s", differing)


def check_fits(found: Loaded, model: nn.Module, config) -> None:
    """A forced config must be able to take the checkpoint's state; so must one of the host's."""
    source, state, config = found.path, found.state, plain_config(config)
    if "optimizer_states" not in state:
        raise UserError(
            f"{source} holds weights alone (an import, or an untrained backbone): training cannot "
            "go on from it"
        )
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        first = " ".join(str(error).splitlines()[1].split())
        raise UserError(
            f"{source} is of other networks: {first} Set backbone, heads and queue back"
        ) from None
    saved = (state.get(CONFIG) or config)["optimizer"]
    for key in _OPTIMIZER:
        if saved.get(key) != config["optimizer"].get(key):
            raise UserError(
                f"{source}: optimizer.{key}: {saved.get(key)} -> {config['optimizer'].get(key)}: "
                "the state of the optimizer is of no use to another; start a new run"
            )
    done = state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if done > config["max_epochs"]:
        raise UserError(f"max_epochs={config['max_epochs']}: {source} has {done} already")
    if done == config["max_epochs"]:
        log.info("%s: all %d epochs are done; the run is finished", source, done)
