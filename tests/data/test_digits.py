import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ressl_plugin.data import digits
from ressl_plugin.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return digits.make_digits(tmp_path_factory.mktemp("data") / "digits")


def times(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}


def test_files_are_the_digits(finished):
    source = load_digits()
    files = sorted(finished.glob("*/*/*.png"), key=lambda path: path.stem)
    assert [int(path.stem) for path in files] == list(range(1797))
    assert [int(path.parent.name) for path in files] == source.target.tolist()
    image = Image.open(files[5])
    assert (image.mode, image.size) == ("L", (8, 8))
    np.testing.assert_allclose(np.asarray(image) * (16 / 255), source.images[5], atol=0.04)


def test_split_is_stratified(finished):
    train, val = ([len(list((finished / s / str(c)).iterdir())) for c in range(10)]
                  for s in ("train", "val"))  # fmt: skip
    assert (sum(train), sum(val)) == (1437, 360)
    assert all(abs(v / (t + v) - 0.2) < 0.01 for t, v in zip(train, val))


def test_a_second_call_writes_nothing(finished):
    before = times(finished)
    digits.make_digits(finished)
    assert times(finished) == before


@pytest.mark.parametrize("damage", ["lost file", "changed file", "no manifest"])
def test_a_damaged_folder_is_rebuilt(finished, damage):
    victim = sorted(finished.glob("train/3/*.png"))[0]
    good = victim.read_bytes()
    if damage == "lost file":
        victim.unlink()
    elif damage == "changed file":
        victim.write_bytes(good[:50])
    else:
        (finished / "manifest.json").unlink()
    assert not digits.is_complete(finished)
    digits.make_digits(finished)
    assert digits.is_complete(finished) and victim.read_bytes() == good


def test_an_interrupted_build_leaves_nothing_half_done(tmp_path, monkeypatch):
    written = []

    def interrupted(image, path):
        written.append(path)
        if len(written) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", interrupted)
        digits.make_digits(tmp_path / "d")
    assert not (tmp_path / "d").exists()
    assert digits.is_complete(digits.make_digits(tmp_path / "d"))


def test_other_files_are_never_deleted(tmp_path):
    (tmp_path / "train" / "cats").mkdir(parents=True)
    with pytest.raises(UserError, match="holds other files"):
        digits.make_digits(tmp_path)
    assert (tmp_path / "train" / "cats").is_dir()
