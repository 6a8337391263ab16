"""`ressl import`: importing.py into a run directory."""

from __future__ import annotations

import logging
from pathlib import Path

from ressl_plugin import config, data, run
from ressl_plugin.run import checkpoint, importing
from ressl_plugin.train.host_config import host_config
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)


def import_run(checkpoint_file: Path, target: str, overrides: list[str], out: Path) -> Path:
    """Another code's checkpoint as a run directory that every evaluator opens.

    It holds config.yaml, args.json (as the host's evaluators want it) and last.ckpt with the
    weights under the host's names; not the optimizer, so it cannot be resumed. The recipe `target`
    describes the networks and the data; importing.import_checkpoint says whose are understood.
    """
    cfg = config.finish(config.load(target, overrides))
    cfg.run_dir, cfg.resume = str(out), False
    if there := run.held(Path(out)):
        raise UserError(f"--out {out}: holds {there}; give a new directory")
    found = importing.import_checkpoint(checkpoint_file, cfg)
    if found.origin == "MoCo" and cfg.method == "ressl":
        raise UserError(
            f"{checkpoint_file}: these are MoCo's weights, and method=ressl would set them beside "
            "ReSSL's numbers in every table; add method=mocov2plus"
        )
    log.info("%s", found.report())
    weight = found.state_dict.get("classifier.weight")  # (C, d)
    classes = None if weight is None or weight.dim() != 2 else len(weight)
    classes = classes or cfg.data.num_classes
    folder = run.start(cfg, host_config(cfg, data.view_recipe(cfg), classes))
    state = {
        "state_dict": found.state_dict,
        "epoch": 0,
        "global_step": 0,
        "imported": {"origin": found.origin, "file": Path(checkpoint_file).name},
    }
    checkpoint.save(folder / checkpoint.NAME, state)
    return folder
