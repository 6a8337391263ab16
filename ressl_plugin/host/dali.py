"""The main branch's own DALI pipelines, mended in memory, for its own scripts with format=dali.

The plugin's training draws its views elsewhere (views/dali.py), with the arithmetic of its other
back ends. Here is only what makes the host's pipelines run at all, and right, on DALI 2:

- on a machine with no GPU a pipeline must be given no device id, but the host adds the id to the
  seed;
- a reader that does not pad its last batch begins each epoch where the last one stopped reading,
  so with whole batches only, each epoch repeats some images and misses others;
- the seed was 12, whatever the config said, and equal on ranks with equal local ids; the order of
  the files depended on no seed at all.

What stays as it is: the host's colour operations on DALI, which differ from torchvision's (contrast
about 128 instead of the image's mean, a linear hue rotation, one fixed order, blur at borders).
"""

import inspect
import os
from functools import wraps
from types import SimpleNamespace

from ressl_plugin import host
from ressl_plugin.utils.errors import UserError

HOST_SEED = 12  # the host's default, kept when nobody has seeded the process


def mend():
    """Mend the main branch's DALI pipelines; doing it again changes nothing.

    Those of 1.0.2 are as they were: its package has no scripts that would run them.

    Raises:
        UserError: DALI is not installed.
    """
    if host.GENERATION != "main":
        return
    try:
        from solo.data import dali_dataloader as module
    except ImportError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
        raise UserError(
            f"format=dali needs DALI ({error}); `pip install 'ressl_plugin[dali]'`"
        ) from error
    if isinstance(module.ops, SimpleNamespace):
        return
    module.ops = _mended_ops(module.ops)
    for cls in (module.NormalPipelineBuilder, module.PretrainPipelineBuilder):
        _mend_builder(cls)


def process_seed():
    """cfg.seed as the scripts hand it to Lightning's seed_everything, which leaves it here."""
    return int(os.environ.get("PL_GLOBAL_SEED", HOST_SEED))


def _mended_ops(ops):
    """nvidia.dali.ops as the host's module sees it: its file reader keeps epochs apart.

    Padded with repetitions of a last image, every epoch starts on a batch boundary; the padded
    batch is the one that the host's DROP policy drops. All ranks must shuffle alike, so the seed
    of the order does not depend on the rank.
    """

    def file_reader(*args, **kwargs):
        kwargs.setdefault("pad_last_batch", True)
        if kwargs.get("shuffle_after_epoch"):
            kwargs.setdefault("shuffle_after_epoch_seed", process_seed())
        return ops.readers.File(*args, **kwargs)

    readers = SimpleNamespace(**{**vars(ops.readers), "File": file_reader})
    return SimpleNamespace(**{**vars(ops), "readers": readers})


def _require_gpu():
    import torch

    if not torch.cuda.is_available():
        raise UserError("dali.device=gpu, but there is no CUDA device; set dali.device=cpu")


def _mend_builder(cls):
    """A builder whose device_id and seed the data module hands to the pipeline."""
    init = cls.__init__

    @wraps(init)
    def __init__(self, *args, **kwargs):
        given = inspect.signature(init).bind(self, *args, **kwargs)
        given.apply_defaults()
        given = given.arguments
        on_cpu = given["device"] == "cpu"
        if not on_cpu:
            _require_gpu()
        init(self, *args, **kwargs)
        # by the global rank: local ids repeat over nodes
        seed = given["seed"] if "seed" in kwargs else process_seed()
        self.seed = (seed + given["shard_id"]) % 2**31
        self.device_id = None if on_cpu else given["device_id"]

    cls.__init__ = __init__
