"""Nothing of the machine that made it is in a checkpoint."""

import getpass
import re
import socket
from pathlib import Path

from commands import command, run
from helpers import image_folder

from ressl_plugin.run import checkpoint


def texts(value):
    """Every text in nested dicts, lists and tuples, keys among them."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, (str, bytes)):
        yield value if isinstance(value, str) else value.decode("latin1")


def test_no_path_user_or_host_in_a_checkpoint(tmp_path):
    images = image_folder(tmp_path / "somewhere", per_class=16)
    words = command(images, tmp_path / "run", "max_epochs=1", f"data.val_path={images}/val")
    code, errors = run(tmp_path, [*words, "wandb.entity=somebody"])
    assert code == 0, errors
    found = list(texts(checkpoint.load(tmp_path / "run")))
    assert "ressl" in found and len(found) > 100
    names = {"somewhere", "somebody", getpass.getuser(), socket.gethostname(), Path.home().name}
    told = [t for t in found for name in names if re.search(rf"\b{re.escape(name)}\b", t)]
    assert not told and not [t for t in found if str(tmp_path) in t or t.startswith("/")]
    content = (tmp_path / "run" / "last.ckpt").read_bytes()
    assert str(tmp_path).encode() not in content and b"somewhere" not in content
