"""On a full disk a file stays as it was, and no half of one is left."""

import contextlib
import errno
import resource

import pytest
from helpers import image_folder

from ressl_plugin.evaluate import contact_sheet
from ressl_plugin.utils import files, plot_style


@contextlib.contextmanager
def full_disk():
    """No file grows beyond 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_file_that_was_there_stays(tmp_path):
    file = tmp_path / "a.json"
    files.replace(file, b"old")
    with full_disk(), pytest.raises(OSError) as caught:
        files.replace(file, bytes(1000))
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(file)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_picture_of_views(tmp_path):
    images = image_folder(tmp_path / "images", splits=("train",))
    words = ["digits/ressl", [f"data.train_path={images}/train"], tmp_path / "out" / "views.png", 1]
    with full_disk(), pytest.raises(OSError) as caught:
        contact_sheet.write(*words)
    assert caught.value.errno == errno.EFBIG
    assert not list((tmp_path / "out").iterdir())
    assert contact_sheet.write(*words).stat().st_size > 1000


def test_a_figure(tmp_path):
    pytest.importorskip("matplotlib")

    def draw():
        with plot_style.figure_of(1, tmp_path / "figure") as (figure, paths):
            figure.add_subplot().plot([1, 2])
        return paths

    draw()  # matplotlib has made its caches
    for file in tmp_path.iterdir():
        file.unlink()
    with full_disk(), pytest.raises(OSError) as caught:
        draw()
    assert caught.value.errno == errno.EFBIG and not list(tmp_path.iterdir())
    assert all(path.stat().st_size > 1000 for path in draw())
