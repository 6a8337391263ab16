import gc
import random

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from ressl_plugin.data import BatchedLoader, UndrawnLoader, WorkerLoader, batches
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.sampling import rand, seed_of
from ressl_plugin.views import batched, recipe


def noisy(images, generator):
    """A stand-in for the views: what they show is the image and the generator's state."""
    noise = rand(len(images), generator=generator)
    return [images.float().mean((1, 2, 3)) + noise, noise]


def loader(count=23, batch_size=4, **options):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    return BatchedLoader(images, torch.arange(count), noisy, batch_size, **options)


def seen(steps):
    return torch.cat([indexes for indexes, _, _ in steps]).tolist()


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, d) and all(map(torch.equal, b, e)) and torch.equal(c, f)
        for (a, b, c), (d, e, f) in zip(left, right)
    )


def test_a_batch_is_indexes_views_targets():
    indexes, views, targets = next(iter(loader()))
    assert indexes.shape == targets.shape == (4,) and torch.equal(indexes, targets)
    torch.testing.assert_close(views[0] - views[1], indexes.float())


def test_what_makes_no_whole_batch_is_dropped():
    short = loader()
    assert len(short) == len(list(short)) == 5 and len(set(seen(short))) == 20


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("count", [15, 23, 30, 31])
def test_shards_are_disjoint_and_complete(world_size, count):
    how = {"world_size": world_size}
    shards = [list(loader(count, 3, rank=rank, **how)) for rank in range(world_size)]
    steps = count // (3 * world_size)
    assert [len(shard) for shard in shards] == [steps] * world_size
    assert len({i for shard in shards for i in seen(shard)}) == steps * 3 * world_size


@pytest.mark.parametrize(("count", "world_size"), [(32, 2), (34, 2), (45, 4), (32, 4)])
def test_ranks_see_the_batches_and_views_of_one_process(count, world_size):
    one = list(loader(count, 8))
    ranks = [
        list(loader(count, 8 // world_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for batch, parts in zip(one, zip(*ranks), strict=True):
        together = [(i, *views, targets) for i, views, targets in parts]
        for whole, *pieces in zip((batch[0], *batch[1], batch[2]), *together):
            assert torch.equal(whole, torch.cat(pieces))


def test_epochs_and_seeds_differ_and_repeat():
    def epoch(number, **options):
        chosen = loader(64, **options)
        chosen.set_epoch(number)
        return list(chosen)

    assert same(epoch(3), epoch(3))
    assert seen(epoch(3)) != seen(epoch(4)) and seen(epoch(3)) != seen(epoch(3, seed=1))
    noise = [torch.cat([b[1][1] for b in epoch(n)]) for n in (0, 1)]
    assert len(torch.cat(noise).unique()) > 120  # no step repeats another's random numbers


def test_ranks_draw_different_random_numbers():
    a, b = (next(iter(loader(rank=rank, world_size=2)))[1][1] for rank in (0, 1))
    assert not torch.isin(a, b).any()


def test_the_order_and_the_first_views_share_no_seed():
    _, (_, noise), _ = next(iter(loader(64)))
    order_stream = torch.Generator().manual_seed(seed_of(0, 0))
    assert not torch.equal(noise, torch.rand(4, generator=order_stream))


def test_without_shuffle_in_order():
    assert seen(loader(8, shuffle=False)) == list(range(8))


@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_resume_is_bit_exact(done):
    whole = loader()
    whole.set_epoch(2)
    expected = list(whole)
    broken = loader()
    broken.set_epoch(2)
    steps = iter(broken)
    for _ in range(done):
        next(steps)
    state = broken.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    resumed.set_epoch(2)
    assert len(resumed) == 5
    # a state saved after the last batch means the epoch is over
    assert same(list(resumed), expected[done % 5 :])
    assert same(list(resumed), expected)  # the position holds for one iteration only


def test_another_epoch_starts_at_its_first_step():
    broken = loader()
    next(iter(broken))
    resumed = loader()
    resumed.load_state_dict(broken.state_dict())
    resumed.set_epoch(1)
    assert len(list(resumed)) == 5


def test_resume_with_another_batch_size():
    broken = loader()
    steps = iter(broken)
    next(steps)
    with pytest.raises(UserError, match="images a step is 4, now it is 2"):
        loader(batch_size=2).load_state_dict(broken.state_dict())
    shared = loader(batch_size=2, rank=1, world_size=2)  # the same batch on two processes
    shared.load_state_dict(broken.state_dict())
    assert torch.equal(next(iter(shared))[0], list(loader())[1][0][2:])
    list(steps)
    loader(batch_size=2).load_state_dict(broken.state_dict())  # between epochs it may change


def test_too_few_images():
    with pytest.raises(UserError, match=r"3 images.*4 x 2 processes.*batch_size"):
        loader(3, world_size=2)


class Random:
    """A data set whose items show the three random streams that transforms use."""

    def __init__(self, count=12):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError
        views = [torch.rand(2), random.random(), float(np.random.rand())]
        return views, index % 3


def flat(steps):
    return [(i.tolist(), [v.tolist() for v in views], t.tolist()) for i, views, t in steps]


def test_workers_give_the_same_however_many():
    runs = []
    for workers in (0, 1, 2):
        chosen = WorkerLoader(Random(), 4, workers, seed=3)
        runs.append([])
        for epoch in (0, 1):
            chosen.set_epoch(epoch)
            runs[-1].append(flat(chosen))
    assert runs[0] == runs[1] == runs[2]
    first, second = runs[0]
    assert len(first) == 3 and first != second
    assert sorted(index for step in first for index in step[0]) == list(range(12))
    numbers = [value for step in first + second for view in step[1] for value in np.ravel(view)]
    assert len(set(numbers)) == len(numbers)


def test_without_workers_the_training_streams_stay():
    states = []
    for drawn in (False, True):
        for seeded in (random.seed, np.random.seed, torch.manual_seed):
            seeded(1)
        if drawn:
            list(WorkerLoader(Random(), 4, 0))
        states.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert states[0] == states[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 3])
def test_workers_resume_bit_exactly(workers, done):
    def fresh():
        chosen = WorkerLoader(Random(), 4, workers, rank=0, world_size=1)
        chosen.set_epoch(1)
        return chosen

    expected, broken, resumed = flat(fresh()), fresh(), fresh()
    steps = iter(broken)
    for _ in range(done):
        next(steps)
    resumed.load_state_dict(broken.state_dict())
    assert flat(resumed) == expected[done % 3 :]
    assert flat(resumed) == expected and len(resumed) == 3


def test_workers_share_the_images_among_ranks():
    shards = [flat(WorkerLoader(Random(), 3, 0, rank=rank, world_size=2)) for rank in (0, 1)]
    assert sorted(i for shard in shards for step in shard for i in step[0]) == list(range(12))


def test_workers_end_with_their_loader():
    """At once, not when a collector comes by: it would take their queues first, and 5 seconds for
    each of them."""
    gc.disable()
    try:
        chosen = WorkerLoader(Random(), 4, 2)
        list(chosen)
        workers = chosen._epoch_loader._iterator._workers
        del chosen
        assert [worker.exitcode for worker in workers] == [0, 0]
    finally:
        gc.enable()


def test_lightning_ends_the_workers():
    chosen = WorkerLoader(Random(), 4, 2)
    list(chosen)
    workers = chosen._epoch_loader._iterator._workers
    CombinedLoader(chosen).reset()  # as at the end of a training
    assert [worker.exitcode for worker in workers] == [0, 0] and len(list(chosen)) == 3


@pytest.mark.parametrize("kind", ["batched", "workers"])
def test_lightning_sets_the_epoch_and_resumes_in_its_middle(tmp_path, kind):
    from lightning import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Recorder(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []

        def training_step(self, batch, _):
            self.seen.append((self.current_epoch, batch[0].tolist(), batch[1][-1].tolist()))
            return (self.weight * batch[1][-1]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def run(steps, callbacks=(), ckpt_path=None):
        model = Recorder()
        trainer = Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=list(callbacks), default_root_dir=tmp_path,
            enable_checkpointing=bool(callbacks),
        )  # fmt: skip
        batches = loader(20) if kind == "batched" else WorkerLoader(Random(20), 4, 1)
        trainer.fit(model, batches, ckpt_path=ckpt_path)
        return model.seen

    straight = run(12)
    assert [epoch for epoch, _, _ in straight] == [0] * 5 + [1] * 5 + [2] * 2
    assert straight[0][1:] != straight[5][1:]
    save = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=7)
    first = run(7, [save])
    assert first == straight[:7]
    assert run(12, ckpt_path=tmp_path / "middle.ckpt") == straight[7:]


@pytest.mark.gpu
def test_on_the_gpu_everything_stays_there():
    def batches():
        images = torch.arange(23, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
        return list(BatchedLoader(images.cuda(), torch.arange(23), noisy, 4))

    assert same(batches(), batches())
    assert all(part.is_cuda for i, views, t in batches() for part in (i, *views, t))


def test_views_drawn_ahead_are_those_of_each_step(monkeypatch):
    """Of a whole epoch, and of one resumed within it."""
    monkeypatch.setattr(batches, "AHEAD", 3)
    read = recipe.read([{"preset": name, "crop_size": 4} for name in ("contrastive", "weak")])
    draw = lambda n, generator: batched.draw_all_params(read, n, 6, 5, generator)
    images, targets = torch.zeros(23, 6, 5, 3, dtype=torch.uint8), torch.zeros(23)
    make = lambda: UndrawnLoader(images, targets, draw, None, 4, seed=7)
    ahead = make()
    resumed = make()
    resumed.load_state_dict({**ahead.state_dict(), "step": 2, "finished": False})
    found = list(ahead)
    assert [len(indexes) for indexes, _ in found] == [4] * 5
    for steps, start in ((found, 0), (list(resumed), 2)):
        for step, (indexes, views) in enumerate(steps, start):
            for view, wanted in zip(views, draw(len(indexes), ahead._generator(step))):
                for value, of_step in zip(view, wanted):
                    assert value is of_step is None or torch.equal(value, of_step)
