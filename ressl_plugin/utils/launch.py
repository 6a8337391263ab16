"""What torchrun, srun or Lightning has started, told before there is a process group."""

from __future__ import annotations

import os

from lightning.pytorch.plugins.environments import SLURMEnvironment

from ressl_plugin.utils.errors import UserError


def launched_first() -> bool:
    """Whether this is rank 0, before there is a process group; True if nothing launched it.

    torchrun says it outright. Else every name that is set must say so: Lightning's own launcher
    sets NODE_RANK and LOCAL_RANK, srun SLURM_PROCID, and below a shell that srun has started
    (`srun --pty bash`) SLURM_PROCID is 0 in all of Lightning's processes.
    """
    names = ("RANK",) if "RANK" in os.environ else ("NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name) or 0) == 0 for name in names)


def check_launch(devices: int, nodes: int) -> None:
    """Whether as many processes were launched as the config asks for.

    Raises:
        UserError: torchrun or srun started another number; each would train a run of its own.
            Several nodes, and nothing that says where the others are: all would wait for them.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        launcher, here, all_ = "torchrun", int(env["LOCAL_WORLD_SIZE"]), int(env["WORLD_SIZE"])
    elif SLURMEnvironment.detect() and "SLURM_STEP_ID" in env:
        all_ = int(env["SLURM_NTASKS"])
        launcher, here = "srun", all_ // int(env.get("SLURM_NNODES", 1))
    else:
        if nodes > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= env.keys():
            raise UserError(
                f"config: num_nodes={nodes}: nothing started this on several nodes; use torchrun "
                f"--nnodes={nodes} or srun, or set MASTER_ADDR and NODE_RANK on each node"
            )
        return
    if (here, all_) != (devices, devices * nodes):
        raise UserError(
            f"config: devices={devices} num_nodes={nodes}: {launcher} started {all_} processes, "
            f"{here} a node; set devices={here} num_nodes={all_ // here}"
        )
