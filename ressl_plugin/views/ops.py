"""The operations of a view on a batch, each image with its own parameters.

Images are float tensors (N, 3, H, W) of levels 0 to 255, parameters are (N,) tensors on the same
device. The arithmetic is torchvision's on PIL images, without PIL's rounding to 8 bits between
operations; tests/unit/views/test_ops.py states the distance of each in 8-bit levels.
"""

import math
from functools import lru_cache

import PIL
import torch

GRAY = (0.299, 0.587, 0.114)
BOX_PASSES = 3  # PIL's GaussianBlur is three box blurs

# Since version 13 PIL resizes the rows first where that saves it time, columns first elsewhere.
PIL_ROWS_FIRST = int(PIL.__version__.split(".")[0]) >= 13

_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}


def crop_resize_flip(images, box, flip, size, interpolation="bicubic"):
    """Crop `box`, resize to (size, size) with antialiasing, mirror where `flip`: one resampling.

    box: (N, 4) top, left, height, width in pixels, inside the image; flip: (N,) 0 or 1.
    interpolation: bicubic (a = -0.5) or bilinear, as PIL resizes. Returns (N, 3, size, size).
    """
    n, channels, height, width = images.shape
    top, left, h, w = box.to(torch.float32).unbind(1)
    upright = torch.zeros_like(flip)
    if height == width:  # both at once: half as many operations
        both = torch.cat([top, left]), torch.cat([h, w]), torch.cat([upright, flip])
        rows, columns = _resize_weights(*both, height, size, interpolation).chunk(2)
    else:
        rows = _resize_weights(top, h, upright, height, size, interpolation)
        columns = _resize_weights(left, w, flip, width, size, interpolation)
    out = torch.bmm(images.reshape(n, channels * height, width), columns.transpose(1, 2))
    out = out.clamp_(0, 255).view(n, channels, height, size)
    out = torch.matmul(rows.unsqueeze(1), out).clamp_(0, 255)
    if PIL_ROWS_FIRST and interpolation == "bicubic" and height > size:
        # The order tells where a bicubic overshoot is cut off between the two.
        tall = (h > size) & (2 * w < h + size)
        other = torch.matmul(rows.unsqueeze(1), images).clamp_(0, 255)
        other = torch.matmul(other, columns.transpose(1, 2).unsqueeze(1)).clamp_(0, 255)
        out = torch.where(tall[:, None, None, None], other, out)
    return out


def _resize_weights(start, length, flip, full, size, interpolation):
    """PIL's resampling coefficients, as matrices (N, size, full) that are zero off the crop."""
    n, device = len(start), start.device
    support = _SUPPORT[interpolation]
    taps = 2 * math.ceil(support * max(1.0, full / size)) + 1
    at = torch.arange(size, device=device, dtype=torch.float32)
    at = torch.where(flip.bool().unsqueeze(1), size - 1 - at, at)
    scale = (length / size).unsqueeze(1)
    stretch = scale.clamp(min=1)
    centre = (at + 0.5) * scale
    first = (centre - support * stretch + 0.5).floor_().clamp_(min=0)
    # Taps are the outermost dimension, so that the broadcasts run over long rows.
    pixel = first + torch.arange(taps, device=device, dtype=torch.float32).view(taps, 1, 1)
    weight = _kernel((pixel + 0.5 - centre).div_(stretch), interpolation)
    weight.mul_(pixel < length.unsqueeze(1))
    weight.div_(weight.sum(0))
    # The columns past the image take the taps past the crop's end, whose weights are zero.
    dense = weight.new_zeros(n * size, full + taps)
    index = pixel.add_(start.unsqueeze(1)).long().view(taps, n * size)
    dense.scatter_(1, index.t(), weight.view(taps, n * size).t())
    return dense.view(n, size, full + taps)[:, :, :full]


def _kernel(x, interpolation):
    """The filter at distances x in pixels of the coarser grid, in place."""
    x = x.abs_()
    if interpolation == "bilinear":
        return x.neg_().add_(1).clamp_(min=0)
    # Catmull-Rom as two truncated cubics: the outer one on |x| < 2, a correction on |x| < 1.
    outer = x.neg_().add_(2).clamp_(min=0)
    less = outer - 1
    inner = less.clamp(min=0)
    outer.mul_(outer).mul_(less).mul_(0.5)
    return outer.addcmul_(inner.square(), inner.mul_(-2).add_(1))


def grayscale(images):
    """Luma (N, 1, H, W), PIL's weights."""
    out = images[:, 0:1] * GRAY[0]
    return out.add_(images[:, 1:2], alpha=GRAY[1]).add_(images[:, 2:3], alpha=GRAY[2])


def affine_colour(images, own, gray, mean, out=None):
    """clamp(own * x + gray * luma(x) + mean * average(luma(x))), coefficients (N,) each.

    Brightness f is (f, 0, 0), saturation (f, 1 - f, 0), contrast (f, 0, 1 - f): one form for the
    three, so that a batch may do a different one in each image. out: may be `images`.
    """
    luma = grayscale(images)
    offset = luma.mean((1, 2, 3), keepdim=True) * _each(mean)
    offset = luma.mul_(_each(gray)).add_(offset)
    return torch.addcmul(offset, images, _each(own), out=out).clamp_(0, 255)


def hue(images, shift):
    """torchvision's adjust_hue: turn the hue of HSV by `shift` (N,) turns, in [-0.5, 0.5].

    Through PIL's 8-bit HSV, as on a PIL image, where a step of hue is up to 6 levels (a hue that
    falls just between two steps may take the other).
    """
    red, green, blue = images.unbind(1)
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    chroma = high - low
    # Distance from cyan, 0 to 3 sixths of a turn, and on which side of it: 3 minus it is the hue.
    sixth = (red + low).sub_(green).sub_(blue).div_(chroma + 1e-6).add_(2)
    sixth = sixth.copysign_(green - blue)
    shift = (shift[:, None, None] * 255).trunc()
    # Of PIL's 256 hues 255 make a turn. It cuts off hue and saturation, ties here going up.
    steps = sixth.mul_(-255 / 6).add_(255 / 2 + 1e-4).floor_().add_(shift)
    # modulo 256: several times faster than remainder_ on a CPU
    sixth = steps.sub_((steps / 256).floor_(), alpha=256).mul_(6 / 255)
    share = chroma.div_(high.clamp(min=1)).mul_(255 * (1 + 1e-6)).floor_()
    chroma = share.mul_(high).mul_(1 / 255)
    low = high - chroma
    # A channel falls from high to low between one and two sixths from its own hue, and for red,
    # measured from cyan, it rises.
    out = torch.empty_like(images)
    low, high = low.sub_(chroma), high.add_(chroma)
    for channel, (start, centre, sign) in enumerate(((low, 3, 1), (high, 2, -1), (high, 4, -1))):
        distance = (sixth - centre).abs_().clamp_(1, 2)
        out[:, channel].copy_(start).addcmul_(distance, chroma, value=sign)
    return out


def box_radius(sigma):
    """Radius of the box whose three passes make PIL's Gaussian blur of `sigma` pixels."""
    variance = sigma * sigma / BOX_PASSES
    whole = ((12 * variance + 1).sqrt() / 2 - 0.5).floor()
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + edge / (6 * (variance - (whole + 1) ** 2))


def gaussian_blur(images, sigma, largest=2.0):
    """PIL's GaussianBlur(sigma), borders included; sigma (N,) pixels, none above `largest`.

    Rounded to 8 bits after each of the six passes as PIL does: that leaves a smooth patch as it
    is where sigma is small, by up to 3 levels off the unrounded blur.
    """
    n, channels, height, width = images.shape
    columns = _box_weights(sigma, width, largest)
    rows = columns if height == width else _box_weights(sigma, height, largest)
    out = images.round().reshape(n, channels * height, width)
    columns = columns.transpose(1, 2)
    for _ in range(BOX_PASSES):
        out = torch.bmm(out, columns).round_()
    out = out.view(n * channels, height, width)
    rows = rows.repeat_interleave(channels, 0)
    for _ in range(BOX_PASSES):
        out = torch.bmm(rows, out).round_()
    return out.view(n, channels, height, width)


def _box_weights(sigma, size, largest):
    """One pass as a matrix (N, size, size) that repeats the border pixels."""
    radius = box_radius(sigma)[:, None, None]
    # in plain numbers, so that a compiler need not ask a tensor for one
    pad = math.floor(math.sqrt(12 * largest**2 / BOX_PASSES + 1) / 2 - 0.5) + 2  # above any radius
    at = torch.arange(size, device=sigma.device, dtype=torch.float32)
    other = torch.arange(-pad, size + pad, device=sigma.device, dtype=torch.float32)
    distance = (at.unsqueeze(1) - other).abs()
    # PIL truncates its fixed-point weights, so that ties (many at sigma 1) round down.
    weight = (radius + 1 - distance).clamp_(0, 1).div_((2 * radius + 1) * (1 + 1e-6))
    box = weight[:, :, pad : pad + size].contiguous()
    box[:, :, 0] += weight[:, :, :pad].sum(2)
    box[:, :, -1] += weight[:, :, pad + size :].sum(2)
    return box


def solarize(images, threshold=128):
    """Invert what is at or above `threshold`, an 8-bit level."""
    return torch.where(images >= threshold - 0.5, 255 - images, images)


def equalize(images):
    """PIL's ImageOps.equalize: each channel's histogram made flat, on levels rounded to 8 bits."""
    n, channels, height, width = images.shape
    level = images.round().long().view(n * channels, height * width)
    counts = torch.zeros(n * channels, 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(1, level, torch.ones_like(level))
    last = counts.gather(1, level.amax(1, keepdim=True))
    step = (height * width - last) // 255
    before = counts.cumsum(1) - counts
    table = (before + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.clamp_(max=255).gather(1, level).view_as(images).to(images.dtype)


def normalise(images, mean, std, out=None):
    """(x / 255 - mean) / std for the three channels, three floats each; into `out` if given."""
    scale, shift = _scale_shift(tuple(mean), tuple(std), images.dtype, images.device)
    return torch.addcmul(shift, images, scale, out=out)


@lru_cache
def _scale_shift(mean, std, dtype, device):
    """Made once: copying numbers to a GPU at every step would wait for it at every step."""
    both = [[1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std)]]
    return torch.tensor(both, dtype=dtype, device=device).view(2, 1, 3, 1, 1).unbind()


def _each(parameter):
    return parameter.view(-1, 1, 1, 1)
