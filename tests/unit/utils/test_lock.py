import fcntl
import os
import threading

import pytest
from filelock import FileLock

from ressl_plugin.utils import lock


def test_who_waits_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    held = os.open(tmp_path / "l", os.O_RDWR | os.O_CREAT)  # as another process would
    fcntl.flock(held, fcntl.LOCK_EX)
    threading.Timer(0.5, os.close, [held]).start()
    with lock.locked(tmp_path / "l"):
        assert f"waiting for another process, which holds {tmp_path / 'l'}" in caplog.text
    with FileLock(tmp_path / "l", timeout=1):
        pass


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a /proc, which takes no file")
def test_a_folder_that_takes_no_file_is_an_error_at_once():
    with pytest.raises(OSError), lock.locked("/proc/.lock"):
        pass
