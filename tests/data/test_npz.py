import numpy as np
import pytest

from ressl_plugin import data
from ressl_plugin.errors import UserError

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
    images, labels, classes = data.read_npz(saved(**dict(zip(names, (IMAGES, LABELS)))))
    assert (images == IMAGES).all() and (labels == LABELS).all() and labels.dtype == np.int64
    assert classes == ["0", "1", "2"]


@pytest.mark.parametrize("gray", [IMAGES[..., 0], IMAGES[..., :1]])
def test_gray_images_get_three_channels(saved, gray):
    images, _, _ = data.read_npz(saved(x=gray))
    assert images.shape == IMAGES.shape and (images == IMAGES[..., :1]).all()


def test_labels_may_be_absent_or_a_column(saved):
    assert (data.read_npz(saved(x=IMAGES))[1] == -1).all()
    assert (data.read_npz(saved(x=IMAGES, y=LABELS[:, None]))[1] == LABELS).all()


def test_class_names(saved):
    assert data.read_npz(saved(x=IMAGES, y=LABELS, classes=["p", "q", "r"]))[2] == ["p", "q", "r"]


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
    ],
)
def test_mistakes_name_the_key(saved, arrays, message):
    with pytest.raises(UserError, match=message):
        data.read_npz(saved(**arrays))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(50)])
def test_files_that_are_no_npz(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"d\.npz is no readable"):
        data.read_npz(tmp_path / "d.npz")


def test_a_cut_off_npz(saved):
    file = saved(x=IMAGES)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="is no readable"):
        data.read_npz(file)


def test_a_damaged_compressed_npz(tmp_path):
    """One byte of it wrong, any byte: the images or a UserError (zlib.error, once)."""
    file = tmp_path / "d.npz"
    np.savez_compressed(file, x=IMAGES, y=LABELS)
    whole = file.read_bytes()
    refused = 0
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            data.read_npz(file)
        except UserError as error:
            refused += str(file) in str(error)
    assert refused > len(whole) / 2


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "d.npy", IMAGES)
    with pytest.raises(UserError, match="is a single array"):
        data.read_npz(tmp_path / "d.npy")


def test_missing_file_names_the_config_key(config, tmp_path):
    with pytest.raises(UserError, match=r"data\.train_path=.*gone\.npz"):
        data.open(config("npz", tmp_path / "gone.npz"), "train")


def test_open(saved, config):
    cfg = config("custom", saved(x=IMAGES, y=LABELS), format="npz")
    dataset = data.open(cfg, "train", need_labels=True)
    image, target = dataset[1]
    assert (np.asarray(image) == IMAGES[1]).all() and target == 1 and image.mode == "RGB"


def test_labels_are_needed(saved, config):
    with pytest.raises(UserError, match="6 of 6 images have no label"):
        data.open(config("npz", saved(x=IMAGES)), "train", need_labels=True)
