"""Many trainings, one run directory each, resumable; `ressl pretrain -m` is the plainest case."""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ressl_plugin import config, data, run
from ressl_plugin.config import yaml_files
from ressl_plugin.config.diff import config_differences
from ressl_plugin.data import identity
from ressl_plugin.train.settling import settle_stem, settled
from ressl_plugin.utils import files
from ressl_plugin.utils.devices import device_count, runnable
from ressl_plugin.utils.errors import RankLost, RunFault, UserError

log = logging.getLogger(__name__)

# what `settled` makes of a config on one machine and not on another
OF_A_MACHINE = ("accelerator", "devices", "strategy", "sync_batchnorm", "precision")


def combinations(overrides: list[str]) -> list[list[str]]:
    """Hydra's sweep grammar (`a=1,2`, `a=choice(1,2)`, `a=range(1,4)`) as lists of overrides.

    Raises:
        UserError: an override that is not in the grammar.
    """
    for reason in filter(None, map(config.ungrammatical, overrides)):
        raise UserError(reason)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        choices = [_choices(one) for one in parsed]
    except HydraException as error:  # glob(), too, is found when it is asked for its values
        raise UserError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from None
    return [list(cell) for cell in itertools.product(*choices)]


def _choices(override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line]
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def short(word: str) -> str:
    """`a.b.key=value` as `key=value`."""
    return word.split(".", word.partition("=")[0].count("."))[-1]


def multirun(target: str, overrides: list[str]) -> list[Path]:
    """Train every cell, unless it is finished, in `<run_dir>/<key=value,…>` of the swept keys.

    Raises:
        UserError: nothing is swept, a cell's config cannot work, or a cell of another config is
            there.
    """
    cells = combinations(overrides)
    if len(cells) < 2:
        raise UserError("--multirun: nothing to sweep; give several values, as seed=1,2")
    configs = []
    for cell in cells:
        cfg = config.finish(config.load(target, cell))
        swept = [word for word in cell if word not in overrides]
        cfg.run_dir = str(run.directory(cfg) / ",".join(map(short, swept)))
        cfg.resume = True
        same_experiment(cfg)
        configs.append(cfg)
    report(each(configs, train), configs)
    return [Path(cfg.run_dir) for cfg in configs]


def each(configs: list[DictConfig], work) -> list[str]:
    """`work(cfg)` for every cell, whatever becomes of the others; the places of those that failed.

    A fault of a run or of its evaluation (a loss not finite, a worker killed, no memory) is said
    and ends its cell alone; a mistake, an interruption, a lost rank and a bug end all.
    """
    from ressl_plugin.train.faults import explain

    failed = []
    for number, cfg in enumerate(configs, 1):
        print(f"[{number}/{len(configs)}] {cfg.run_dir}", flush=True)
        try:
            work(cfg)
        except RankLost:
            raise
        except RunFault as error:
            reason = str(error)
        except (RuntimeError, OSError, MemoryError) as error:
            reason = explain(error)
            if reason is None:
                raise
        else:
            continue
        log.error("%s: %s", cfg.run_dir, reason)
        failed.append(cfg.run_dir)
    return failed


def report(failed: list[str], configs: list) -> None:
    """Raise RunFault if some of the cells failed, as `each` says."""
    if failed:
        raise RunFault(
            f"{len(failed)} of {len(configs)} cells failed: {', '.join(failed)}; the others are "
            "finished, the same command tries these again"
        )


def check_images(configs: list[DictConfig], labels: bool = True) -> None:
    """Raise UserError where a cell's images are not there, or the labels that evaluators need."""
    splits = ("train", "val") if labels else ("pretrain",)
    for cfg in {OmegaConf.to_yaml(cfg.data): cfg for cfg in configs}.values():
        for split in splits:
            data.build_dataset(cfg, split, need_labels=labels)


def _images_moved(cfg: DictConfig) -> None:
    """A finished run's config says where its images lie now, for what evaluates it."""
    file = Path(cfg.run_dir) / "config.yaml"
    if not file.is_file():
        return
    there = OmegaConf.create(yaml_files.read(file))
    new = {key: cfg.data[key] for key in ("train_path", "val_path", "num_workers")}
    if any(there.data.get(key) != value for key, value in new.items()):
        there.data = OmegaConf.merge(there.data, new)
        files.replace(file, OmegaConf.to_yaml(there).encode())


def same_experiment(cfg: DictConfig, planning: bool = False) -> None:
    """A cell that is there must have been made with this config, accelerator and all.

    What the machine decides is left out where no checkpoint has been made with it.

    Args:
        planning: leave it out of every cell: another machine may train them.

    Raises:
        UserError: the keys that differ, unless `resume_force` says to go on with the new ones.
    """
    file = Path(cfg.run_dir) / "config.yaml"
    if cfg.resume_force or not file.is_file():
        return
    there = OmegaConf.create(yaml_files.read(file))
    if planning or not run.has_checkpoint(Path(cfg.run_dir)):
        found = config_differences(there, settle_stem(copy.deepcopy(cfg), there))
        differing = [one for one in found if one.partition(":")[0] not in OF_A_MACHINE]
    else:
        differing = config_differences(there, settled(cfg, there))
    place = OmegaConf.select(there, "data.train_path")
    if not differing and cfg.data.train_path != place:  # it may be a copy
        differing = _other_data(cfg, place)
    if differing:
        raise UserError(
            f"{cfg.run_dir} was made with another config: {'; '.join(differing)}; "
            "set them back, give another place for the runs, or resume_force=true"
        )


def _other_data(cfg: DictConfig, place: str | None) -> list[str]:
    """Whether data.train_path holds other images than the run there was trained on."""
    trained_on = identity.of_run(cfg.run_dir)
    why = "which is not known to hold the same images"
    if trained_on is not None:
        from ressl_plugin.data.training import training_set

        why = identity.differences(trained_on, data.identify(training_set(cfg)))
    return [f"data.train_path: {place} -> {cfg.data.train_path}, {why}"] if why else []


def train(cfg: DictConfig, meter: bool = False) -> None:
    """Train one cell unless it is finished. `meter`: images/s and peak memory to results.json.

    Lightning starts the ranks of several devices by running the whole command again in each, once
    a process; so each such training is a command of its own.

    Raises:
        UserError: started under torchrun or srun, whose processes would all sweep.
        RunFault: the training had to stop.
        SystemExit: the training in its own process was a mistake or interrupted; it has said why.
    """
    launcher = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS"
    if int(os.environ.get(launcher) or 1) > 1:
        raise UserError(
            "this command starts its own trainings, one after the other; run it without torchrun "
            "or srun (devices=N uses the GPUs of this machine)"
        )
    if finished(run.directory(cfg), cfg.max_epochs):
        _images_moved(cfg)
        return
    if cfg.resume is True:  # of what there is: nobody has asked for it
        cfg.resume = run.held(run.directory(cfg)) is not None
    if device_count(runnable(cfg).devices, torch.cuda.device_count()) == 1:
        from ressl_plugin.train.pretrain import pretrain

        gc.collect()  # the cell before, with its images, before its memory counts as this one's
        pretrain(cfg, meter=meter)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(OmegaConf.to_yaml(cfg))
        command = [sys.executable, "-m", "ressl_plugin.cli", "pretrain", str(file)]
        code = wait_for([*command, *["--meter"] * meter])
    if code == RunFault.status:
        raise RunFault("the training failed, for the reason above")
    if code:
        raise SystemExit(code)


def wait_for(command: list[str]) -> int:
    """The exit status of a command that hears this one's signals, and has its time to save.

    It is a session of its own: else Ctrl-C would reach it twice, from the terminal and from here,
    and the second one means at once.
    """
    child = subprocess.Popen(command, start_new_session=True)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it, for the child, too
        numbers.append(signal.SIGHUP)
    pass_on = lambda number, _: child.send_signal(number)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:  # it could not say so itself
        log.error("the training was killed by %s", signal.Signals(-code).name)
    return code if code >= 0 else 128 - code


def finished(folder: Path, epochs: int) -> bool:
    """Whether the run there has trained all its epochs, the last one to its end."""
    from ressl_plugin.run import checkpoint
    from ressl_plugin.run.checkpoint_schema import check_weights

    if not run.has_checkpoint(folder):
        return False
    state = checkpoint.load(folder)
    check_weights(folder, state)
    if "loops" not in state:  # written without training: an import, an untrained backbone
        return state.get("epoch", 0) + 1 >= epochs
    return (run.epochs_trained(state) or 0) >= epochs
