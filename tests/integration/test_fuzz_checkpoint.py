"""Checkpoints with anything in any place, resumed and evaluated: one line, or it works."""

import contextlib
import copy
import logging
import signal
import traceback
import warnings

import pytest
import torch
from commands import command, last_line, run_cli
from fuzzing import mutated
from helpers import image_folder
from ranks import on_ranks

from ressl_plugin.cli import main
from ressl_plugin.run import checkpoint

SECONDS = 120  # of a case, then it hangs and is ended
AT_ONCE = 8  # cases of one process


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(folder, words of the training, checkpoint): a run that has two steps to go."""
    folder = tmp_path_factory.mktemp("stopped")
    words = command(image_folder(folder / "images", per_class=16), folder / "run")

    def stop():
        raise KeyboardInterrupt

    assert on_ranks(1, lambda: run_cli(words, stop, 10), folder / "ranks") == [130]
    return folder, [*words, "resume=true"], checkpoint.load(folder / "run")


def tried(stopped, cases, evaluated=True):
    """What a resume and kNN print of each case (what, state), their exit status on the last line.

    One process runs all; it is dead if a case crashed or hung, and the last one in the list is it.
    """
    folder, words, _ = stopped
    run, printed = folder / "run", folder / "printed.txt"
    knn = ["knn", str(run), f"data.val_path={folder}/images/val", "--k", "5"]
    printed.write_text("")

    def work():
        warnings.simplefilter("ignore")
        for what, state in cases:
            for called in (words, knn) if evaluated else (words,):
                checkpoint.save(run / checkpoint.NAME, state)
                checkpoint.previous(run / checkpoint.NAME).unlink(missing_ok=True)
                with printed.open("a") as err, contextlib.redirect_stderr(err):
                    print(f"\f{called[0]}, {what}", file=err, flush=True)
                    logging.getLogger().handlers.clear()
                    signal.alarm(SECONDS)
                    try:
                        code = main.main(called)
                    except Exception:
                        traceback.print_exc()
                        code = 1
                    signal.alarm(0)
                    print("exit", code, file=err)

    with contextlib.suppress(AssertionError):  # it died: the last case has no exit status
        on_ranks(1, work, folder / "ranks")
    return printed.read_text().split("\f")[1:]


def check(printed, number):
    bad = []
    for text in printed:
        *_, last, code = text.splitlines()
        lines = [line for line in text.splitlines() if line.startswith("ressl: ")]
        refused = code in ("exit 2", "exit 3") and lines == [last]
        if (code != "exit 0" and not refused) or "Traceback" in text:
            bad.append(text)
    assert not bad, f"{len(bad)} of {len(printed)}:\n" + "\n\n".join(bad)
    assert len(printed) == number


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(AT_ONCE, 2000, AT_ONCE))]
)
def test_one_line_or_it_works(stopped, first):
    cases = (mutated(stopped[2], number) for number in range(first, first + AT_ONCE))
    check(tried(stopped, cases), 2 * AT_ONCE)


def group(state):
    return state["optimizer_states"][0]["param_groups"][0]


def buffers(state):
    return state["optimizer_states"][0]["state"]


def odd_buffer(change):
    return lambda s: buffers(s)[0].update(momentum_buffer=change(buffers(s)[0]["momentum_buffer"]))


CHANGES = [
    (lambda s: group(s)["params"].pop(), "param_groups.0.params is a list, it must be the numbers"),
    (lambda s: group(s)["params"].__setitem__(1, 0), "params is a list, it must be the numbers"),
    (lambda s: group(s).update(momentum="x"), "param_groups.0.momentum is 'x', it must be"),
    (lambda s: s["optimizer_states"].clear(), "length of optimizer_states is 0, it must be 1"),
    (lambda s: buffers(s).pop(3), "the momentum of weight 3 is nothing, it must be there"),
    (lambda s: buffers(s)[2].clear(), "the momentum of weight 2 is nothing, it must be there"),
    (odd_buffer(lambda t: t.sum()), "0.momentum_buffer is a Tensor, it must be (24, 3, 3, 3)"),
    (odd_buffer(torch.Tensor.long), "0.momentum_buffer is a Tensor, it must be (24, 3, 3, 3)"),
    (odd_buffer(torch.Tensor.to_sparse), "state.0.momentum_buffer is a Tensor, it must be"),
]  # fmt: skip


def test_what_an_optimizer_cannot_take_is_named(stopped):
    """A fused step would read beyond the end of what it is given."""
    cases = []
    for change, what in CHANGES:
        state = copy.deepcopy(stopped[2])
        change(state)
        cases.append((what, state))
    printed = tried(stopped, cases, evaluated=False)
    check(printed, len(CHANGES))
    for text, (_, what) in zip(printed, CHANGES):
        assert what in last_line(text), text
