"""One image file to one 8-bit RGB image: the only rules by which anything here decodes."""

import contextlib
import os
import struct
import zlib
from pathlib import Path

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
_SIDEWAYS = (5, 6, 7, 8)

# what Pillow's decoders raise on damaged files
DECODING = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError,
            RuntimeError, struct.error, zlib.error)  # fmt: skip

_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"P5", b"P6", b"GIF8")


class BadImage(Exception):
    """A file that no rule turns into RGB. `kind` is what is wrong with it, in a word."""

    def __init__(self, kind, detail):
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


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
            raise BadImage("unsupported", "32-bit integers: convert the file to 8 or 16 bits")
        return _scale_16_bit(values)
    if image.mode == "F":
        raise BadImage("unsupported", "32-bit floats: convert the file to 8 or 16 bits")
    if image.mode == "RGB":
        return image
    try:
        if image.mode in ("PA", "La", "RGBa"):  # no direct way to RGB in Pillow
            image = image.convert({"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}[image.mode])
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # else Pillow warns; the colours are the same
        return image.convert("RGB")
    except DECODING as error:
        raise BadImage("unsupported", f"mode {image.mode}: {error}") from error


def _scale_16_bit(values):
    levels = (values.astype(np.int64) * 255 + 32767) // 65535
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def decode(path, exif=False, max_pixels=MAX_PIXELS):
    """File -> (PIL RGB, notes), every pixel decoded; of an animation its first frame.

    notes: what had to be converted, some of check.CONVERTED, and check.TURNED. exif: turn the image
    as its EXIF orientation says (a TIFF's is heeded in any case, by Pillow). max_pixels: of the
    first frame, beyond which nothing is decoded. Raises BadImage with the kind of damage; a missing
    file is a BadImage, too.
    """
    path = Path(path)
    with contextlib.ExitStack() as opened:
        with _damage_told(path):
            if path.stat().st_size == 0:
                raise BadImage("zero-byte", "the file is empty")
            image = opened.enter_context(Image.open(path))
            if image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height}"
                raise BadImage("huge", f"{size} pixels, data.max_pixels={max_pixels}")
            notes = _notes(image)  # how many frames it has may take reading all of it
            if "animated" in notes:
                image.seek(0)
            image.load()  # frame 0, whole: a cut-off file fails here, not in to_rgb
        turn = _UPRIGHT.get(_orientation(image))
        notes += ["turned"] * (turn is not None)
        rgb = to_rgb(image)
        return rgb.transpose(turn) if exif and turn is not None else rgb, notes


@contextlib.contextmanager
def _damage_told(path):
    """What Pillow raises while it reads a file, as a BadImage."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise BadImage("huge", f"{error}") from error
    except FileNotFoundError as error:
        if path.is_symlink():
            raise BadImage("broken-link", "the link's target is gone") from error
        raise BadImage("missing", "no such file") from error
    except PermissionError as error:
        raise BadImage("unreadable", "no permission to read it") from error
    except Image.UnidentifiedImageError as error:
        with path.open("rb") as file:
            known = file.read(4).startswith(_MAGIC)
        if known:
            raise BadImage("corrupt", "its header cannot be read") from error
        raise BadImage("not-an-image", "its content is in no image format") from error
    except DECODING as error:
        text = str(error) or type(error).__name__
        raise BadImage("truncated" if "truncated" in text.lower() else "corrupt", text) from error


def size_of(path, exif=False):
    """(width, height) from a file's header, as decode gives it; None where it cannot be read."""
    with contextlib.ExitStack() as opened:
        try:
            image = opened.enter_context(Image.open(path))
        except (*DECODING, Image.DecompressionBombError):  # decode says why
            return None
        width, height = image.size
        sideways = exif and _orientation(image) in _SIDEWAYS
    return (height, width) if sideways else (width, height)


def _orientation(image):
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except DECODING:  # damaged EXIF data: the pixels are sound
        return None


def _notes(image):
    mode = image.mode
    notes = {
        "animated": getattr(image, "is_animated", False),
        "cmyk": mode == "CMYK",
        "16-bit": mode.startswith("I"),
        "grayscale": mode in ("L", "1", "LA", "La"),
        "palette": mode in ("P", "PA"),
        "colour-space": mode in ("YCbCr", "LAB", "HSV", "F"),
        "alpha": mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info,
    }
    return [note for note, holds in notes.items() if holds]


def printable(name) -> str:
    """A file's name as text that any terminal takes: control characters, and bytes that are no
    UTF-8, as \\x1b and the like."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def load_image(path, exif=False, max_pixels=MAX_PIXELS):
    """File -> PIL RGB: the loader of every image folder. Raises UserError naming the file."""
    try:
        return decode(path, exif, max_pixels)[0]
    except BadImage as error:
        raise UserError(
            f"{printable(path)} cannot be used ({error.kind}: {error.detail}); "
            "`ressl data check DIR` lists every such file, delete or repair them"
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
