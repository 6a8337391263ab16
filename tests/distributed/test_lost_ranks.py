"""One of three ranks is killed: the others end soon, with 75 and a line; started again, the run
comes to the same weights, bit for bit."""

import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from commands import command
from helpers import image_folder
from ranks import on_ranks, results, started
from toy_run import equal

from ressl_plugin.run import checkpoint

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

RANKS, SECONDS = 3, 60
MOMENTS = ("step", "gather", "save", "evaluation")


def words(folder, where):
    """12 steps of 3 x 4 images, a save every second one, an evaluation after each epoch of 6."""
    return command(
        folder, where, f"data.val_path={folder}/val", "optimizer.batch_size=4", "devices=3",
        "strategy=ddp", "precision=32-true", "knn_eval.k=3", "resume=true",
    )  # fmt: skip


def work(words, where, kill):
    """The command's exit status. kill: (rank, moment, its how manieth, seconds after it began)."""
    from ressl_plugin.cli.main import main
    from ressl_plugin.method.ressl import ReSSL
    from ressl_plugin.train.checkpointing import CheckpointCallback
    from ressl_plugin.utils import distributed

    rank, count = os.environ["RANK"], [0]
    sys.stderr = open(f"{where}/err{rank}.txt", "w")  # noqa: SIM115
    logging.getLogger().handlers.clear()

    def watched(function):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == kill[2]:
                end = lambda: os.kill(os.getpid(), signal.SIGKILL)
                threading.Timer(kill[3], end).start()
            return function(*args, **kwargs)

        return call

    if kill and rank == str(kill[0]):
        owner, name = {
            "step": (ReSSL, "training_step"), "gather": (distributed, "gather"),
            "save": (CheckpointCallback, "_save"), "evaluation": (ReSSL, "validation_step"),
        }[kill[1]]  # fmt: skip
        setattr(owner, name, watched(getattr(owner, name)))
    try:
        code = main(words)
    finally:
        sys.stderr.flush()
    watchers = [thread for thread in threading.enumerate() if thread.name == "watchdog"]
    for thread in watchers:
        thread.join(1)
    return "still watched" if any(thread.is_alive() for thread in watchers) else code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), per_class=24)


def run(folder, where, kill=None):
    """(exit status or signal, standard error) of each rank, and the seconds that the last needed
    after the one that was killed."""
    shutil.rmtree(where / "ranks", ignore_errors=True)
    where.mkdir(exist_ok=True)
    processes = started(
        RANKS, work, where / "ranks", words(folder, where / "run"), str(where), kill
    )
    if kill:
        processes[kill[0]].join()
        died = time.monotonic()
    for process in processes:
        process.join(SECONDS if kill else None)
        process.kill()
    found = results(RANKS, where / "ranks")
    codes = [p.exitcode or code for p, code in zip(processes, found)]
    errors = [(where / f"err{r}.txt").read_text() for r in range(RANKS)]
    return codes, errors, time.monotonic() - died if kill else 0


@pytest.fixture(scope="module")
def reference(folder, tmp_path_factory):
    where = tmp_path_factory.mktemp("reference")
    codes, errors, _ = run(folder, where)
    assert codes == [0] * RANKS, errors
    return checkpoint.load(where / "run")


def killed_and_started_again(folder, where, kill, reference):
    codes, errors, seconds = run(folder, where, kill)
    expected = [os.EX_TEMPFAIL] * RANKS
    expected[kill[0]] = -signal.SIGKILL
    assert codes == expected and seconds < SECONDS, (kill, codes, errors)
    for rank in set(range(RANKS)) - {kill[0]}:
        lines = [line for line in errors[rank].splitlines() if line.startswith("ressl: ")]
        assert len(lines) == 1 and f"rank {rank}: another rank is gone" in lines[0], errors[rank]
        assert "Traceback" not in errors[rank]
    codes, errors, _ = run(folder, where)
    assert codes == [0] * RANKS, errors
    found = checkpoint.load(where / "run")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(found[part], reference[part]), (kill, part)


@pytest.mark.parametrize("kill", [(1, "gather", 7, 0.0), (0, "evaluation", 2, 0.01)])
def test_a_rank_is_killed(folder, tmp_path, reference, kill):
    killed_and_started_again(folder, tmp_path, kill, reference)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_random_ranks_at_random_moments(folder, tmp_path, reference):
    draw = random.Random(0)
    for number in range(20):
        moment = MOMENTS[number % len(MOMENTS)]
        which = draw.randint(1, {"save": 5, "evaluation": 6}.get(moment, 10))
        kill = (draw.randrange(RANKS), moment, which, draw.uniform(0, 0.05))
        killed_and_started_again(folder, tmp_path / str(number), kill, reference)


ONCE = """
import os, signal, sys
from ressl_plugin.cli.main import main
from ressl_plugin.method.ressl import ReSSL

step = ReSSL.training_step

def ends_once(self, batch, batch_idx):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and self.global_rank == 1 and self.trainer.global_step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)

ReSSL.training_step = ends_once
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_starts_the_ranks_again(folder, tmp_path, reference):
    (tmp_path / "program.py").write_text(ONCE)
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3",
        "--max-restarts=1", tmp_path / "program.py",
    ]  # fmt: skip
    found = subprocess.run(
        [*launcher, *words(folder, tmp_path / "run")], capture_output=True, text=True
    )
    assert found.returncode == 0 and "another rank is gone" in found.stderr, found.stderr
    end = checkpoint.load(tmp_path / "run")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(end[part], reference[part]), part


def first_of_three(port, words, where):
    """The command's exit status on rank 0, whose launcher has given it this port."""
    rank = {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}
    os.environ.update(rank, MASTER_PORT=str(port))
    return work(words, where, None)


def test_a_port_that_is_taken_is_no_lost_rank(folder, tmp_path):
    """Nobody has been there yet; started again, it would be the same."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        its = taken.getsockname()[1], words(folder, tmp_path / "run"), str(tmp_path)
        (code,) = on_ranks(1, first_of_three, tmp_path / "ranks", *its)
    text = (tmp_path / "err0.txt").read_text()
    lines = [line for line in text.splitlines() if line.startswith("ressl: ")]
    assert code == 3 and len(lines) == 1, text
    assert "cannot reach each other" in lines[0] and "EADDRINUSE" in lines[0]
