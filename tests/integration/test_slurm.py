"""The batch script puts back in the queue what was stopped in time, and nothing else."""

import os
import subprocess
from pathlib import Path

import pytest

from ressl_plugin.train import checkpointing

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("status", "restarts", "requeued", "end"),
    [
        (0, 0, False, 0), (os.EX_TEMPFAIL, 9, True, 0), (138, 0, True, 0), (3, 0, False, 3),
        (143, 0, False, 143), (137, 4, True, 0), (137, 5, False, 137),
    ],
)  # fmt: skip
def test_slurm_script_requeues_what_was_stopped_in_time(tmp_path, status, restarts, requeued, end):
    for name, body in {
        "srun": f'echo "$@" > {tmp_path}/srun; exit {status}',
        "scontrol": f'echo "$@" > {tmp_path}/scontrol',
    }.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_RESTART_COUNT": f"{restarts}",
        "SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    script = ROOT / "scripts" / "slurm" / "pretrain.sbatch"
    found = subprocess.run(["bash", script, "imagenet/ressl", "run_dir=x"], env=env).returncode
    assert found == end
    words = (tmp_path / "srun").read_text()
    assert "--ntasks=8" in words and "devices=4 num_nodes=2" in words and "resume=true" in words
    asked = tmp_path / "scontrol"
    assert asked.exists() == requeued
    if requeued:
        assert asked.read_text() == "requeue 17\n"


def test_slurm_script_and_the_run_agree_on_the_status():
    assert checkpointing.Preempted().code == os.EX_TEMPFAIL == 75
    text = (ROOT / "scripts" / "slurm" / "pretrain.sbatch").read_text()
    assert '"$code" -eq 75' in text and "--signal=USR1@" in text
