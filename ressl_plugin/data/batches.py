"""Batches of views drawn on the device that holds the images."""

import numpy as np
import torch

from ressl_plugin.errors import UserError


class BatchedLoader:
    """Iterable over (indexes (B,), views, targets (B,)), all on the images' device.

    images: uint8 (N, H, W, 3); targets: int64 (N,), or None for -1; draw(images uint8 (B, H, W, 3),
    generator) -> list of tensors. Nothing but index arithmetic happens here: no worker processes.

    Every rank shuffles alike, by (seed, epoch); global batch b is entries b * B * world_size and
    on of that order, and rank r takes the r-th part of it, so W ranks of B see what one process of
    W * B sees. Without drop_last the last images are shared out as evenly as they go, so that all
    ranks take equally many steps and no image comes twice. Each step's generator is seeded by
    (seed, epoch, step, rank): any step can be drawn again without those before it, which makes a
    resume in mid-epoch exact.
    """

    def __init__(
        self, images, targets, draw, batch_size, *, seed=0, rank=0, world_size=1, drop_last=True,
        shuffle=True,
    ):  # fmt: skip
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size}, rank {rank}, world_size {world_size}")
        self.images, self.draw = images, draw
        if targets is None:
            targets = torch.full((len(images),), -1, dtype=torch.int64)
        self.targets = targets.to(images.device)
        if len(self.targets) != len(images):
            raise ValueError(f"{len(images)} images, {len(self.targets)} targets")
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.epoch, self.step, self._resume_at = 0, 0, 0
        total = batch_size * world_size
        full, rest = divmod(len(images), total)
        # a remainder smaller than the number of ranks joins the batch before it
        self._steps = full if drop_last or rest < world_size else full + 1
        if self._steps == 0:
            least = total if drop_last else world_size
            raise UserError(
                f"the data set has {len(images)} images, fewer than a batch of {least} "
                f"({batch_size} x {world_size} processes); lower optimizer.batch_size"
            )

    def __len__(self):
        """Steps in a whole epoch, also after a resume."""
        return self._steps

    @property
    def dataset(self):
        return self.images

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
        """The next iteration goes on after the last batch given out. Raises UserError if the
        position is within an epoch and the data set, the batch, the seed or the number of
        processes is another one."""
        between = state["finished"] or state["step"] == 0
        for name, value in self._order_key().items():
            if state[name] != value and not between:
                raise UserError(
                    f"the checkpoint's {name} is {state[name]}, now it is {value}; in the middle "
                    "of an epoch it must stay the same"
                )
        self.epoch = state["epoch"]
        self.step = self._resume_at = 0 if between else state["step"]

    def _order_key(self):
        return {
            "images": len(self.images),
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "seed": self.seed,
        }

    def order(self):
        """-> indexes (N,) of this epoch, the same on all ranks."""
        if not self.shuffle:
            return torch.arange(len(self.images))
        generator = torch.Generator().manual_seed(_seed(self.seed, self.epoch))
        return torch.randperm(len(self.images), generator=generator)

    def indexes(self, order, step):
        """-> this rank's part of global batch `step`."""
        total = self.batch_size * self.world_size
        last = step == self._steps - 1 and not self.drop_last
        batch = order[step * total :] if last else order[step * total : (step + 1) * total]
        parts = batch.tensor_split(self.world_size)
        return parts[self.rank]

    def __iter__(self):
        device = self.images.device
        order = self.order().to(device)  # once an epoch; the steps only slice it
        generator = torch.Generator(device)
        start, self._resume_at = self._resume_at, 0
        for step in range(start, self._steps):
            indexes = self.indexes(order, step)
            generator.manual_seed(_seed(self.seed, self.epoch, step, self.rank))
            views = self.draw(self.images[indexes], generator)
            self.step = step + 1  # before the yield: a checkpoint made in the step counts it
            yield indexes, views, self.targets[indexes]


def _seed(*numbers):
    """Well-mixed 63-bit seed: neighbouring steps and ranks share no stream."""
    # the length in front, because SeedSequence takes (1, 2) and (1, 2, 0) for the same
    sequence = np.random.SeedSequence((len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
