"""Settings that only the host, PyTorch or Lightning can judge: what they refuse, in one line."""

from __future__ import annotations

from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from ressl_plugin.errors import UserError

# most of them for a value of a type that is not expected, a RuntimeError for memory not to be had
REFUSALS = (
    ValueError, TypeError, AttributeError, ArithmeticError, LookupError, AssertionError,
    RuntimeError, MemoryError, ImportError, MisconfigurationException,
)  # fmt: skip
LONGEST = 400  # characters: PyTorch adds every signature that it knows
_OF_TORCH = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
_LIGHTNING = ("lightning.", "pytorch_lightning.", "lightning_fabric.")


@contextmanager
def refused(what: str):
    """What a library refuses within is the user's mistake; `what` says where to look.

    Raises:
        UserError: it refuses something.
    """
    try:
        yield
    except REFUSALS as error:
        raise UserError(f"config: {what}: {_said(error)}") from error


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (LookupError, AssertionError)):  # "'temperature'" alone says nothing
        text = f"{type(error).__name__} {text}"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return text.strip() or type(error).__name__


def check_optimizer(model: pl.LightningModule, cfg: DictConfig) -> None:
    """Build the optimizer and let it take one step, on a weight of its own.

    Raises:
        UserError: optimizer.kwargs are not the optimizer's, or have values that it cannot take.
    """
    name, kwargs = cfg.optimizer.name, OmegaConf.to_container(cfg.optimizer.kwargs)
    known = f" (they are those of torch.optim.{_OF_TORCH[name]})" if name in _OF_TORCH else ""
    with refused(f"optimizer.name={name}, optimizer.kwargs={kwargs}{known}"):
        optimizer = without_schedule(model)
        if not optimizer.defaults.get("capturable"):  # which the processor cannot do
            _try(optimizer)


def without_schedule(model: pl.LightningModule) -> Optimizer:
    """The model's optimizer; its schedule needs the trainer's count of steps."""
    name, model.scheduler = model.scheduler, "none"
    try:
        made = model.configure_optimizers()
    finally:
        model.scheduler = name
    return made[0][0] if isinstance(made, tuple) else made


def _try(optimizer: Optimizer) -> None:
    """Some values fail at the first step only; this optimizer is not used for anything else."""
    for group in optimizer.param_groups:
        weight = torch.nn.Parameter(torch.ones(2, 2))
        weight.grad = torch.ones(2, 2)
        group["params"] = [weight]
    optimizer.step()


class Begun(pl.Callback):
    """Whether steps are being taken: from then on no error is the config's."""

    now = False

    def on_sanity_check_start(self, trainer, module) -> None:
        """Steps of validation, before the set-up goes on."""
        self.now = True

    def on_sanity_check_end(self, trainer, module) -> None:
        """See on_sanity_check_start."""
        self.now = False

    def on_train_epoch_start(self, trainer, module) -> None:
        """Every hook that checks settings has been called."""
        self.now = True


@contextmanager
def set_up_refused(begun: Begun):
    """What Lightning itself raises before the first step, though its Trainer took the settings.

    Raises:
        UserError: such as val_check_interval above the number of batches, known only with the data.
    """
    try:
        yield
    except (ValueError, TypeError, MisconfigurationException) as error:
        if begun.now or not _raised_by_lightning(error):
            raise
        raise UserError(f"config: Lightning refuses it: {_said(error)}") from error


def _raised_by_lightning(error: Exception) -> bool:
    """Whether the line that raised is Lightning's: not a bug below it, of ours or of PyTorch."""
    place = error.__traceback__
    while place.tb_next is not None:
        place = place.tb_next
    return place.tb_frame.f_globals.get("__name__", "").startswith(_LIGHTNING)
