"""Seeded, resumable batches: views drawn on the device that holds the images, or by workers."""

import random
import weakref

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ressl_plugin.data.workers import leave_signals
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.sampling import OfSteps, Share, SharedGenerator, seed_of


class Steps:
    """The order of an epoch, this rank's share of it, and the position in it.

    Every rank shuffles alike, by (seed, epoch); global batch b is entries b * B * world_size and
    on of that order, and rank r takes the r-th part of it, so W ranks of B see what one process of
    W * B sees. What is left of the order is dropped. Raises UserError where there is not one whole
    batch.
    """

    def __init__(self, count, batch_size, *, seed=0, rank=0, world_size=1, shuffle=True):
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch, self.step, self._resume_at = 0, 0, 0
        total = batch_size * world_size
        # of a global batch, which images are this rank's
        self.share = Share(total, slice(rank * batch_size, (rank + 1) * batch_size))
        self._steps = count // total
        if self._steps == 0:
            raise UserError(
                f"the data set has {count} images, fewer than a batch of {total} "
                f"({batch_size} x {world_size} processes); lower optimizer.batch_size"
            )

    def __len__(self):
        """Steps in a whole epoch, also after a resume."""
        return self._steps

    @property
    def sampler(self):
        # Lightning calls sampler.set_epoch at the start of every epoch
        return self

    def set_epoch(self, epoch):
        """Choose the epoch's order; another epoch than the resumed one starts at its first step."""
        if epoch != self.epoch:
            self.epoch, self._resume_at = epoch, 0

    def state_dict(self):
        """The position: the epoch, how many of its batches were given out, and what fixes the
        order."""
        finished = self.step == self._steps
        return {"epoch": self.epoch, "step": self.step, "finished": finished, **self._order_key()}

    def load_state_dict(self, state):
        """The next iteration goes on after the last batch given out, however many processes shared
        it. Raises UserError if the position is within an epoch and the data set, the global batch
        or the seed is another one."""
        between = state["finished"] or state["step"] == 0
        then, now = _global_batch(state), _global_batch(self._order_key())
        for name, value in now.items():
            if then[name] != value and not between:
                raise UserError(
                    f"the checkpoint's {name} is {then[name]}, now it is {value}; in the middle "
                    "of an epoch it must stay the same"
                )
        self.epoch = state["epoch"]
        self.step = self._resume_at = 0 if between else state["step"]

    def _order_key(self):
        return {
            "images": self.count,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "seed": self.seed,
        }

    def order(self):
        """-> indexes (N,) of this epoch, the same on all ranks."""
        if not self.shuffle:
            return torch.arange(self.count)
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        return torch.randperm(self.count, generator=generator)

    def indexes(self, order, step):
        """-> this rank's part of global batch `step`."""
        return order[step * self.share.total :][self.share.rows]

    def _positions(self):
        """Steps to do, from the resumed one on; counts each as given out before it is."""
        start, self._resume_at = self._resume_at, 0
        for step in range(start, self._steps):
            self.step = step + 1  # a checkpoint made during the step counts it as done
            yield step


def _global_batch(key):
    """Of Steps.state_dict, what fixes the order: by how many processes it is shared does not."""
    images = key["batch_size"] * key["world_size"]
    return {"images": key["images"], "images a step": images, "seed": key["seed"]}


class BatchedLoader(Steps):
    """Iterable over (indexes (B,), views, targets (B,)), all on the images' device.

    images: uint8 (N, H, W, 3); targets: int64 (N,); draw(images uint8 (B, H, W, 3), generator) ->
    list of tensors; the rest as Steps. Nothing but index arithmetic happens here: no
    worker processes. Each step's generator (a SharedGenerator) is seeded by (seed, epoch, step):
    any step can be drawn again without those before it, which makes a resume in mid-epoch exact.
    """

    def __init__(self, images, targets, draw, batch_size, **options):
        super().__init__(len(images), batch_size, **options)
        self.images, self.targets, self.draw = images, targets.to(images.device), draw

    def __iter__(self):
        order = self.order().to(self.images.device)  # moved once an epoch; the steps only slice it
        for step in self._positions():
            indexes = self.indexes(order, step)
            views = self.draw(self.images[indexes], self._generator(step))
            yield indexes, views, self.targets[indexes]

    def _generator(self, step):
        """On the host: the device never waits for a draw."""
        generator = SharedGenerator()
        generator.share = self.share
        return generator.manual_seed(seed_of(self.seed, self.epoch, step, 0))


AHEAD = 16  # steps whose views an UndrawnLoader draws at once


class UndrawnLoader(BatchedLoader):
    """The same batches for a step that draws its views itself: iterable over (indexes (B,), the
    Params of each view), on the host.

    draw(number of images, generator) -> the Params of each view; render(images uint8 (B, H, W, 3),
    these) -> list of tensors: where the images are.
    """

    def __init__(self, images, targets, draw, render, batch_size, **options):
        super().__init__(images, targets, draw, batch_size, **options)
        self.render = render

    def __iter__(self):
        order, ahead = self.order(), None
        for step in self._positions():
            if ahead is None or step == ahead.stop:
                ahead = range(step, min(step + AHEAD, len(self)))
                generators = OfSteps([self._generator(one) for one in ahead])
                drawn = self.draw(len(ahead) * self.batch_size, generators)
            first = (step - ahead.start) * self.batch_size
            rows = slice(first, first + self.batch_size)
            yield self.indexes(order, step), [view.part(rows) for view in drawn]


class WorkerLoader(Steps):
    """The same batches of a Dataset, loaded by worker processes: (indexes (B,), views, targets).

    dataset: items (views, target). Each image's random numbers (torch's, numpy's and Python's, so
    any transform's) are seeded by (seed, epoch, index): they depend neither on the number of
    workers nor on what came before, and a resume in mid-epoch is exact.
    """

    def __init__(self, dataset, batch_size, num_workers=0, **options):
        super().__init__(len(dataset), batch_size, **options)
        self._epoch_loader = DataLoader(
            _Seeded(dataset, self.seed),
            # in a cycle the workers' queues may be collected before them, which then never hear of
            # the end: each is waited for, 5 seconds long
            batch_sampler=self._Order(weakref.proxy(self)),
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else it draws from the training process's
            worker_init_fn=leave_signals,
        )

    class _Order:
        """Batches of (epoch, index): persistent workers learn the epoch with each index."""

        def __init__(self, steps):
            self.steps, self.start = steps, 0

        def __iter__(self):
            order = self.steps.order()
            for step in range(self.start, len(self.steps)):
                indexes = self.steps.indexes(order, step).tolist()
                yield [(self.steps.epoch, index) for index in indexes]

        def __len__(self):
            return len(self.steps) - self.start

    @property
    def _iterator(self):
        # by this name Lightning ends the workers of a DataLoader when a training is over
        return self._epoch_loader._iterator

    @_iterator.setter
    def _iterator(self, value):
        self._epoch_loader._iterator = value

    def __iter__(self):
        self._epoch_loader.batch_sampler.start = self._resume_at
        # zip asks for the batch first: none is counted that the workers did not deliver
        for batch, _ in zip(iter(self._epoch_loader), self._positions()):
            yield batch


class _Seeded(Dataset):
    """Items (index, *item) for keys (epoch, index)."""

    def __init__(self, dataset, seed):
        self.dataset, self.seed = dataset, seed

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        epoch, index = key
        seed = seed_of(self.seed, epoch, index)
        if get_worker_info() is not None:
            return self._draw(index, seed)
        # this is the training process, whose streams are not ours to change
        with isolate_rng(include_cuda=False):
            return self._draw(index, seed)

    def _draw(self, index, seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the GPU's, too
        return (index, *self.dataset[index])
