"""Two and three processes compute what one does: keys, queue, loss, teacher, metrics, shards."""

import importlib.util

import pytest
import torch
import torch.distributed as dist
from helpers import VIEW, image_folder, make_config
from ranks import on_ranks
from torch import nn

from ressl_plugin import checkpoint, config, data, distributed, method, registry
from ressl_plugin.data.batches import BatchedLoader, WorkerLoader
from ressl_plugin.errors import UserError
from ressl_plugin.faults import RunFault
from ressl_plugin.loss import relational_loss
from ressl_plugin.means import Means
from ressl_plugin.method import ReSSL
from ressl_plugin.pretrain import pretrain
from ressl_plugin.queue import FeatureQueue
from ressl_plugin.views import recipe

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
    out["bad_on_1"] = bool(distributed.everywhere(torch.tensor(r != 1)))
    out["good"] = bool(distributed.everywhere(torch.tensor(True)))

    queue, ptr = torch.zeros(K, D), torch.zeros(1, dtype=torch.long)
    out["queues"] = []
    for step in range(4):
        n = 4 if step < 3 else SIZES[r]
        FeatureQueue(queue, ptr).enqueue(distributed.gather(unit(n, 10 * step + r)))
        out["queues"].append((queue.clone(), int(ptr)))

    z_s = unit(4, 100 + r).requires_grad_()
    loss = relational_loss(z_s, unit(4, 200 + r), unit(K, 3), 0.1, 0.04).loss
    loss.backward()  # DDP averages gradients, so each is that of a mean over ranks
    out["loss"], out["gradient"] = float(distributed.total(loss.detach()) / RANKS), z_s.grad / RANKS

    means = Means()
    for step in range(2):
        n = SIZES[r] + step
        means.add({"a": torch.tensor(float(r + step)), "b": torch.tensor(1.0)}, n)
        means.add({"labelled": torch.tensor(float(r))}, torch.tensor(r), "val")
    out["means"] = [means.pop(), means.pop("val"), means.pop("none")]

    pair = [torch.full((2, 2), float(r)), torch.full((3,), 10.0 * r)]
    distributed.average_(pair)
    out["average"] = pair
    out["same"] = torch.tensor([float(r + 1)])
    distributed.same_([out["same"]])

    model = shuffled_teacher()
    torch.manual_seed(r)  # ranks draw different permutations: rank 0's counts
    out["shuffled"] = model.momentum_forward(images(4, r))
    torch.manual_seed(r)
    share, restore = distributed.shuffle(unit(SIZES[r], r))
    out["there_and_back"] = restore(share * 2)
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
    queue, ptr = torch.zeros(K, D), torch.zeros(1, dtype=torch.long)
    for step in range(4):
        sizes = [4] * RANKS if step < 3 else SIZES
        keys = torch.cat([unit(n, 10 * step + r) for r, n in enumerate(sizes)])
        FeatureQueue(queue, ptr).enqueue(keys)
        for out in ranks:
            assert torch.equal(out["queues"][step][0], queue), step
            assert out["queues"][step][1] == int(ptr)


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


# Shards ----------------------------------------------------------------------------------------


def loaders(kind, folder, rank, world):
    cfg = run_config(folder)
    dataset = data.open(cfg, "pretrain")
    options = {"seed": 1, "rank": rank, "world_size": world}
    if kind == "batched":
        memory = data.MemoryImages(dataset, folder / "cache", progress=False)
        return BatchedLoader(memory.images, memory.labels, lambda x, g: [x], 4, **options)
    if kind == "worker":
        dataset.transform = lambda image: torch.zeros(1)
        return WorkerLoader(data.Indexed(dataset), 4, **options)
    from ressl_plugin.views import dali

    cfg.optimizer.batch_size, cfg.dali.device = 4, "cpu"
    read = recipe.read(cfg.augmentations, data.mean_std(cfg))
    return dali.loader(cfg, read, dataset, device=torch.device("cpu"), rank=rank, world_size=world)


@pytest.mark.parametrize("kind", ["batched", "worker", "dali"])
def test_shards_are_disjoint_and_complete(kind, folder):
    if kind == "dali" and importlib.util.find_spec("nvidia.dali") is None:
        pytest.skip("DALI is not installed")
    count = 3 * PER_CLASS
    for epoch in range(2):
        shards = []
        for rank in range(RANKS):
            loader = loaders(kind, folder, rank, RANKS)
            loader.set_epoch(epoch)
            shards.append([batch[0] for batch in loader])
        assert len({len(s) for s in shards}) == 1, "all ranks take equally many steps"
        seen = torch.cat([b for s in shards for b in s]).tolist()
        assert len(seen) == len(set(seen)) == count // (4 * RANKS) * 4 * RANKS
        assert set(seen) <= set(range(count))


# Whole runs: two ranks against one process --------------------------------------------------------

PER_CLASS, STEPS = 28, 10  # 84 images: 5 steps of 16 an epoch, two epochs
PLAIN = {**VIEW, "rrc": {"enabled": False}, "horizontal_flip": {"prob": 0.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    registry.register()  # the children of a fork need not import the host again
    return image_folder(tmp_path_factory.mktemp("images"), per_class=PER_CLASS)


def run_config(folder, **changes):
    """Two views that differ but hold no randomness: the same on any number of ranks."""
    cfg = make_config(
        data__train_path=str(folder / "train"),
        data__val_path=str(folder / "val"),
        data__num_classes=None,
        backbone={"name": "timm:resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}, "stem": "auto"},
        precision="64-true",
        optimizer__lr=0.5,  # x 16 / 256
        scheduler__warmup_epochs=0,
        knn_eval__enabled=True,
        knn_eval__k=5,
        strategy="ddp",
        augmentations=[
            {**PLAIN, "role": "student", "solarization": {"prob": 1.0}},
            {**PLAIN, "role": "teacher"},
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        **changes,
    )
    return config.finish(cfg)


def watched(cfg, where, poison=None):
    """`pretrain`, with the queue, the teacher and the metrics after every step."""
    seen = {"queue": [], "teacher": [], "ddp": None}
    update, step = ReSSL.update_teacher, [0]

    def record(self, m):
        update(self, m)
        seen["queue"].append(self.queue.clone())
        seen["teacher"].append(self.momentum_backbone.conv1[0].weight.detach().clone())
        seen["metrics"] = self.trainer.callback_metrics  # the dict lives on
        ddp = self.trainer.strategy.model
        if isinstance(ddp, nn.parallel.DistributedDataParallel):
            seen["ddp"] = (set(ddp.named_module_buffers), ddp.will_sync_module_buffers())
        seen["skipped"] = self.skipped_steps
        seen["trainer"] = self.trainer

    def loss(*args):
        result = relational_loss(*args)
        step[0] += 1
        if poison == (distributed.rank(), step[0]):
            return type(result)(result[0] * float("nan"), result[1])
        return result

    ReSSL.update_teacher, method.relational_loss = record, loss
    cfg.run_dir = str(where)
    pretrain(cfg)
    trainer = seen.pop("trainer", None)
    if trainer is not None:
        seen["metrics"] = {k: float(v) for k, v in trainer.callback_metrics.items()}
    return seen


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    where = tmp_path_factory.mktemp("alone")
    cfg = run_config(folder, optimizer__batch_size=16, batchnorm__groups=4)
    return on_ranks(1, watched, where, cfg, where / "run")[0], where / "run"


@pytest.fixture(scope="module")
def pair(folder, tmp_path_factory):
    where = tmp_path_factory.mktemp("pair")
    cfg = run_config(folder, devices=2, optimizer__batch_size=8, batchnorm__groups=2)
    return on_ranks(2, watched, where, cfg, where / "run"), where / "run"


def test_two_ranks_with_group_batchnorm_are_one_process_with_twice_the_groups(alone, pair):
    (one, where), (two, there) = alone, pair
    ours, theirs = (checkpoint.load(w)["state_dict"] for w in (there, where))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        difference = (ours[key].double() - value.double()).abs().max()
        assert difference <= 1e-5, f"{key}: {difference}"
    assert len(one["queue"]) == STEPS
    moved = (one["teacher"][0] - one["teacher"][-1]).abs().max()
    assert moved > 1e-5  # something has happened
    for rank in two:
        for step in range(STEPS):
            assert (rank["queue"][step] - one["queue"][step]).abs().max() <= 1e-5, step


def test_queue_and_teacher_are_bit_equal_on_both_ranks_at_every_step(pair):
    (first, second), _ = pair
    for step in range(STEPS):
        assert torch.equal(first["queue"][step], second["queue"][step]), step
        assert torch.equal(first["teacher"][step], second["teacher"][step]), step


def test_ddp_leaves_the_queue_alone(pair):
    for rank in pair[0]:
        buffers, broadcasts = rank["ddp"]
        assert "momentum_backbone.bn1.running_mean" in buffers
        assert not {"queue", "queue_ptr"} & buffers
        assert not broadcasts


def test_online_metrics_are_one_processs(alone, pair):
    """84 validation images, an odd number of batches: no image counts twice."""
    one, (first, second) = alone[0]["metrics"], pair[0]
    assert {"val_acc1", "val_acc5", "val_loss", "val_knn_acc1", "val_knn_acc5"} <= one.keys()
    of_the_rank = {"loss", "embedding_spread"}  # the last step's; a mean over a rank's batches
    assert {"train_ressl_loss", "target_entropy", "train_acc1"} <= one.keys()
    for rank in (first, second):
        for name in one.keys() - of_the_rank:
            assert rank["metrics"][name] == pytest.approx(one[name], abs=2e-3), name


def test_one_rank_writes_the_run(pair):
    _, where = pair
    assert {p.name for p in where.glob("*.*")} >= {"last.ckpt", "metrics.csv", "config.yaml"}
    assert len(list(where.glob("events*"))) == 1


# Faults on one rank ------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(folder, tmp_path):
    cfg = run_config(folder, devices=2, checkpoint={"every_n_steps": 1})
    found = on_ranks(2, watched, tmp_path, cfg, tmp_path / "run", (1, 4))
    for error in found:
        assert isinstance(error, RunFault), error
        assert "step 4" in str(error) and "last.ckpt" in str(error)
    state = checkpoint.load(tmp_path / "run")
    assert state["global_step"] == 3
    assert all(t.isfinite().all() for t in state["state_dict"].values())


def test_a_step_is_left_out_on_both_ranks(folder, tmp_path):
    cfg = run_config(folder, devices=2, max_epochs=1, faults={"non_finite": "skip"})
    first, second = on_ranks(2, watched, tmp_path, cfg, tmp_path / "run", (1, 3))
    assert (first["skipped"], second["skipped"]) == (1, 1)
    for rank in (first, second):
        assert torch.equal(rank["queue"][2], rank["queue"][1]), "the memory saw the batch"
        assert not torch.equal(rank["queue"][3], rank["queue"][2])
    assert torch.equal(first["teacher"][-1], second["teacher"][-1])


def test_unlabelled_images(folder, tmp_path):
    """The online classifier, without labels, has no gradient that DDP would wait for."""
    cfg = run_config(folder, devices=2, max_epochs=1, data__no_labels=True)
    for rank in on_ranks(2, watched, tmp_path, cfg, tmp_path / "run"):
        assert isinstance(rank, dict), rank
        assert len(rank["queue"]) == STEPS // 2


# Launchers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "devices", "nodes", "hint"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, 1, 1,
         "devices=2 num_nodes=2"),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, 2, 2, None),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0"}, 8, 1,
         "devices=4 num_nodes=2"),
        ({}, 8, 4, None),
    ],
)  # fmt: skip
def test_a_launcher_with_another_number_of_processes(monkeypatch, env, devices, nodes, hint):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if hint is None:
        distributed.check_launch(devices, nodes)
        return
    with pytest.raises(UserError, match=hint):
        distributed.check_launch(devices, nodes)


@pytest.mark.parametrize(
    ("env", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
    ],
)
def test_who_is_first(monkeypatch, env, first):
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched_first() is first
