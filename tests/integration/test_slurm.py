"""The batch script puts back in the queue what was stopped in time, and nothing else."""

import os
import subprocess
from pathlib import Path

import pytest

from ressl_plugin.cli.main import main
from ressl_plugin.train import checkpointing

ROOT = Path(__file__).resolve().parents[2]
PRINTS = "printf 'name: x\\nrun_dir: null\\n'"
SAVES = "mkdir -p runs/x; echo > runs/x/new; mv runs/x/new runs/x/last.ckpt"


def submitted(folder, srun, restarts=0, ressl=PRINTS):
    """Status of the script, where SLURM's programs and ours do no more than this."""
    for name, body in {
        "srun": f'echo "$@" > {folder}/srun; {srun}',
        "scontrol": f'echo "$@" > {folder}/scontrol',
        "ressl": ressl,
    }.items():
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "SLURM_RESTART_COUNT": f"{restarts}",
        "SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    script = ROOT / "scripts" / "slurm" / "pretrain.sbatch"
    words = ["bash", script, "imagenet/ressl", "name=x"]
    return subprocess.run(words, env=env, cwd=folder).returncode


@pytest.mark.parametrize(
    ("status", "restarts", "saves", "requeued", "end"),
    [
        (0, 0, True, False, 0), (3, 0, True, False, 3), (143, 0, True, False, 143),
        (os.EX_TEMPFAIL, 9, True, True, 0), (os.EX_TEMPFAIL, 4, False, True, 0),
        (os.EX_TEMPFAIL, 5, False, False, os.EX_TEMPFAIL),
        (138, 4, False, True, 0), (138, 5, False, False, 138),
        (137, 9, True, True, 0), (137, 4, False, True, 0), (137, 5, False, False, 137),
    ],
)  # fmt: skip
def test_slurm_script_requeues_what_can_go_on(tmp_path, status, restarts, saves, requeued, end):
    subprocess.run(SAVES, shell=True, cwd=tmp_path)
    srun = f"{SAVES}; exit {status}" if saves else f"exit {status}"
    assert submitted(tmp_path, srun, restarts) == end
    words = (tmp_path / "srun").read_text()
    assert "--ntasks=8" in words and "devices=4 num_nodes=2" in words and "resume=true" in words
    asked = tmp_path / "scontrol"
    assert asked.exists() == requeued
    if requeued:
        assert asked.read_text() == "requeue 17\n"


@pytest.mark.parametrize(
    ("run_dir", "folder"),
    [("runs/elsewhere", "runs/elsewhere"), ("~/mine", "mine"), ("runs/a: b", "runs/a: b")],
)
def test_slurm_script_asks_the_command_where_the_run_goes(
    tmp_path, monkeypatch, capsys, run_dir, folder
):
    """Of what the command itself prints it reads the directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = ["pretrain", "imagenet/ressl", "name=x", "--cfg"]
    assert main([*asked, f'run_dir="{run_dir}"']) == 0
    (tmp_path / "printed").write_text(capsys.readouterr().out)
    ressl = f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/printed'
    saves = SAVES.replace("runs/x", f"'{folder}'").replace("'/new", "/new'")
    saves = saves.replace("'/last.ckpt", "/last.ckpt'")
    assert submitted(tmp_path, f"{saves}; exit 75", restarts=5, ressl=ressl) == 0
    assert (tmp_path / "asked").read_text().split() == asked
    assert (tmp_path / "scontrol").exists()


def test_slurm_script_does_not_start_what_is_a_mistake(tmp_path):
    assert submitted(tmp_path, "exit 0", ressl="exit 2") == 2
    assert not (tmp_path / "srun").exists()


def test_slurm_script_and_the_run_agree_on_the_status():
    assert checkpointing.Preempted().code == os.EX_TEMPFAIL == 75
    text = (ROOT / "scripts" / "slurm" / "pretrain.sbatch").read_text()
    assert "^(75|137|138)$" in text and "--signal=USR1@" in text
