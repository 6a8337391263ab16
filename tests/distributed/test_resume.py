"""Two processes: every rank's generators come back, and a signal to one stops both alike."""

import os
import signal
import socket

import pytest
from lightning.pytorch.strategies import DDPStrategy
from toy_run import STEPS, PositionedLoader, losses, same_run, train

from ressl_plugin.run import checkpoint
from ressl_plugin.train import checkpointing
from ressl_plugin.utils import distributed

pytestmark = pytest.mark.distributed
RANKS = 2


def ranks(run, **kwargs) -> list[int]:
    """Train in two processes on this machine; their exit codes in rank order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(RANKS):
        pid = os.fork()
        if pid == 0:
            os.environ.update(
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(RANKS),
                NODE_RANK="0", LOCAL_RANK=str(rank), RANK=str(rank),
            )  # fmt: skip
            code = 3
            try:
                strategy = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False)
                train(run, PositionedLoader, devices=RANKS, strategy=strategy, **kwargs)
                code = 0
            except SystemExit as error:
                code = error.code
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def only_on(rank, number):
    def fault(loss):
        if int(os.environ["LOCAL_RANK"]) == rank:
            os.kill(os.getpid(), number)
        return loss

    return fault


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("reference")
    assert ranks(run) == [0, 0]
    assert losses(run, 0) != losses(run, 1)
    return run


@pytest.mark.parametrize("kill_at", [3, 5])
def test_killed_and_resumed(tmp_path, uninterrupted, kill_at):
    assert 0 not in ranks(tmp_path, kill_at=kill_at)
    assert len(checkpoint.load(tmp_path)[checkpointing.RNG]) == RANKS
    assert ranks(tmp_path) == [0, 0]
    assert same_run(tmp_path, uninterrupted)
    assert losses(tmp_path, 1) == losses(uninterrupted, 1)


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path, uninterrupted, rank):
    fault = (7, only_on(rank, signal.SIGTERM))
    assert ranks(tmp_path, every=0, frequency=100, fault=fault) == [143, 143]
    assert checkpoint.load(tmp_path)["global_step"] == 8
    assert ranks(tmp_path, every=0, frequency=100) == [0, 0]
    assert len(losses(tmp_path)) == STEPS
    assert same_run(tmp_path, uninterrupted)
    assert losses(tmp_path, 1) == losses(uninterrupted, 1)


def test_a_stop_waits_for_a_step_that_can_be_resumed_from(tmp_path, monkeypatch):
    """On GPUs ranks ask every few steps only: here in a step within an accumulation."""
    monkeypatch.setattr(distributed, "ask_every", lambda device: 3)
    fault = (1, only_on(1, signal.SIGUSR1))
    settings = {"every": 0, "frequency": 100, "accumulate_grad_batches": 2}
    assert ranks(tmp_path, fault=fault, **settings) == [os.EX_TEMPFAIL] * RANKS
    assert checkpoint.load(tmp_path)["global_step"] == 2, "batch 4, not the end of the epoch"


def test_a_full_disk_on_rank_0_is_news_to_all(tmp_path, monkeypatch):
    """No rank waits for ever at a barrier that the failing one has left."""
    save, count = checkpoint.save, 0

    def sometimes(path, state):
        nonlocal count
        count += 1
        if count == 2:
            raise checkpoint.NotSaved("no space left for it")
        return save(path, state)

    monkeypatch.setattr(checkpoint, "save", sometimes)
    assert ranks(tmp_path) == [0, 0]
    assert checkpoint.load(tmp_path)["global_step"] == STEPS
