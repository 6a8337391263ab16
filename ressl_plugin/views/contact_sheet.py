"""A contact sheet: what the student and the teacher are shown of a few images."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

CELL = 128  # pixels that a large view takes at least; smaller views stay smaller in proportion
GAP = 8
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
EDGE = (200, 200, 200)  # around every picture: a white one would have no end on white paper


def sheet(images, recipe, views):
    """One row an image: the original, then its view for each of recipe.crops, with their sizes.

    images: uint8 (N, H, W, 3) or (N, 3, H, W), or a list of PIL images of any size. views: the
    normalised (N, 3, S, S) tensors in the order of recipe.crops, or a function that makes them of
    `images`, such as a batched.draw that has been given its recipe. Returns a PIL image.
    """
    views = views(images) if callable(views) else views
    originals = [_as_pil(image) for image in images]
    large = max(view.crop_size for view in recipe.crops)
    scale = max(1, -(-CELL // large))
    cell = large * scale
    heads = [_original_head(originals)] + [_head(view) for view in recipe.crops]
    font = ImageFont.load_default(size=12)
    line = 16
    lines = max(map(len, heads))
    widths = [
        max(cell, *(round(font.getlength(text)) for text in head)) if head else cell
        for head in heads
    ]
    top = GAP + lines * line + GAP // 2
    size = (GAP + sum(widths) + GAP * len(widths), top + (cell + GAP) * len(originals))
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    x = GAP
    for column, (head, width) in enumerate(zip(heads, widths)):
        for i, text in enumerate(head):
            pen.text((x, GAP + i * line), text, fill=FAINT if i else INK, font=font)
        for row, original in enumerate(originals):
            if column == 0:
                picture = _fit(original, cell)
            else:
                view = recipe.crops[column - 1]
                picture = _shown(views[column - 1][row], view)
                picture = picture.resize([side * scale for side in picture.size], Image.NEAREST)
            y = top + row * (cell + GAP)
            pen.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=EDGE)
            page.paste(picture, (x, y))
        x += width + GAP
    return page


def _as_pil(image):
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    return Image.fromarray(array if array.shape[-1] == 3 else array.transpose(1, 2, 0))


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
    return Image.fromarray(levels.to(torch.uint8).permute(1, 2, 0).numpy())
