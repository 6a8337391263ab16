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
    picture = sheet(originals, read, views)
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


def sheet(images, recipe, views) -> Image.Image:
    """One row an image: the original, then its view for each of recipe.crops, with their sizes.

    Args:
        images: PIL images of any size, or a uint8 tensor (N, H, W, 3).
        recipe: of the views.
        views: the normalised (N, 3, S, S) tensors in the order of recipe.crops.
    """
    originals = [
        image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(image.numpy())
        for image in images
    ]
    large = max(view.crop_size for view in recipe.crops)
    scale = max(1, -(-CELL // large))
    cell = large * scale
    heads = [_original_head(originals)] + [_head(view) for view in recipe.crops]
    font = ImageFont.load_default(size=12)
    width = max(cell, *(round(font.getlength(text)) for head in heads for text in head))
    tiles = []
    for original, *drawn in zip(originals, *views):
        tiles.append(_tile(_fit(original, cell), width, cell))
        shown = (_shown(view, crop) for view, crop in zip(drawn, recipe.crops))
        tiles += [_tile(ImageOps.scale(view, scale, Image.NEAREST), width, cell) for view in shown]
    # the edges are in the gap
    rows = to_pil_image(make_grid(tiles, nrow=len(heads), padding=GAP - 2, pad_value=255))
    top = GAP + max(map(len, heads)) * LINE
    page = Image.new("RGB", (rows.width, top + rows.height), PAPER)
    page.paste(rows, (0, top))
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


def _original_head(originals):
    sizes = {image.size for image in originals}
    width, height = next(iter(sizes))
    return ["original", f"{width} x {height}" if len(sizes) == 1 else "various sizes"]


def _head(view):
    done = {
        "crop": view.crop_enabled,
        "flip": view.flip_prob,
        "jitter": view.jitter_prob,
        "gray": view.gray_prob,
        "blur": view.blur_prob,
        "solarize": view.solarize_prob,
        "equalize": view.equalize_prob,
    }
    names = [name for name, probability in done.items() if probability] or ["resize only"]
    area = f", area {view.area[0]:g} to {view.area[1]:g}" if view.crop_enabled else ""
    texts = [view.role, f"{view.crop_size} px{area}"]
    return [*texts, *(", ".join(names[i : i + 3]) for i in range(0, len(names), 3))]


def _fit(image, cell):
    """The original in a cell: pixels doubled and so on if small, else shrunk."""
    times = cell // max(image.size)
    if times >= 1:
        return image.resize([side * times for side in image.size], Image.NEAREST)
    image = image.copy()
    image.thumbnail((cell, cell))
    return image


def _shown(tensor, view):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (view.mean, view.std))
    levels = (tensor.detach().float().cpu() * std + mean).mul(255).round().clamp(0, 255)
    return to_pil_image(levels.to(torch.uint8))
