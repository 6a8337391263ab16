"""Pre-train any method of the host, ReSSL first, from one config into one run directory."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf

from ressl_plugin import host, run
from ressl_plugin.config import checks
from ressl_plugin.data.training import PretrainData
from ressl_plugin.method import backbone, registry
from ressl_plugin.run import checkpoint, metrics
from ressl_plugin.train.checkpoint_io import AtomicCheckpointIO
from ressl_plugin.train.checkpointing import CONFIG, CheckpointCallback
from ressl_plugin.train.collapse import CollapseMonitor
from ressl_plugin.train.compiling import EagerValidation, compile_networks
from ressl_plugin.train.contention import Contention
from ressl_plugin.train.ddp import SteadyDDP
from ressl_plugin.train.faults import Faults, reported
from ressl_plugin.train.host_config import host_config
from ressl_plugin.train.loggers import loggers
from ressl_plugin.train.profile import Profile
from ressl_plugin.train.progress import Progress
from ressl_plugin.train.resume import (
    check_fits,
    check_same_config,
    check_same_data,
    resume_from,
)
from ressl_plugin.train.settling import settled
from ressl_plugin.train.step import CapturedReSSL
from ressl_plugin.train.step import settle as settle_capture
from ressl_plugin.train.throughput import Meter
from ressl_plugin.train.watchdog import Watchdog
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.launch import launched_first
from ressl_plugin.utils.precision import products
from ressl_plugin.utils.progress import quiet

log = logging.getLogger(__name__)

STRATEGIES = ("auto", "ddp")


@quiet()
def pretrain(cfg: DictConfig, callbacks=(), meter: bool = False) -> Path:
    """Train `cfg.method` and return the run directory.

    Args:
        cfg: a complete config (config.finish).
        callbacks: of Lightning, beside the run's own.
        meter: append images/s and peak memory to results.json.

    Raises:
        UserError: anything about the config, the data or the run directory that cannot work.
        RunFault: the run had to stop: the loss is not finite, a file vanished, a rank is gone.
        KeyboardInterrupt, SIGTERMException, Preempted: told to stop; the step is done and saved.
    """
    folder, unlocked = run.directory(cfg), contextlib.nullcontext()
    # from before the checkpoint is read: who trains there may be saving yet. Where there is nothing
    # to go on from, only once nothing is refused any more, which leaves no directory behind
    early = bool(cfg.resume_from_checkpoint or cfg.resume) and folder.is_dir()
    # TF32 for the networks, where a GPU has it; not for what is evaluated in this process later
    with run.locked(folder) if early else unlocked, products("high"):
        return _pretrain(cfg, callbacks, meter, unlocked if early else run.locked(folder))


def _pretrain(cfg: DictConfig, callbacks, meter: bool, lock) -> Path:
    """`pretrain`, in a directory that is held, or is from where nothing is refused any more."""
    registry.register()
    checks.warn_unused(cfg)
    source = resume_from(cfg)  # read once: looked at here, then handed over
    # empty for a run of the host
    cfg = settled(cfg, OmegaConf.create(source.state.get(CONFIG) or {}) if source else None)
    checks.check_trainable(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    folder = run.directory(cfg)
    module = PretrainData(cfg, folder)
    scaled = host_config(cfg, module.recipe, module.num_classes)
    if source:
        check_same_config(source, cfg)
        check_same_data(source, cfg, module.identity)
    if meter:
        callbacks = [*callbacks, Meter(folder, cfg.data.dataset)]
    trainer = make_trainer(cfg, folder, callbacks, source)
    settle_capture(scaled, module.backend, trainer.world_size)
    model = build(scaled)
    if source:
        check_fits(source, model, cfg)
    with lock, reported(trainer, folder):
        run.start(cfg, scaled, source and source.path)
        module.keep_identity()
        if scaled.method_kwargs.get("queue_size", 0) > len(module.dataset):
            log.warning(
                "method_kwargs.queue_size=%d: larger than the data set of %d images, so that it "
                "holds several old embeddings of one; the paper's is at most a third of it",
                scaled.method_kwargs.queue_size, len(module.dataset),
            )  # fmt: skip
        try:
            trainer.fit(model, datamodule=module, ckpt_path=source and source.path)
        finally:
            for callback in trainer.callbacks:
                if isinstance(callback, Watchdog):  # after an exception Lightning does not
                    callback.teardown(trainer, model, "fit")
            if launched_first():
                metrics.keep_joined(folder)
    return folder


def build(cfg: DictConfig) -> pl.LightningModule:
    """The method's module, in channels_last and compiled where the config says so."""
    model = make_method(cfg)
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    if cfg.performance.compile:
        # ours are one graph each, but for a profile's clocks; of the host's methods nobody knows
        compile_networks(model, whole=cfg.method == "ressl" and not cfg.profile)
    return model


def make_method(cfg: DictConfig) -> pl.LightningModule:
    """`cfg.method` of the host's registry, or the supervised reference; all with one stem."""
    if cfg.method == "supervised":
        from ressl_plugin.method.supervised import Supervised

        return Supervised(cfg)
    if cfg.method != "ressl":  # which does so itself
        backbone.prepare(cfg)
    model = CapturedReSSL(cfg) if cfg.performance.capture is True else host.build_method(cfg)
    backbone.check_input(model.backbone, cfg)
    if cfg.method != "ressl":  # the host's know its own stem only
        backbone.set_stems(model, cfg.backbone.stem)
    return model


def make_trainer(
    cfg: DictConfig, folder: Path, more=(), source: checkpoint.Loaded | None = None
) -> pl.Trainer:
    """Lightning's Trainer with the run's loggers, checkpoints and watchers."""
    known = set(inspect.signature(pl.Trainer.__init__).parameters)
    given = {k: v for k, v in OmegaConf.to_container(cfg).items() if k in known}
    callbacks = [
        CollapseMonitor(cfg.scheduler.warmup_epochs),
        Contention(),
        Faults(folder),
        Watchdog(folder, cfg.faults.timeout),
        LearningRateMonitor("step") if launched_first() else None,  # needs a logger
        Profile(folder, cfg.precision) if cfg.profile else None,
        EagerValidation() if cfg.performance.compile else None,
    ]
    if cfg.get("enable_progress_bar", True):
        callbacks.append(Progress(refresh=cfg.performance.log_every))
    if cfg.checkpoint.enabled:  # the last: it saves what the others know
        callbacks.append(CheckpointCallback(folder, cfg))
    plugins = [AtomicCheckpointIO(source)]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # no saving in mid-step by Lightning
    periods = [one.every for one in (cfg.knn_eval, cfg.quality_eval) if one.enabled]
    settings = {
        "num_sanity_val_steps": 0,
        "log_every_n_steps": cfg.performance.log_every,
        "check_val_every_n_epoch": math.gcd(*periods) or 1,
        "enable_model_summary": False,  # all it would leave is a warning about bfloat16
        "use_distributed_sampler": False,  # every back end shards its own data
        "benchmark": True,
    }
    return pl.Trainer(
        **{**settings, **given, "strategy": strategy(cfg)},
        logger=loggers(cfg, folder),
        callbacks=[c for c in (*callbacks, *more) if c],
        enable_checkpointing=True,  # no file of its own: there is a Checkpoint among the callbacks
        default_root_dir=str(folder),
        plugins=plugins,
    )


def strategy(cfg: DictConfig):
    """`ddp` is SteadyDDP without a search for unused parameters; others are Lightning's own.

    Raises:
        UserError: another one. A run cannot be pickled into processes that are spawned, and Eq. 6
            needs whole models.
    """
    if cfg.strategy not in STRATEGIES:
        raise UserError(f"config: strategy={cfg.strategy!r}: one of {', '.join(STRATEGIES)}")
    if cfg.strategy != "ddp":
        return cfg.strategy
    from torch.nn.parallel import DistributedDataParallel

    # batch-norm statistics are a rank's own, as in the paper: no broadcast at every forward
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return SteadyDDP(
        find_unused_parameters=False,
        **{name: False},
        process_group_backend=None if torch.cuda.is_available() else "gloo",
    )
