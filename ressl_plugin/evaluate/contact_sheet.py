"""`ressl views`: a contact sheet of what a config shows to student and teacher."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ressl_plugin import config, data
from ressl_plugin.data.training import HostViews
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf")


def write(target: str, overrides: list[str], out: Path, images: int = 6, backend: str = "batched"):
    """Draw a few training images' views with one back end into a picture.

    Args:
        target, overrides: as in config.load.
        out: file to write, a picture by its suffix.
        images: rows of the sheet.
        backend: host, dali or batched.

    Returns:
        The file's path.

    Raises:
        UserError: the data are missing, a back end that cannot draw the recipe, no picture's name.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES or out.is_dir():
        raise UserError(f"--out {out}: the name of a picture, ending in {', '.join(SUFFIXES)}")
    if images < 1:
        raise UserError(f"--images {images}: at least 1")
    cfg = config.finish(config.load(target, overrides))
    read = data.view_recipe(cfg)
    dataset = data.build_dataset(cfg, "pretrain")
    rows = torch.linspace(0, len(dataset) - 1, min(images, len(dataset))).long().unique().tolist()
    originals = [dataset[i][0] for i in rows]
    views = {"host": _host, "batched": _batched, "dali": _dali}[backend](
        cfg, read, dataset, rows, originals
    )
    from ressl_plugin.views import contact_sheet

    picture = contact_sheet.sheet(originals, read, views)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.replace(out, _encoded(picture, out))
    return out


def _encoded(picture, out: Path) -> bytes:
    # in memory: Pillow's own error for a full disk says nothing, and leaves half a picture
    content = io.BytesIO()
    content.name = out.name  # its suffix is the format
    picture.save(content)
    return content.getvalue()


def _host(cfg, read, dataset, rows, originals):
    draw = HostViews(cfg)
    return [torch.stack(view) for view in zip(*(draw(image) for image in originals))]


def _batched(cfg, read, dataset, rows, originals):
    from ressl_plugin.views import batched

    generator = torch.Generator().manual_seed(cfg.seed)
    draw = partial(batched.draw, recipe=read, generator=generator)
    # one at a time: their sizes may differ
    each = [draw(torch.from_numpy(np.array(image))[None]) for image in originals]
    return [torch.cat(view) for view in zip(*each)]


def _dali(cfg, read, dataset, rows, originals):
    from ressl_plugin.data import dali

    return dali.few(cfg, read, dataset, rows)
