"""`ressl pretrain -m`: every combination of `key=a,b`, one run directory each, resumable."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ressl_plugin import config, results, run
from ressl_plugin.errors import UserError

log = logging.getLogger(__name__)


def combinations(overrides: list[str]) -> list[list[str]]:
    """Hydra's sweep grammar (`a=1,2`, `a=choice(1,2)`, `a=range(1,4)`) as lists of overrides."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from None
    choices = []
    for one in parsed:
        if one.is_sweep_override():
            key = one.get_key_element()
            choices.append([f"{key}={value}" for value in one.sweep_string_iterator()])
        else:
            choices.append([one.input_line])
    return [list(cell) for cell in itertools.product(*choices)]


def swept(cell: list[str], overrides: list[str]) -> list[str]:
    """The words of a cell that are not the same in every cell."""
    return [word for word in cell if word not in overrides]


def multirun(target: str, overrides: list[str]) -> list[Path]:
    """Train every cell; a finished one is not run again, an interrupted one is resumed.

    Run directories are `<run_dir>/<key=value,…>` of the swept keys.

    Raises:
        UserError: nothing is swept, or a cell's config cannot work.
    """
    from ressl_plugin.pretrain import pretrain

    cells = combinations(overrides)
    if len(cells) < 2:
        raise UserError("--multirun: nothing to sweep; give several values, as tau=0.1,0.2")
    folders = []
    for number, cell in enumerate(cells, 1):
        cfg = config.finish(config.load(target, cell))
        words = [w.split(".")[-1] for w in swept(cell, overrides)]
        cfg.run_dir = str(run.directory(cfg) / ",".join(words))
        cfg.resume = True
        print(f"[{number}/{len(cells)}] {cfg.run_dir}")
        if not finished(Path(cfg.run_dir), cfg.max_epochs):
            pretrain(cfg)
        folders.append(Path(cfg.run_dir))
    return folders


def finished(folder: Path, epochs: int) -> bool:
    """Whether the run there has trained all its epochs."""
    from ressl_plugin import checkpoint

    if not run.has_checkpoint(folder):
        return False
    return checkpoint.load(folder)["epoch"] + 1 >= epochs


def evaluated(folder: Path, evaluator: str) -> bool:
    """Whether results.json of a run has a record of this evaluator."""
    return folder.is_dir() and any(r["evaluator"] == evaluator for r in results.read(folder))
