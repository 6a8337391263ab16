"""The `dali` back end: DALI reads, decodes, crops and flips image files; the batched operations
do the colour on the training device, so that one arithmetic serves all back ends.

Nothing here draws a random number inside DALI. Every crop and every flip come from a generator
seeded by (seed, epoch, step), as does the colour, so a batch does not depend on what was drawn
before it, and a run that is resumed in mid-epoch sees what it would have seen.
"""

import copy
import gc
import os
from collections import deque

import numpy as np
import torch

from ressl_plugin import data
from ressl_plugin.data.batches import Steps
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.sampling import SharedGenerator
from ressl_plugin.views import batched
from ressl_plugin.views.dali import draw, pipeline

# A pipeline ends by waiting for its threads, which a fork (a data worker, say) has not: one that
# found a dropped pipeline in the garbage of its parent would wait for ever. It may not look there.
os.register_at_fork(after_in_child=gc.freeze)


def few(cfg, recipe, dataset, rows):
    """The views of some images, by their positions in `dataset`: for each of recipe.crops a tensor
    (len(rows), 3, S, S) on the CPU. Errors as DaliLoader."""
    chosen = copy.copy(dataset)
    chosen.keep(rows)
    device = "cuda" if cfg.dali.device == "gpu" and torch.cuda.is_available() else "cpu"
    batches = DaliLoader(cfg, recipe, chosen, len(rows), device=device, shuffle=False)
    ((_, views, _),) = batches
    return [view.cpu() for view in views]


class DaliLoader(Steps):
    """Iterable over [indexes (N,), views, targets (N,)], on the training device; views is a list
    of (N, 3, S, S) tensors, one for each of recipe.crops.

    cfg: a complete config; dataset: its images, files of a folder (sources.py). batch_size: by
    default the run's. device: the torch device that trains; with dali.device=gpu it decodes and
    crops, too. The rest as Steps. Raises UserError without DALI, for data that are no files, for
    less than a batch, and for dali.device=gpu without CUDA.
    """

    def __init__(self, cfg, recipe, dataset, batch_size=None, *, device="cpu", **options):
        samples = _samples(dataset)
        batch_size, options = batch_size or cfg.optimizer.batch_size, {"seed": cfg.seed, **options}
        super().__init__(len(samples), batch_size, **options)
        self.device, self.on_gpu = torch.device(device), cfg.dali.device == "gpu"
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"data.backend=dali needs DALI ({error}); `pip install 'ressl_plugin[dali]'`, "
                "or set data.backend=host"
            ) from error
        if self.on_gpu and (self.device.type != "cuda" or not torch.cuda.is_available()):
            raise UserError("dali.device=gpu, but there is no GPU to train on; set dali.device=cpu")
        self.paths = [str(path) for path, _ in samples]
        self.targets = torch.tensor([target for _, target in samples])
        self.crops = recipe.crops
        last = not cfg.performance.disable_channel_last
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.draw_colour = batched.apply_colour
        self._ahead = Steps(self.count, batch_size, **options)  # the epoch that DALI works at
        self._ahead_order = self._ahead.order()
        self._next = (0, 0)  # epoch and step that DALI is asked for next
        self._asked = deque()
        index = self.device.index
        if self.on_gpu and index is None:
            index = torch.cuda.current_device()
        self.pipeline = pipeline(
            self._feed,
            self.crops,
            "gpu" if self.on_gpu else "cpu",
            dataset.image_size,
            dataset.interpolation,
            dataset.exif,
            batch_size=batch_size,
            num_threads=max(1, cfg.data.num_workers),
            device_id=index if self.on_gpu else None,
            seed=0,  # DALI draws nothing
            exec_dynamic=True,  # outputs own their memory, on the stream that run() is given
        )
        self.pipeline.build()

    def __iter__(self):
        generator = SharedGenerator()
        stream = torch.cuda.current_stream(self.device) if self.on_gpu else None
        for step in self._positions():
            indexes, crops = self._take((self.epoch, step), stream)
            generator.share = self.share
            generator.manual_seed(int(self._seed(self.epoch, step, 1).generate_state(1)[0]))
            views = []
            for crop, view in zip(crops, self.crops):
                crop = crop.to(self.device).float().div_(255)
                crop = self.draw_colour(crop, view, generator)
                views.append(crop.contiguous(memory_format=self.layout))
            yield [indexes.to(self.device), views, self.targets[indexes].to(self.device)]

    def _seed(self, epoch, step, stream):
        return np.random.SeedSequence([self.seed, epoch, step, 0, stream])

    def _feed(self):
        """DALI's source: the paths of the batch that comes next, and what is random in it."""
        epoch, step = self._next
        if self._ahead.epoch != epoch:
            self._ahead.set_epoch(epoch)
            self._ahead_order = self._ahead.order()
        indexes = self._ahead.indexes(self._ahead_order, step)
        self._asked.append((epoch, step, indexes))
        self._next = (epoch, step + 1) if step + 1 < len(self) else (epoch + 1, 0)
        rng = np.random.default_rng(self._seed(epoch, step, 0))
        names = [np.frombuffer(os.fsencode(self.paths[i]), np.uint8) for i in indexes]
        drawn = draw(self.crops, self.share.total, rng)  # for all ranks, alike on each
        return names, *(part[self.share.rows] for part in drawn)

    def _take(self, place, stream):
        """Indexes (N,) and uint8 crops (N, 3, S, S) of a batch. What DALI was asked for ahead and
        is not wanted any more (an epoch was left early) is thrown away."""
        if place not in [asked[:2] for asked in self._asked]:
            self._next = place
        while True:
            try:
                outputs = self.pipeline.run(stream)
            except RuntimeError as error:
                self._blame(error)
                raise
            epoch, step, indexes = self._asked.popleft()
            if (epoch, step) == place:
                return indexes, [torch.from_dlpack(output.as_tensor()) for output in outputs]

    def _blame(self, error):
        """DALI does not say which file it was: raises UserError naming those that do not open."""
        bad = []
        for path in [self.paths[i] for *_, rows in self._asked for i in rows]:
            try:
                data.load_image(path)
            except UserError:
                bad.append(path)
        if bad:
            raise UserError(
                f"DALI cannot decode {', '.join(bad)}; `ressl data check` finds such files"
            ) from error


def _samples(dataset):
    if not hasattr(dataset, "samples"):
        raise UserError(
            "data.backend=dali reads folders of image files, and these data are an array; "
            "set data.backend=batched"
        )
    samples = dataset.samples
    if gif := [str(path) for path, _ in samples if str(path).lower().endswith(".gif")]:
        raise UserError(
            f"DALI reads no GIF, and {gif[0]} is one of {len(gif)}; set data.backend=host, or "
            "convert them"
        )
    return samples
