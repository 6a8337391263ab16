"""One test a kind of bad image: converted as documented, or refused by name."""

import contextlib
import os
import shutil
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from ressl_plugin import data
from ressl_plugin.data import check_folder, images, load_image
from ressl_plugin.data.images import BadImage, decode, fit, size_of, to_rgb
from ressl_plugin.utils.errors import UserError

NO_IMAGE = "empty, damaged at its start, or no image"
GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.fixture
def one_file(make_folder):
    """root/a holds one good image and the path returned, where the test puts a bad one."""
    return make_folder(classes=("a",), count=1) / "a"


def refusal(folder):
    report = check_folder(folder.parent)
    ((name, why),) = report.refused
    with pytest.raises(UserError, match=f"{name} .*; `ressl data check {folder.parent}` lists all"):
        report.refuse()
    with pytest.raises(UserError, match=f"`ressl data check {folder.parent} --no-labels` lists"):
        check_folder(folder.parent, labels=False).refuse()
    with pytest.raises(UserError, match=Path(name).name):
        load_image(folder.parent / name)
    return why


def test_good_images_pass(make_folder):
    report = check_folder(make_folder())
    report.refuse()
    assert (report.images, report.refused, report.ignored) == (6, [], "")


def png_with(width, height, data):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_corrupt_pixels(one_file):
    (one_file / "bad.png").write_bytes(png_with(4, 4, b"this is no zlib stream"))
    assert "broken data stream" in refusal(one_file)


def test_corrupt_header(one_file):
    (one_file / "bad.png").write_bytes(b"\x89PNG" + bytes(100))
    assert refusal(one_file) == NO_IMAGE


@pytest.mark.parametrize("format", ["jpg", "png", "bmp", "webp"])
def test_truncated(one_file, format):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = one_file / f"bad.{format}"
    Image.fromarray(pixels).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    why = refusal(one_file)
    assert "truncated" in why or format == "webp"


def test_zero_byte(one_file):
    (one_file / "bad.jpg").touch()
    assert refusal(one_file) == NO_IMAGE


def test_not_an_image(one_file):
    (one_file / "bad.jpg").write_text("<html>404 not found</html>")
    assert refusal(one_file) == NO_IMAGE


def test_huge(one_file):
    # the header says 400 megapixels; the file has 100 bytes
    (one_file / "bad.png").write_bytes(png_with(20_000, 20_000, zlib.compress(b"\0")))
    assert "exceeds limit" in refusal(one_file)


def test_a_header_that_promises_billions_of_pixels(one_file):
    """Pillow refuses to open it at all, wherever a size is asked for."""
    (one_file / "bad.png").write_bytes(png_with(200_000, 200_000, zlib.compress(b"\0")))
    assert "exceeds limit" in refusal(one_file)
    assert size_of(one_file / "bad.png") is None


def test_more_than_max_pixels(one_file, config):
    Image.new("RGB", (30, 20)).save(one_file / "large.png")
    root, digest = one_file.parent, "0" * 32
    dataset = data.build_dataset(config("custom", root, max_pixels=599), "pretrain")
    data.check_once(dataset, digest)
    data.check_once(dataset, digest, max_pixels=600)
    for _ in range(2):  # what is remembered is of another limit
        with pytest.raises(UserError, match=r"a/large\.png.*30 x 20 pixels, data\.max_pixels=599"):
            data.check_once(dataset, digest, max_pixels=599)
    with pytest.raises(UserError, match=r"large\.png.*data\.max_pixels=599") as refused:
        dataset[1]
    assert "ressl data check" not in str(refused.value), "which has the usual limit"
    with pytest.raises(UserError) as refused:
        data.check_once(dataset, digest, max_pixels=599)
    assert "ressl data check" not in str(refused.value)


def test_float_image_is_unsupported(one_file):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(one_file / "b.tif")
    assert "32-bit floats" in refusal(one_file)


def test_broken_link(one_file):
    (one_file / "bad.png").symlink_to(one_file / "gone.png")
    assert refusal(one_file) == "No such file or directory"


@contextlib.contextmanager
def an_ordinary_user():
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_no_permission():
    # not in tmp_path, whose parents other users cannot enter
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        (root / "a").mkdir()
        Image.new("RGB", (4, 4)).save(root / "a" / "bad.png")
        (root / "a" / "bad.png").chmod(0)
        with an_ordinary_user():
            assert check_folder(root).refused == [("a/bad.png", "Permission denied")]
        (root / "b").mkdir(mode=0)
        with an_ordinary_user(), pytest.raises(UserError, match=r"/b cannot be listed \(Perm"):
            check_folder(root)
    finally:
        (root / "b").chmod(0o700)
        shutil.rmtree(root)


def test_stray_files_are_ignored_and_counted(make_folder):
    root = make_folder()
    (root / "a" / "notes.txt").write_text("no image, and no image's extension")
    for name in ("a/1.avif", "a/2.avif", "loose.png"):
        (root / name).touch()
    report = check_folder(root)
    report.refuse()
    assert report.images == 6
    assert "  ignored    2 .avif, 1 .png, 1 .txt" in report.lines()
    assert check_folder(root, labels=False).images == 7


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        ([], True, "0 images and no class folders"),
        ([], False, "holds no image; these extensions are read: .jpg"),
        (["1.avif", "x"], False, r"holds no image \(1 .avif, 1 without are ignored\)"),
        (["1.png", "2.png"], True, "2 images and no class folders; .*--no-labels"),
        (["train/x/1.png", "val/x/1.png"], True, "holds train, val; give .*train"),
        (["a/1.png", "b/x.txt"], True, r"without an image \(1 .txt are ignored\), .*/b; a class"),
    ],
)
def test_a_folder_without_images_is_refused(tmp_path, files, labels, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="png")
    with pytest.raises(UserError, match=message):
        data.check_folder(tmp_path, labels)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_exif_orientation_is_applied_if_asked_for(one_file, format, turn):
    """As Pillow's own exif_transpose has it, and by default not, as in the host."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255  # upper left quarter
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    file = one_file / f"turned.{format}"
    image.save(file, exif=exif, quality=100)
    with Image.open(file) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
        assert (np.asarray(load_image(file)) == np.asarray(stored.convert("RGB"))).all()
    assert (np.asarray(load_image(file, exif=True)) == upright).all()
    assert size_of(file, exif=True) == upright.shape[1::-1] and size_of(file) == (32, 16)
    text = "\n".join(data.check_folder(one_file.parent).lines())
    assert ("1 have an EXIF orientation: data.exif=true" in text) == (turn != 1)


def test_damaged_exif_data_are_no_reason_to_refuse_an_image(one_file):
    Image.new("RGB", (8, 4)).save(
        one_file / "e.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40
    )
    for exif in (False, True):
        assert load_image(one_file / "e.jpg", exif).size == (8, 4)


def test_grayscale(one_file):
    Image.fromarray(GRADIENT).save(one_file / "g.png")
    assert (np.asarray(load_image(one_file / "g.png")) == GRADIENT[..., None]).all()


@pytest.mark.parametrize("format", ["png", "tif"])
def test_16_bit_is_scaled_not_clipped(one_file, format):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(one_file / f"deep.{format}")
    pixels = np.asarray(load_image(one_file / f"deep.{format}"))
    assert pixels.shape == (16, 16, 3)
    assert (pixels == np.rint(values / 257)[..., None]).all()


def test_16_bit_pgm(one_file):
    values = np.linspace(0, 65535, 256).astype(">u2")
    (one_file / "deep.pgm").write_bytes(b"P5 16 16 65535\n" + values.tobytes())
    assert (np.asarray(load_image(one_file / "deep.pgm"))[..., 0].ravel() == values / 257).all()


def test_cmyk(one_file):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(one_file / "c.jpg", quality=100)
    red = np.asarray(load_image(one_file / "c.jpg")).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(red, (255, 0, 0), atol=4)


def test_palette_with_transparency(one_file):
    image = Image.fromarray(GRADIENT).convert("P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    image.save(one_file / "p.png", transparency=bytes(range(256)))
    pixels = np.asarray(load_image(one_file / "p.png"))
    assert (pixels[..., 0] == GRADIENT).all() and (pixels[..., 2] == 7).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(one_file, mode):
    image = Image.new("RGB", (8, 8), (200, 200, 200)).convert(mode)
    image.putalpha(0)
    image.save(one_file / "alpha.png")
    assert (np.asarray(load_image(one_file / "alpha.png")) == 200).all()


@pytest.mark.parametrize("format", ["png", "webp", "tif", "gif"])
def test_first_frame_of_an_animation(one_file, format):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if format == "webp" else {}
    red.save(one_file / f"moves.{format}", save_all=True, append_images=[blue], **options)
    image = load_image(one_file / f"moves.{format}")
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBa", "La", "CMYK", "YCbCr",
                                  "HSV", "I;16", "I", "RGB"])  # fmt: skip
def test_every_mode_becomes_rgb(mode):
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_32_bit_integers_are_refused():
    with pytest.raises(BadImage, match="32-bit"):
        to_rgb(Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)))


def test_the_refusal_names_the_first_and_counts_all(one_file):
    for i in range(5):
        (one_file / f"bad{i}.png").touch()
    with pytest.raises(UserError, match=r"5 of its files.*bad0\.png.*bad2\.png.*and 2 more"):
        check_folder(one_file.parent).refuse()


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        check_folder(tmp_path / "nowhere")


def test_decode_names_a_missing_file(tmp_path):
    with pytest.raises(BadImage, match="No such file"):
        decode(tmp_path / "gone.png")


@pytest.mark.parametrize("size", [(8, 8), (9, 30), (40, 10), (3, 5)])
def test_fit_gives_a_square(size):
    assert fit(Image.new("RGB", size), 8).size == (8, 8)


def test_fit_keeps_the_middle():
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    assert (np.asarray(fit(Image.fromarray(pixels), 8)) == 255).all()


@pytest.mark.parametrize("kind", [AttributeError, TypeError, KeyError])
def test_a_bug_of_ours_is_no_damage_of_the_file(tmp_path, monkeypatch, kind):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def bug(image):
        raise kind("planted")

    for function in ("to_rgb", "_orientation"):
        monkeypatch.setattr(images, function, bug)
        with pytest.raises(kind, match="planted"):
            images.load_image(tmp_path / "a.png")
        monkeypatch.undo()
    monkeypatch.setattr(images, "_orientation", bug)
    with pytest.raises(kind, match="planted"):
        images.size_of(tmp_path / "a.png", exif=True)
