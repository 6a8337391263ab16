import io
import resource
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing import FEW, MANY, edited, edits, examples
from hypothesis import given
from hypothesis import strategies as st

from ressl_plugin import data
from ressl_plugin.data.npz import read_npz
from ressl_plugin.utils.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def saved(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "d.npz", **arrays)
        return tmp_path / "d.npz"

    return save


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels")])
def test_both_pairs_of_keys(saved, names):
    images, labels, classes = read_npz(saved(**dict(zip(names, (IMAGES, LABELS)))))
    assert (images == IMAGES).all() and (labels == LABELS).all() and labels.dtype == np.int64
    assert classes == ["0", "1", "2"]


@pytest.mark.parametrize("gray", [IMAGES[..., 0], IMAGES[..., :1]])
def test_gray_images_get_three_channels(saved, gray):
    images, _, _ = read_npz(saved(x=gray))
    assert images.shape == IMAGES.shape and (images == IMAGES[..., :1]).all()


def test_labels_may_be_absent_or_a_column(saved):
    assert (read_npz(saved(x=IMAGES))[1] == -1).all()
    assert (read_npz(saved(x=IMAGES, y=LABELS[:, None]))[1] == LABELS).all()


def test_class_names(saved):
    assert read_npz(saved(x=IMAGES, y=LABELS, classes=["p", "q", "r"]))[2] == ["p", "q", "r"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": LABELS}, "has the keys y; images are under x or images"),
        ({"x": IMAGES, "images": IMAGES}, "has both x and images"),
        ({"x": IMAGES.astype(np.float32)}, "key x: dtype float32"),
        ({"images": IMAGES[0, 0]}, r"key images: shape \(4, 3\)"),
        ({"x": IMAGES.transpose(0, 3, 1, 2)}, r"key x: shape \(6, 3, 5, 4\)"),
        ({"x": IMAGES[:0]}, r"key x: shape \(0, 5, 4, 3\)"),
        ({"x": IMAGES, "y": LABELS[:4]}, r"key y: shape \(4,\)"),
        ({"x": IMAGES, "y": LABELS * 0.5}, "key y: dtype float64"),
        ({"x": IMAGES, "labels": LABELS - 2}, "key labels: value -2"),
        ({"x": IMAGES, "y": LABELS, "classes": ["p"]}, "key classes: shape"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "key x: .*nothing is unpickled"),
        ({"x": IMAGES, "y": LABELS.astype(np.uint64) - 1}, "key y: value 18446744073709551615"),
        ({"x": IMAGES, "y": LABELS * 500_000_000}, "key y: value 1000000000; .* below 65536"),
        ({"x": IMAGES, "y": LABELS, "classes": [1, 2, 3]}, "key classes: dtype int64"),
    ],
)
def test_mistakes_name_the_key(saved, arrays, message):
    with pytest.raises(UserError, match=message):
        read_npz(saved(**arrays))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(50)])
def test_files_that_are_no_npz(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"d\.npz is no readable"):
        read_npz(tmp_path / "d.npz")


def test_a_cut_off_npz(saved):
    file = saved(x=IMAGES)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="is no readable"):
        read_npz(file)


def test_a_damaged_compressed_npz(tmp_path):
    """One byte of it wrong, any byte: the images or a UserError (zlib.error, once)."""
    file = tmp_path / "d.npz"
    np.savez_compressed(file, x=IMAGES, y=LABELS)
    whole = file.read_bytes()
    refused = 0
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_npz(file)
        except UserError as error:
            refused += str(file) in str(error)
    assert refused > len(whole) / 2


def member(array, **header):
    """An array as .npy, with another header than its own."""
    file = io.BytesIO()
    usual = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, {**usual, **header})
    return file.getvalue() + array.tobytes()


def zipped(path, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"shape": (10**12, 5, 4, 3)}, "key x: cannot be read .*too large for memory"),
        ({"shape": (10**30, 5, 4, 3)}, "key x: cannot be read"),
        ({"shape": (-6, -5, 4, 3)}, "key x: cannot be read"),
        ({"shape": (7, 5, 4, 3)}, "key x: .*expected 420 bytes got 360"),
        ({"descr": "<U99999999"}, "key x: cannot be read"),
        ({"descr": "|O"}, "nothing is unpickled"),
    ],
)
def test_a_header_is_not_believed(tmp_path, compression, header, message):
    """What it promises and the file does not hold fills no memory."""
    file = zipped(tmp_path / "d.npz", compression, x=member(IMAGES, **header))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message):
        read_npz(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # KiB


def npz_or_user_error(config, parts, todo, where):
    """Edits of the file, or of an array before it is packed, so that its checksum is right."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.npz"
        if where in parts:
            parts = {**parts, where: edited(parts[where], todo)}
        zipped(path, zipfile.ZIP_DEFLATED if len(todo) % 2 else zipfile.ZIP_STORED, **parts)
        if where == "file":
            path.write_bytes(edited(path.read_bytes(), todo))
        try:
            dataset = data.build_dataset(config("npz", path), "pretrain")
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            return
        image, target = dataset[0]
        assert image.mode == "RGB" and -1 <= target < max(1, len(dataset.classes))
        assert data.identify(dataset)["images"] == len(dataset)


PARTS = {"x": IMAGES, "y": LABELS, "classes": np.array(["p", "q", "r"])}
PARTS = {name: member(array) for name, array in PARTS.items()}
damage = given(edits, st.sampled_from([*PARTS, "file"]))


@examples(FEW)
@damage
def test_damaged_files(config, todo, where):
    npz_or_user_error(config, PARTS, todo, where)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@examples(MANY)
@damage
def test_many_damaged_files(config, todo, where):
    npz_or_user_error(config, PARTS, todo, where)


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "d.npy", IMAGES)
    with pytest.raises(UserError, match=r"is no readable \.npz .*np\.savez"):
        read_npz(tmp_path / "d.npy")


def test_missing_file_names_the_config_key(config, tmp_path):
    with pytest.raises(UserError, match=r"data\.train_path=.*gone\.npz"):
        data.build_dataset(config("npz", tmp_path / "gone.npz"), "train")


def test_open(saved, config):
    cfg = config("custom", saved(x=IMAGES, y=LABELS), format="npz")
    dataset = data.build_dataset(cfg, "train", need_labels=True)
    image, target = dataset[1]
    assert (np.asarray(image) == IMAGES[1]).all() and target == 1 and image.mode == "RGB"


def test_labels_are_needed(saved, config):
    with pytest.raises(UserError, match="6 of 6 images have no label"):
        data.build_dataset(config("npz", saved(x=IMAGES)), "train", need_labels=True)
