"""One image file to one 8-bit RGB image: the only rules by which anything here decodes."""

import contextlib
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ressl_plugin.config.schema import MAX_PIXELS
from ressl_plugin.utils.errors import UserError

# The host's ImageFolder lists all but .gif, so without those indexes agree with its own.
EXTENSIONS = (*IMG_EXTENSIONS, ".gif")

# EXIF's orientation -> what turns the image upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# what Pillow's decoders raise on damaged files
DECODING = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError,
            RuntimeError, struct.error, zlib.error)  # fmt: skip


class BadImage(Exception):
    """A file that no rule turns into RGB; says why."""


class TooLarge(BadImage):
    """It has more pixels than `max_pixels`."""


def is_image_name(name):
    return str(name).lower().endswith(EXTENSIONS)


def to_rgb(image):
    """PIL image of any mode, loaded -> PIL image of mode RGB.

    16 bits are scaled to 8 (65535 -> 255; Pillow's own conversion clips at 255); CMYK, YCbCr, grey,
    palette and bilevel are converted by Pillow; alpha is dropped, as torchvision's and DALI's
    decoders do. The EXIF orientation is not applied (nor is it by the host): decode does that if it
    is told to. Raises BadImage for 32-bit images, whose range is unknown.
    """
    if image.mode.startswith("I;16"):
        return _scale_16_bit(np.asarray(image))
    if image.mode == "I":  # 16-bit PGM and some PNG decode to 32-bit integers
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("32-bit integers: convert the file to 8 or 16 bits")
        return _scale_16_bit(values)
    if image.mode == "F":
        raise BadImage("32-bit floats: convert the file to 8 or 16 bits")
    if image.mode == "RGB":
        return image
    try:
        if image.mode in ("PA", "La", "RGBa"):  # no direct way to RGB in Pillow
            image = image.convert({"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}[image.mode])
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # else Pillow warns; the colours are the same
        return image.convert("RGB")
    except DECODING as error:
        raise BadImage(f"mode {image.mode}: {error}") from error


def _scale_16_bit(values):
    levels = (values.astype(np.int64) * 255 + 32767) // 65535
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def decode(path, exif=False, max_pixels=MAX_PIXELS):
    """File -> (PIL RGB, whether EXIF says to turn it), every pixel decoded; of an animation its
    first frame.

    exif: turn the image as its EXIF orientation says (a TIFF's is heeded in any case, by Pillow).
    max_pixels: of the first frame, beyond which nothing is decoded. Raises BadImage, for a missing
    file, too.
    """
    with contextlib.ExitStack() as opened:
        try:
            image = opened.enter_context(Image.open(path))
            if image.width * image.height <= max_pixels:
                image.load()  # all of it: a cut-off file fails here, not in to_rgb
        except Image.UnidentifiedImageError as error:
            raise BadImage("empty, damaged at its start, or no image") from error
        except (*DECODING, Image.DecompressionBombError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BadImage(why) from error
        if image.width * image.height > max_pixels:
            size = f"{image.width} x {image.height} pixels"
            raise TooLarge(f"{size}, data.max_pixels={max_pixels}")
        turn = _UPRIGHT.get(_orientation(image))
        rgb = to_rgb(image)
    return rgb.transpose(turn) if exif and turn is not None else rgb, turn is not None


def size_of(path, exif=False):
    """(width, height) from a file's header, as decode gives it; None where it cannot be read."""
    with contextlib.ExitStack() as opened:
        try:
            image = opened.enter_context(Image.open(path))
        except (*DECODING, Image.DecompressionBombError):  # decode says why
            return None
        width, height = image.size
        sideways = exif and _orientation(image) in (5, 6, 7, 8)
    return (height, width) if sideways else (width, height)


def _orientation(image):
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except DECODING:  # damaged EXIF data: the pixels are sound
        return None


def load_image(path, exif=False, max_pixels=MAX_PIXELS):
    """File -> PIL RGB: the loader of every image folder. Raises UserError naming the file."""
    try:
        return decode(path, exif, max_pixels)[0]
    except TooLarge as error:  # `ressl data check` has a limit of its own
        raise UserError(f"{path} cannot be used ({error}); delete it or make it smaller") from error
    except BadImage as error:
        raise UserError(
            f"{path} cannot be used ({error}); `ressl data check DIR` lists every such file, "
            "delete or repair them"
        ) from error


def fit(image, size, interpolation="bicubic"):
    """PIL image -> PIL image of size x size: shorter side to size (antialiased), centre crop.
    interpolation: bicubic or bilinear. An image that has this size already is returned as it is."""
    width, height = image.size
    if width == height == size:
        return image
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
