"""`ressl views`: a contact sheet of what a config shows to student and teacher."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from ressl_plugin import config, data
from ressl_plugin.data.training import HostViews
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf")
CELL = 128  # pixels that a large view takes at least; smaller views stay smaller in proportion
GAP, LINE = 8, 16
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
EDGE = (200, 200, 200)  # around every picture: a white one would have no end on white paper


def write(target: str, overrides: list[str], out: Path, images: int = 6, backend: str = "batched"):
    """Draw a few training images' views with one back end into a picture.

    Args:
        target, overrides: as in config.load.
        out: file to write, a picture by its suffix.
        images: rows of the sheet.
        backend: host, dali or batched.

    Raises:
        UserError: the data are missing, a back end that cannot draw the recipe, no picture's name.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES or out.is_dir():
        raise UserError(f"--out {out}: the name of a picture, ending in {', '.join(SUFFIXES)}")
    if images < 1:
        raise UserError(f"--images {images}: at least 1")
    cfg = config.finish(config.load(target, overrides))
    # in memory: Pillow's own error for a full disk says nothing, and leaves half a picture
    content = io.BytesIO()
    content.name = out.name  # its suffix is the format
    of_config(cfg, images, backend).save(content)
    files.replace(out, content.getvalue())
    return out


def of_config(cfg, images: int = 6, backend: str = "batched") -> Image.Image:
    """The sheet of a complete config; see `write`."""
    read = data.view_recipe(cfg)
    dataset = data.build_dataset(cfg, "pretrain")
    rows = torch.linspace(0, len(dataset) - 1, min(images, len(dataset))).long().unique().tolist()
    originals = [dataset[i][0] for i in rows]
    if backend == "dali":
        from ressl_plugin.data import dali

        views = dali.few(cfg, read, dataset, rows)
    else:
        draw = HostViews(cfg) if backend == "host" else _batched(read, cfg.seed)
        views = zip(*map(draw, originals))  # one at a time: their sizes may differ
    return sheet(originals, read, views)


def _batched(read, seed: int):
    """PIL image -> its views, drawn as a batch of one."""
    from ressl_plugin.views import batched

    generator = torch.Generator().manual_seed(seed)
    draw = partial(batched.draw, recipe=read, generator=generator)
    return lambda image: [view[0] for view in draw(torch.from_numpy(np.array(image))[None])]


def sheet(originals: list[Image.Image], recipe, views) -> Image.Image:
    """One row an image: the original, then its view for each of recipe.crops, with their sizes.

    `views`: for each of recipe.crops as many normalised (3, S, S) tensors as there are originals.
    """
    originals = [image.convert("RGB") for image in originals]
    large = max(view.crop_size for view in recipe.crops)
    scale = max(1, -(-CELL // large))
    cell = large * scale
    sizes = {f"{image.width} x {image.height}" for image in originals}
    heads = [["original", *(sizes if len(sizes) == 1 else ["various sizes"])]]
    heads += map(_head, recipe.crops)
    font = ImageFont.load_default(size=12)
    width = max(cell, *(round(font.getlength(text)) for head in heads for text in head))
    tiles = []
    for original, *drawn in zip(originals, *views):
        how = Image.NEAREST if max(original.size) < cell else Image.BICUBIC
        tiles.append(_tile(ImageOps.contain(original, (cell, cell), how), width, cell))
        shown = (_shown(view, crop) for view, crop in zip(drawn, recipe.crops))
        tiles += [_tile(ImageOps.scale(view, scale, Image.NEAREST), width, cell) for view in shown]
    # the edges are in the gap
    rows = to_pil_image(make_grid(tiles, nrow=len(heads), padding=GAP - 2, pad_value=255))
    top = GAP + max(map(len, heads)) * LINE
    page = ImageOps.expand(rows, (0, top, 0, 0), PAPER)
    pen = ImageDraw.Draw(page)
    for column, head in enumerate(heads):
        for i, text in enumerate(head):
            place = (GAP - 1 + column * (width + GAP), GAP + i * LINE)
            pen.text(place, text, fill=FAINT if i else INK, font=font)
    return page


def _tile(picture: Image.Image, width: int, height: int) -> torch.Tensor:
    """A picture with its edge in the upper left of a piece of paper, (3, height + 2, width + 2)."""
    tile = Image.new("RGB", (width + 2, height + 2), PAPER)
    tile.paste(ImageOps.expand(picture, 1, EDGE))
    return pil_to_tensor(tile)


def _head(view) -> list[str]:
    """What is written above a view: its role, its size, what is done with some probability."""
    area = f", area {view.area[0]:g} to {view.area[1]:g}" if view.crop_enabled else ""
    done = ["crop"] if view.crop_enabled else []
    for name in ("flip", "jitter", "gray", "blur", "solarize", "equalize"):
        done += [name] if getattr(view, f"{name}_prob") else []
    parts = [done[i : i + 3] for i in range(0, len(done), 3)] or [["resize only"]]
    return [view.role, f"{view.crop_size} px{area}", *map(", ".join, parts)]


def _shown(tensor, view):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (view.mean, view.std))
    levels = (tensor.detach().float().cpu() * std + mean).mul(255).round().clamp(0, 255)
    return to_pil_image(levels.to(torch.uint8))
