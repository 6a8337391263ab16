"""Back end `batched`: every view of a batch of uint8 images, drawn by a few tensor operations.

Each image has its own crop, flip, colours and blur, by the laws of torchvision's transforms in the
host's pipeline. The parameters are drawn on the host, a few kilobytes a batch: so a seed gives the
same views on every device, and no device ever waits to learn which images an operation is for.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from ressl_plugin.utils import sampling
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.precision import float32_products
from ressl_plugin.views import ops
from ressl_plugin.views.recipe import read

CPU_PIXELS = 1 << 18
TRIES = 10  # RandomResizedCrop's, before it falls back to the largest crop of an allowed shape


class Params(NamedTuple):
    """What one view does to each of N images; on the host. None: the view never does it."""

    box: torch.Tensor | None  # (N, 4) top, left, height, width in pixels
    flip: torch.Tensor | None  # (N,) bool, as all that follow unless said otherwise
    jitter: torch.Tensor | None
    colour: torch.Tensor | None  # (N, 3, 3) by turn: the coefficients of ops.affine_colour
    hue: torch.Tensor | None  # (N,) turns
    hue_turn: torch.Tensor | None  # (N,) 0 to 3: how many of the other three come before hue
    gray: torch.Tensor | None
    blur: torch.Tensor | None
    sigma: torch.Tensor | None  # (N,) pixels
    solarize: torch.Tensor | None
    equalize: torch.Tensor | None

    def part(self, images):
        return self.map(lambda value: value[images])

    def map(self, change):
        return Params(*(None if value is None else change(value) for value in self))


class Views:
    """A view recipe as a callable on batches of uint8 images.

    Args:
        augmentations: the list of a config (presets.py has the presets), a role for each view.
        mean_std: three floats each, for entries that give none (else ImageNet's).
        interpolation: bicubic or bilinear.

    Examples:
        >>> views = Views([{"preset": "contrastive"}, {"preset": "weak"}])
        >>> (contrastive,), weak = views(images)  # (N, 3, 224, 224) each

    Raises:
        UserError: naming the entry.
    """

    def __init__(
        self,
        augmentations: Sequence[Mapping[str, Any]],
        mean_std: tuple[Sequence[float], Sequence[float]] | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        self.recipe = read(augmentations, mean_std, interpolation)

    def __call__(
        self, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Images uint8 (N, H, W, 3) or (N, 3, H, W), on any device, to the student's views and the
        teacher's, (N, 3, S, S) float32 each, normalised; `generator` as in `draw`."""
        drawn = draw(images, self.recipe, generator)
        return [drawn[i] for i in self.recipe.student], drawn[self.recipe.teacher]


@torch.no_grad()
def draw(images, recipe, generator=None, channels_last=False, core=None):
    """All views of a batch, one float32 tensor (N, 3, S, S) for each of `recipe.crops`, normalised.

    images: uint8 (N, H, W, 3) or (N, 3, H, W), on any device. generator: a torch.Generator, on
    the CPU to keep the device from waiting. core: `apply_dense`, compiled by torch.compile, to draw
    with that instead. Raises UserError for images of another type or shape.
    """
    n, _, height, width = _planar(images).shape
    params = draw_all_params(recipe, n, height, width, generator)
    return render(images, params, recipe, channels_last, core)


def draw_all_params(recipe, n, height, width, generator=None):
    """What `draw` draws at random for n images of (height, width): the Params of each crop, on the
    host."""
    return [draw_params(view, n, height, width, generator) for view in recipe.crops]


@torch.no_grad()
def render(images, params, recipe, channels_last=False, core=None):
    """The rest of `draw`; with `core` the params may be where the images are."""
    if images.device.type == "cpu":
        _keep_freed_memory()
    images = _planar(images).contiguous()
    n, _, height, width = images.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = [
        torch.empty(
            (n, 3, v.crop_size, v.crop_size),
            dtype=torch.float32,
            device=images.device,
            memory_format=layout,
        )
        for v in recipe.crops
    ]
    with torch.autocast(images.device.type, enabled=False), float32_products():
        for view, drawn, result in zip(recipe.crops, params, out):
            if core is not None:
                there = drawn.map(lambda value: value.to(images.device, non_blocking=True))
                ops.normalise(core(images.float(), there, view), view.mean, view.std, result)
                continue
            for part in _parts(images, max(height * width, view.crop_size**2)):
                x = apply(images[part].float(), drawn.part(part), view)
                ops.normalise(x, view.mean, view.std, result[part])
    return out


@cache
def _keep_freed_memory():
    """Free one large block: glibc then keeps freed blocks of up to that size for the next use.

    Before that every temporary is mapped afresh, and the page faults cost more than the sums.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _parts(images, pixels):
    """Slices of a batch of images of so many pixels: on a CPU what its cache holds, else all."""
    step = max(1, CPU_PIXELS // pixels) if images.device.type == "cpu" else max(1, len(images))
    return [slice(i, i + step) for i in range(0, len(images), step)]


def _planar(images):
    if images.dtype != torch.uint8 or images.dim() != 4 or 3 not in images.shape[1::2]:
        raise UserError(
            f"the batched back end was given {images.dtype} images of shape "
            f"{tuple(images.shape)}; it takes uint8 (N, H, W, 3) or (N, 3, H, W)"
        )
    return images.permute(0, 3, 1, 2) if images.shape[3] == 3 else images


def draw_params(view, n, height, width, generator=None):
    """The Params of `view` for n images of (height, width), by torchvision's sampling laws."""
    uniform = _uniform(generator)
    if view.crop_enabled:
        box = _random_boxes(view, n, height, width, uniform)
    else:
        # The host's Resize takes the shorter side; a batch needs a square, so its centre.
        side = min(height, width)
        middle = [(height - side) // 2, (width - side) // 2, side, side]
        box = torch.tensor(middle, dtype=torch.float32).expand(n, 4)
    flip = uniform(n) < view.flip_prob
    return _colour_params(view, n, uniform)._replace(box=box, flip=flip)


def _uniform(generator):
    def uniform(*shape, low=0.0, high=1.0):
        return sampling.rand(*shape, generator=generator) * (high - low) + low

    return uniform


def _colour_params(view, n, uniform):
    def chosen(probability):
        return uniform(n) < probability if probability else None

    jitter = chosen(view.jitter_prob)
    colour = hue = hue_turn = sigma = None
    if jitter is not None:
        if view.brightness or view.contrast or view.saturation:
            colour = _colour(view, n, uniform)
        if view.hue:
            hue = uniform(n, low=-view.hue, high=view.hue)
            hue_turn = (uniform(n) * 4).long()
    gray, blur = chosen(view.gray_prob), chosen(view.blur_prob)
    if blur is not None:
        sigma = uniform(n, low=view.blur_sigma[0], high=view.blur_sigma[1])
    rest = chosen(view.solarize_prob), chosen(view.equalize_prob)
    return Params(None, None, jitter, colour, hue, hue_turn, gray, blur, sigma, *rest)


def _random_boxes(view, n, height, width, uniform):
    """RandomResizedCrop's boxes (N, 4): of its ten tries the first that fits in the image."""
    area = height * width * uniform(n, TRIES, low=view.area[0], high=view.area[1])
    low, high = map(math.log, view.ratio)
    ratio = uniform(n, TRIES, low=low, high=high).exp()
    h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (h > 0) & (w > 0) & (h <= height) & (w <= width)
    first = fits.int().argmax(1, keepdim=True)
    h, w, fits = (t.gather(1, first).squeeze(1) for t in (h, w, fits))
    top = (uniform(n) * (height - h + 1)).floor()
    left = (uniform(n) * (width - w + 1)).floor()
    whole_h = min(height, round(width / view.ratio[0]))
    whole_w = min(width, round(height * view.ratio[1]))
    whole = [(height - whole_h) // 2, (width - whole_w) // 2, whole_h, whole_w]
    box = torch.stack([top, left, h, w], 1)
    return torch.where(fits.unsqueeze(1), box, torch.tensor(whole, dtype=box.dtype))


def _colour(view, n, uniform):
    """Brightness, contrast and saturation in an order of their own for each image: (N, 3, 3)."""
    strength = (view.brightness, view.contrast, view.saturation)
    factor = [uniform(n, low=max(0.0, 1 - s), high=1 + s) for s in strength]
    none = torch.zeros(n)
    kinds = (
        torch.stack([factor[0], none, none], 1),
        torch.stack([factor[1], none, 1 - factor[1]], 1),
        torch.stack([factor[2], 1 - factor[2], none], 1),
    )
    order = uniform(n, 3).argsort(1).unsqueeze(2).expand(n, 3, 3)
    return torch.stack(kinds, 1).gather(1, order)


def apply(images, params, view):
    """One view of float images (N, 3, H, W) of levels 0 to 255, params on the host; not normalised.

    An operation is done to the images chosen for it and to no others.
    """
    box, flip = (value.to(images.device, non_blocking=True) for value in params[:2])
    x = ops.crop_resize_flip(images, box, flip, view.crop_size, view.interpolation)
    return _change_colours(x, params, view)


@torch.no_grad()
def apply_colour(images, view, generator=None):
    """What comes after crop and flip, normalisation included: images (N, 3, S, S) float32 of
    levels 0 to 1, already cropped by another back end. The rest as `draw`."""
    params = _colour_params(view, len(images), _uniform(generator))
    out = torch.empty_like(images)
    with torch.autocast(images.device.type, enabled=False), float32_products():
        for part in _parts(images, images[0, 0].numel()):
            x = _change_colours(images[part] * 255, params.part(part), view)
            ops.normalise(x, view.mean, view.std, out[part])
    return out


def _change_colours(x, params, view):
    def there(value):
        return value.to(x.device, non_blocking=True)

    def some(mask, operation, *values):
        index = mask.nonzero().squeeze(1)
        if len(index):
            values = [there(value[index]) for value in values]
            index = there(index)
            x.index_copy_(0, index, operation(x.index_select(0, index), *values))

    if params.jitter is not None:
        index = params.jitter.nonzero().squeeze(1)
        if params.hue is not None:
            index = index[params.hue_turn[index].argsort()]
        chosen = params.part(index)
        index = there(index)
        x.index_copy_(0, index, _jitter(x.index_select(0, index), chosen, there))
    for mask, operation, *values in _after_jitter(params, view):
        if mask is not None:
            some(mask, operation, *values)
    return x


def _after_jitter(params, view):
    """(who is chosen, operation, its parameters), in order."""
    return (
        (params.gray, lambda x: ops.grayscale(x).expand_as(x)),
        (params.blur, partial(ops.gaussian_blur, largest=view.blur_sigma[1]), params.sigma),
        (params.solarize, partial(ops.solarize, threshold=view.solarize_threshold)),
        (params.equalize, ops.equalize),
    )


def _jitter(x, params, there):
    """Colour jitter of images sorted by hue_turn: those that still have hue before them, or have
    it behind them, are then one slice, and hue itself is for all at once."""
    colour = None if params.colour is None else there(params.colour)
    ends = [0] * 4  # how many images have no more than so many of the other three before hue
    if params.hue is not None:
        ends = params.hue_turn.bincount(minlength=4).cumsum(0).tolist()

    def change(turn, part):
        if colour is not None and part.stop > part.start:
            ops.affine_colour(x[part], *colour[part, turn].unbind(1), out=x[part])

    for turn in range(3):
        change(turn, slice(ends[turn], len(x)))
    if params.hue is not None:
        x = ops.hue(x, there(params.hue))
    for turn in range(3):
        change(turn, slice(0, ends[turn]))
    return x


def apply_dense(images, params, view):
    """`apply` with nothing but static shapes, for torch.compile: every operation on all images,
    kept where chosen. params on the device of the images."""
    x = ops.crop_resize_flip(images, params.box, params.flip, view.crop_size, view.interpolation)
    if params.jitter is not None:
        x = _kept(params.jitter, _jitter_dense(x, params), x)
    for mask, operation, *values in _after_jitter(params, view):
        if mask is not None:
            x = _kept(mask, operation(x, *values), x)
    return x


def _kept(mask, new, old):
    return torch.where(mask[:, None, None, None], new, old)


def _jitter_dense(x, params):
    """`_jitter` of all images: the turns before hue, hue, the turns after it."""
    turns = range(3) if params.colour is not None else ()

    def change(x, turn):
        return ops.affine_colour(x, *params.colour[:, turn].unbind(1))

    if params.hue is None:
        for turn in turns:
            x = change(x, turn)
        return x
    for turn in turns:
        x = _kept(turn < params.hue_turn, change(x, turn), x)
    x = ops.hue(x, params.hue)
    for turn in turns:
        x = _kept(turn >= params.hue_turn, change(x, turn), x)
    return x
