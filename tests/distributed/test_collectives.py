"""Two and three processes compute what one does: keys, queue, loss, means, batch norm."""

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from helpers import make_config, random_batches
from ranks import on_ranks
from torch import nn

from ressl_plugin.method.loss import relational_loss
from ressl_plugin.method.queue import FeatureQueue, enqueue
from ressl_plugin.method.ressl import ReSSL
from ressl_plugin.utils import distributed
from ressl_plugin.utils.average_meter import AverageMeter
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.launch import check_launch, launched_first

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

# What crosses ranks: three processes ------------------------------------------------------------

RANKS, K, D = 3, 17, 4
SIZES = [5, 2, 3]  # of an uneven last batch


def unit(n, seed):
    g = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(n, D, generator=g), dim=1)


def shuffled_teacher():
    torch.manual_seed(7)
    return ReSSL(make_config(batchnorm__mode="shuffle")).double()


def images(n, seed):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).double()


def crossing():
    """Everything that the parent then compares with one process's computation."""
    r, out = dist.get_rank(), {}
    out["even"] = distributed.gather(unit(4, r), even=True)
    out["asked"] = distributed.gather(unit(4, r))
    out["uneven"] = distributed.gather(unit(SIZES[r], r))
    out["order"] = distributed.gather(torch.tensor([[r, 0], [r, 1]]))
    out["bad_on_1"] = bool(distributed.all_true(torch.tensor(r != 1)))
    out["good"] = bool(distributed.all_true(torch.tensor(True)))

    torch.manual_seed(r)  # the first rows are drawn alike all the same
    queue, own = FeatureQueue(K, D), FeatureQueue(K, D, gather=False)
    out["queues"] = [(queue.rows.clone(), 0)]
    for step in range(4):
        keys = unit(4 if step < 3 else SIZES[r], 10 * step + r)
        queue.enqueue(keys)
        own.enqueue(keys)
        out["queues"].append((queue.rows.clone(), int(queue.ptr)))
    out["own_keys"] = torch.equal(own.rows[:4], unit(4, r))

    z_s = unit(4, 100 + r).requires_grad_()
    loss = relational_loss(z_s, unit(4, 200 + r), unit(K, 3), 0.1, 0.04).loss
    loss.backward()  # DDP averages gradients, so each is that of a mean over ranks
    out["loss"], out["gradient"] = (
        float(distributed.all_reduce(loss.detach()) / RANKS),
        z_s.grad / RANKS,
    )

    means = AverageMeter()
    for step in range(2):
        n = SIZES[r] + step
        means.add({"a": torch.tensor(float(r + step)), "b": torch.tensor(1.0)}, n)
        means.add({"labelled": torch.tensor(float(r))}, torch.tensor(r), "val")
    out["means"] = [means.pop(), means.pop("val"), means.pop("none")]

    pair = [torch.full((2, 2), float(r)), torch.full((3,), 10.0 * r)]
    distributed.average_(pair)
    out["average"] = pair
    out["same"] = torch.tensor([float(r + 1)])
    distributed.broadcast([out["same"]])

    model = shuffled_teacher()
    torch.manual_seed(r)  # ranks draw different permutations: rank 0's counts
    out["shuffled"] = model.momentum_forward(images(4, r))
    torch.manual_seed(r)
    ask, distributed._sizes = distributed._sizes, None  # a promise: nobody asks
    out["promised"] = model.momentum_forward(images(4, r), even=True)
    distributed._sizes = ask
    torch.manual_seed(r)
    share, restore = distributed.shuffle(unit(SIZES[r], r))
    out["there_and_back"] = restore(share * 2)

    distributed.ask_every = lambda device: 3
    asked = distributed.AnyRank()
    out["told"] = [asked.says(r == 1, torch.device("cpu")) for _ in range(5)]
    out["at_once"] = distributed.AnyRank().says(r == 1, torch.device("cpu"), now=True)
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    found = on_ranks(RANKS, crossing, tmp_path_factory.mktemp("crossing"), group=True)
    assert all(isinstance(f, dict) for f in found), found
    return found


def test_gathered_rows_come_in_rank_order(ranks):
    for out in ranks:
        expected = torch.cat([unit(4, r) for r in range(RANKS)])
        assert torch.equal(out["even"], expected) and torch.equal(out["asked"], expected)
        uneven = torch.cat([unit(n, r) for r, n in enumerate(SIZES)])
        assert torch.equal(out["uneven"], uneven)
        assert out["order"].tolist() == [[r, i] for r in range(RANKS) for i in range(2)]


def test_queue_is_alike_on_all_ranks_at_every_step_in_global_batch_order(ranks):
    queue, ptr = FeatureQueue(K, D).rows, torch.zeros(1, dtype=torch.long)
    for step in range(-1, 4):
        if step >= 0:
            sizes = [4] * RANKS if step < 3 else SIZES
            keys = torch.cat([unit(n, 10 * step + r) for r, n in enumerate(sizes)])
            enqueue(queue, ptr, keys)
        for out in ranks:
            assert torch.equal(out["queues"][step + 1][0], queue), step
            assert out["queues"][step + 1][1] == int(ptr) and out["own_keys"]


def test_loss_of_a_global_batch_is_one_processs(ranks):
    z_s = torch.cat([unit(4, 100 + r) for r in range(RANKS)]).requires_grad_()
    z_t = torch.cat([unit(4, 200 + r) for r in range(RANKS)])
    loss = relational_loss(z_s, z_t, unit(K, 3), 0.1, 0.04).loss
    loss.backward()
    for r, out in enumerate(ranks):
        assert out["loss"] == pytest.approx(float(loss), rel=1e-6)
        own = z_s.grad[4 * r : 4 * r + 4]
        torch.testing.assert_close(out["gradient"], own, rtol=1e-5, atol=1e-6)


def test_means_weigh_ranks_by_their_images(ranks):
    weights = [(n + s, r + s) for r, n in enumerate(SIZES) for s in range(2)]
    a = sum(n * v for n, v in weights) / sum(n for n, _ in weights)
    for out in ranks:
        train, val, none = out["means"]
        assert {k: float(v) for k, v in train.items()} == pytest.approx({"a": a, "b": 1.0})
        assert float(val["labelled"]) == pytest.approx((0 * 0 + 1 * 1 + 2 * 2) / 3)
        assert none == {}


def test_decisions_and_averages(ranks):
    for out in ranks:
        assert (out["bad_on_1"], out["good"]) == (False, True)
        assert out["average"][0].tolist() == [[1.0, 1.0]] * 2
        assert out["average"][1].tolist() == [10.0] * 3
        assert out["same"].tolist() == [1.0]


def test_shuffled_batchnorm_is_the_references(ranks):
    """Permute the global batch, forward each share with its own statistics, un-permute."""
    everything = torch.cat([images(4, r) for r in range(RANKS)])
    torch.manual_seed(0)
    order = torch.randperm(len(everything))
    z = torch.empty(len(everything), 16)
    for share in order.chunk(RANKS):
        alone = shuffled_teacher()
        alone.cfg.batchnorm.mode = "group"
        z[share] = alone.momentum_forward(everything[share])["z"]
    unshuffled = shuffled_teacher()
    unshuffled.cfg.batchnorm.mode = "group"
    for r, out in enumerate(ranks):
        torch.testing.assert_close(out["shuffled"]["z"], z[4 * r : 4 * r + 4], rtol=0, atol=1e-6)
        own = unshuffled.momentum_forward(images(4, r))["z"]
        assert (own - out["shuffled"]["z"]).abs().max() > 1e-3  # the shuffle does matter
        assert torch.equal(out["there_and_back"], 2 * unit(SIZES[r], r))
        assert torch.equal(out["promised"]["z"], out["shuffled"]["z"])


def test_a_yes_of_one_rank_is_remembered_by_all(ranks):
    for out in ranks:
        assert out["told"] == [False, False, True, True, True]
        assert out["at_once"]


def test_only_the_last_batch_of_an_epoch_asks_for_sizes(monkeypatch):
    promised, shuffle = [], distributed.shuffle

    def watched(x, even=False):
        promised.append(even)
        return shuffle(x, even)

    monkeypatch.setattr(distributed, "shuffle", watched)
    small = {"name": "timm:resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}, "stem": "auto"}
    model = ReSSL(make_config(backbone=small, batchnorm__mode="shuffle"))
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(random_batches(3, 8), batch_size=None))
    assert promised == [True, True, False]


# Launchers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "devices", "nodes", "hint"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, 1, 1,
         "devices=2 num_nodes=2"),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, 2, 2, None),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0"}, 8, 1,
         "devices=4 num_nodes=2"),
        ({"MASTER_ADDR": "node0", "NODE_RANK": "1"}, 8, 4, None),
    ],
)  # fmt: skip
def test_a_launcher_with_another_number_of_processes(monkeypatch, env, devices, nodes, hint):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if hint is None:
        check_launch(devices, nodes)
        return
    with pytest.raises(UserError, match=hint):
        check_launch(devices, nodes)


@pytest.mark.parametrize(
    ("env", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
        # under `srun --pty bash` Lightning starts the ranks, and all inherit the shell's number
        ({"SLURM_PROCID": "0", "NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "0", "NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, True),
        ({"SLURM_PROCID": "4", "SLURM_LOCALID": "0", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "1", "RANK": "0", "LOCAL_RANK": "0"}, True),
    ],
)
def test_who_is_first(monkeypatch, env, first):
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert launched_first() is first
