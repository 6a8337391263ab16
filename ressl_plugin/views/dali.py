"""The `dali` back end: DALI reads, decodes, crops and flips image files; the batched operations
do the colour on the training device, so that one arithmetic serves all back ends.

Nothing here draws a random number inside DALI. The order of the files, every crop and every flip
come from numpy generators seeded by (seed, epoch, rank, batch), so a batch does not depend on what
was drawn before it, and a run that is resumed in mid-epoch sees what it would have seen.
"""

from collections import deque

import numpy as np
import torch
from omegaconf import OmegaConf

from ressl_plugin import data
from ressl_plugin.errors import UserError
from ressl_plugin.views.dali_graph import draw, pipeline


def loader(
    cfg,
    recipe,
    root,
    batch_size,
    device_id,
    rank,
    world_size,
    seed,
    num_workers,
    draw_colour,
    dtype=torch.float32,
):
    """An image folder as a DaliLoader of batches [indexes (N,), [views ...], targets (N,)].

    cfg: main's schema, of which `data` (as data.open takes it) and `dali.device` are read. root:
    the folder, or None for data.train_path. device_id: the CUDA device that trains, None for the
    CPU. batch_size: images of this rank. num_workers: DALI's CPU threads.
    draw_colour(images (N, 3, S, S) in 0..1, view, generator, dtype) -> normalised images.
    Raises UserError for data that are no folder, too few images, dali.device=gpu without CUDA.
    """
    require_dali()
    device = (cfg.get("dali") or {}).get("device", "gpu")
    if device not in ("cpu", "gpu"):
        raise UserError(f"dali.device={device}; it is gpu or cpu")
    if device == "gpu" and (device_id is None or not torch.cuda.is_available()):
        raise UserError("dali.device=gpu, but the training is on the CPU; set dali.device=cpu")
    cfg = OmegaConf.create(cfg)
    if root is not None:
        cfg.data.train_path = str(root)
    images = data.open(cfg, "pretrain")
    if not hasattr(images, "samples"):
        raise UserError(
            f"data.dataset={cfg.data.dataset} is no folder of image files, which is what dali "
            "reads; set data.backend=batched"
        )
    batches = len(images.samples) // (batch_size * world_size)
    if not batches:
        raise UserError(
            f"optimizer.batch_size={batch_size} on {world_size} device(s) is more than the "
            f"{len(images.samples)} images of {cfg.data.train_path}; make it smaller"
        )
    return DaliLoader(
        images.samples,
        recipe.crops,
        batch_size,
        device=device,
        device_id=device_id,
        shard=(rank, world_size),
        seed=seed,
        threads=max(1, num_workers),
        draw_colour=draw_colour,
        dtype=dtype,
        image_size=cfg.data.get("image_size"),
    )


def require_dali():
    """Raises UserError when DALI is not installed."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"data.backend=dali needs DALI ({error}); `pip install 'ressl_plugin[dali]'`, "
            "or set data.backend=host"
        ) from error


class DaliLoader:
    """Iterating gives one epoch; the next iteration gives the next epoch.

    An epoch is a fresh shuffle of all images; every rank takes its own `batch_size` of each global
    batch, so ranks are disjoint and together complete, but for the images of an incomplete last
    batch, which are others in every epoch. `set_epoch(epoch, batch)` goes to any place.
    """

    def __init__(
        self,
        samples,
        crops,
        batch_size,
        *,
        device="cpu",
        device_id=None,
        shard=(0, 1),
        seed=0,
        threads=2,
        draw_colour,
        dtype=torch.float32,
        image_size=None,
    ):
        self.paths = [str(path) for path, _ in samples]
        self.targets = torch.tensor([target for _, target in samples])
        self.crops, self.batch_size, self.shard, self.seed = crops, batch_size, shard, seed
        self.draw_colour, self.dtype = draw_colour, dtype
        self.device = torch.device("cpu" if device_id is None else f"cuda:{device_id}")
        self.on_cpu = device == "cpu"  # DALI; the training may be on the GPU
        self.generator = torch.Generator()  # on the CPU: the same draws whatever the device
        self.epoch = self.batch = 0
        self._next = (0, 0)  # what DALI is asked for next; it works ahead of what is given out
        self._asked = deque()
        self._order = (None, None)
        self.pipeline = pipeline(
            self._feed,
            crops,
            device,
            image_size,
            batch_size=batch_size,
            num_threads=threads,
            device_id=device_id if device == "gpu" else None,
            seed=0,  # DALI draws nothing
            exec_dynamic=True,  # outputs own their memory, on the stream that run() is given
        )
        self.pipeline.build()

    def __len__(self):
        return len(self.paths) // (self.batch_size * self.shard[1])

    def set_epoch(self, epoch, batch=0):
        """The next iteration begins at this batch of this epoch (both from 0)."""
        self.epoch, self.batch = epoch, batch

    def __iter__(self):
        epoch, first = self.epoch, self.batch
        self.set_epoch(epoch + 1)
        for batch in range(first, len(self)):
            indexes, *crops = self._take((epoch, batch))
            self.generator.manual_seed(self._seed(epoch, batch, 1).generate_state(1)[0].item())
            views = [
                self.draw_colour(crop.float().div_(255), view, self.generator, self.dtype)
                for crop, view in zip(crops, self.crops)
            ]
            targets = self.targets[indexes].to(self.device)
            yield [indexes.to(self.device), views, targets]

    def _seed(self, epoch, batch, stream):
        return np.random.SeedSequence([self.seed, epoch, self.shard[0], batch, stream])

    def indexes(self, epoch, batch):
        """This rank's share of a batch: positions in the sorted list of files, (N,)."""
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))
            self._order = (epoch, order)
        start = (batch * self.shard[1] + self.shard[0]) * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def _feed(self):
        """DALI's source: the paths of the batch that comes next, and what is random in it."""
        epoch, batch = self._next
        indexes = self.indexes(epoch, batch)
        self._asked.append((epoch, batch, indexes))
        last = batch + 1 >= len(self)
        self._next = (epoch + 1, 0) if last else (epoch, batch + 1)
        rng = np.random.default_rng(self._seed(epoch, batch, 0))
        names = [np.frombuffer(self.paths[i].encode(), np.uint8) for i in indexes]
        return names, *draw(self.crops, len(indexes), rng)

    def _take(self, place):
        """Indexes (N,) and uint8 crops (N, 3, S, S) of a batch; what was asked for ahead and is
        not wanted any more (the epoch was left early) is thrown away."""
        if place not in [asked[:2] for asked in self._asked]:
            self._next = place
        while True:
            try:
                outputs = self.pipeline.run(self._stream())
            except RuntimeError as error:
                self._blame(error)
                raise
            epoch, batch, indexes = self._asked.popleft()
            if (epoch, batch) == place:
                views = (torch.from_dlpack(output.as_tensor()) for output in outputs)
                return torch.from_numpy(indexes.copy()), *(v.to(self.device) for v in views)

    def _stream(self):
        return None if self.on_cpu else torch.cuda.current_stream(self.device)

    def _blame(self, error):
        """DALI does not say which file it was: raises UserError naming those that do not open."""
        bad = []
        for path in [self.paths[i] for *_, rows in self._asked for i in rows]:
            try:
                data.load_image(path)
            except Exception:
                bad.append(path)
        if bad:
            raise UserError(
                f"DALI cannot decode {', '.join(bad)}; `ressl data check` finds such files"
            ) from error
