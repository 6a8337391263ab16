"""On a full disk a file stays as it was, no half of one is left; locks let in one at a time."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

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


def test_who_waits_for_a_lock_says_so(tmp_path, monkeypatch):
    lock = tmp_path / "l"
    code = (
        f"import fcntl, time; file = open({str(lock)!r}, 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError), files.locked(lock, seconds=0.1):
            pass
        said = []
        warning = lambda text, *values: said.append(text % values) or other.kill()
        monkeypatch.setattr(files.log, "warning", warning)
        with files.locked(lock):
            assert said == [f"waiting for another process, which holds {lock}"]
    with files.locked(lock, seconds=0):
        pass


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a /proc, which takes no file")
def test_a_folder_that_takes_no_lock_file_is_an_error_at_once():
    with pytest.raises(OSError), files.locked(Path("/proc/.lock")):
        pass


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
