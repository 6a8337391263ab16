import multiprocessing
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ressl_plugin.data import digits
from ressl_plugin.utils.errors import UserError


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


def test_an_incomplete_folder_is_refused_and_left_alone(finished, tmp_path):
    root = shutil.copytree(finished, tmp_path / "digits")
    sorted(root.glob("train/3/*.png"))[0].unlink()
    assert not digits.is_complete(root)
    before = times(root)
    with pytest.raises(UserError, match="not all of the digits; give an empty or new folder"):
        digits.make_digits(root)
    assert times(root) == before


def test_an_interrupted_build_leaves_nothing_half_done(tmp_path, monkeypatch):
    written = []

    def interrupted(image, path):
        written.append(path)
        if len(written) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", interrupted)
        digits.make_digits(tmp_path / "d")
    assert not list(tmp_path.iterdir())
    (tmp_path / "d").mkdir()  # an empty folder is as good as none
    assert digits.is_complete(digits.make_digits(tmp_path / "d"))


def test_other_files_are_never_deleted(tmp_path):
    (tmp_path / "train" / "cats").mkdir(parents=True)
    with pytest.raises(UserError, match="holds other files"):
        digits.make_digits(tmp_path)
    assert (tmp_path / "train" / "cats").is_dir()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a /proc, which takes no file")
@pytest.mark.timeout(60)
def test_a_place_that_takes_no_file_is_refused_at_once():
    for place in ("/proc/digits", "/proc/a/digits"):
        with pytest.raises(UserError, match=f"^{place}: the digits cannot be written there"):
            digits.make_digits(place)


@pytest.mark.parametrize("below", ["", "digits"])
def test_a_file_in_the_way(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written there"):
        digits.make_digits(tmp_path / "file" / below)


def test_several_processes_make_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")  # quick; nothing here has threads running
    root = tmp_path / "d"
    makers = [context.Process(target=digits.make_digits, args=(root,)) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(120)
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert digits.is_complete(root)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]
