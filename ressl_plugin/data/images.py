"""One image file to one 8-bit RGB image: the only rules by which anything here decodes."""

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ressl_plugin.errors import UserError

# The host's ImageFolder lists exactly these, so indexes and class counts agree with its own.
EXTENSIONS = tuple(IMG_EXTENSIONS)

# Pillow's own limit for "surely an attack"; decoding one such image takes over 0.5 GB.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS

_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"P5", b"P6", b"GIF8")


class BadImage(Exception):
    """A file that no rule turns into RGB. `kind` is one of check.REFUSED."""

    def __init__(self, kind, detail):
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


def is_image_name(name):
    return str(name).lower().endswith(EXTENSIONS)


def to_rgb(image):
    """PIL image of any mode -> PIL image of mode RGB.

    16 bits are scaled to 8 (65535 -> 255; Pillow's own conversion clips at 255); CMYK, YCbCr, grey,
    palette and bilevel are converted by Pillow; alpha is dropped, as torchvision's and DALI's
    decoders do; of an animation the first frame is taken. The EXIF orientation is not applied (nor
    is it by the host). Raises BadImage for 32-bit images, whose range is unknown.
    """
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
    if image.mode.startswith("I;16"):
        return _scale_16_bit(np.asarray(image))
    if image.mode == "I":  # 16-bit PGM and some PNG decode to 32-bit integers
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("unsupported", "32-bit integers: convert the file to 8 or 16 bits")
        return _scale_16_bit(values)
    if image.mode == "F":
        raise BadImage("unsupported", "32-bit floats: convert the file to 8 or 16 bits")
    if image.mode in ("PA", "La", "RGBa"):  # no direct way to RGB in Pillow
        image = image.convert({"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # else Pillow warns; the colours are the same
    if image.mode == "RGB":
        image.load()
        return image
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise BadImage("unsupported", f"mode {image.mode}: {error}") from error


def _scale_16_bit(values):
    levels = (values.astype(np.int64) * 255 + 32767) // 65535
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def decode(path):
    """File -> (PIL RGB, notes), every pixel decoded.

    notes: what had to be converted, some of check.CONVERTED. Raises BadImage with the kind of
    damage; a missing file is a BadImage, too.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise BadImage("zero-byte", "the file is empty")
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage("huge", f"{image.width} x {image.height} pixels")
            notes = _notes(image)
            image.load()  # frame 0, whole: a cut-off file fails here, not in to_rgb
            return to_rgb(image), notes
    except BadImage:
        raise
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
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError …
        text = str(error) or type(error).__name__
        raise BadImage("truncated" if "truncated" in text.lower() else "corrupt", text) from error


def _notes(image):
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append("animated")
    if image.mode == "CMYK":
        notes.append("cmyk")
    elif image.mode.startswith("I"):
        notes.append("16-bit")
    elif image.mode in ("L", "1", "LA", "La"):
        notes.append("grayscale")
    elif image.mode in ("P", "PA"):
        notes.append("palette")
    elif image.mode != "RGB" and image.mode not in ("RGBA", "RGBa", "RGBX"):
        notes.append("colour-space")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        notes.append("alpha")
    return notes


def load_image(path):
    """File -> PIL RGB: the loader of every image folder. Raises UserError naming the file."""
    try:
        return decode(path)[0]
    except BadImage as error:
        raise UserError(
            f"{path} cannot be used ({error.kind}: {error.detail}); "
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
