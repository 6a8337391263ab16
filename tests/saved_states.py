"""States to save, a run directory in mid-life, and children that may die."""

import os

import pytest
import torch

from ressl_plugin.run import checkpoint

OLDER, OLD, NEW = 1, 2, 3


def state(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "state_dict": {"w": torch.randn(64, 64, generator=generator), "ptr": torch.tensor([step])},
        "step": step,
        "nested": {"list": [1, 2.5, "three", None], "tuple": (True, (1, 2))},
    }


def same(found, step):
    expected = state(step)
    assert found["nested"] == expected["nested"] and found["step"] == step
    assert torch.equal(found["state_dict"]["w"], expected["state_dict"]["w"])
    assert torch.equal(found["state_dict"]["ptr"], expected["state_dict"]["ptr"])
    return True


@pytest.fixture
def run(tmp_path):
    """A run directory in mid-life: last.ckpt and the one before it."""
    for step in (OLDER, OLD):
        checkpoint.save(tmp_path / "last.ckpt", state(step))
    return tmp_path


def in_child(work, *args, **kwargs) -> int:
    """Run ``work`` in a fork: 0 if it returned, 3 if it raised, else how it was ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*args, **kwargs)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            code = 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
