"""What happens to a run: each fault has its exit status, its one line and a usable checkpoint."""

import errno
import importlib
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import command, last_line, run, run_cli
from helpers import image_folder
from lightning.pytorch.utilities.exceptions import SIGTERMException
from saved_states import in_child
from torch._utils import ExceptionWrapper

from ressl_plugin import config
from ressl_plugin.cli import main
from ressl_plugin.method import registry
from ressl_plugin.run import checkpoint, directories, results
from ressl_plugin.train import checkpoint_io, faults, pretrain
from ressl_plugin.train.progress import Progress
from ressl_plugin.utils.errors import RunFault, UserError, own_words

pytestmark = pytest.mark.timeout(300)
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75), (signal.SIGHUP, 129)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    registry.register()  # the children of a fork need not import the host again
    assert pretrain and importlib.import_module("torch.utils.tensorboard")
    config.load("digits/ressl")  # nor look for hydra's plugins
    return image_folder(tmp_path_factory.mktemp("images"), per_class=16, splits=("train",))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """The directory of a run of one epoch, of which tests make copies."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run(folder, command(images, folder, "max_epochs=1"))[0] == 0
    return folder


def finish(folder, words):
    """Resumed, the run goes on to its end."""
    code, text = run(folder, [*words, "resume=true"])
    assert code == 0, text
    assert checkpoint.load(folder)["global_step"] == 12


def test_a_loss_that_is_not_finite_stops_that_step(images, tmp_path):
    code, text = run(tmp_path, command(images, tmp_path), None, 0, [6])
    assert code == main.FAULT
    assert "not finite at step 6" in last_line(text)
    assert f"the last good checkpoint is {tmp_path}/last.ckpt" in last_line(text)
    state = checkpoint.load(tmp_path)
    assert state["global_step"] == 4
    assert all(t.isfinite().all() for t in state["state_dict"].values())
    finish(tmp_path, command(images, tmp_path))


def test_skipped_steps_are_left_out_and_counted(images, tmp_path):
    words = command(images, tmp_path, "faults.non_finite=skip", "checkpoint.every_n_steps=6")
    code, _ = run(tmp_path, words, None, 0, [5, 9, 10])
    assert code == 0
    (record,) = (r for r in results.read(tmp_path) if r["metric"] == "skipped_steps")
    assert record["value"] == 3
    state = checkpoint.load(tmp_path)
    assert state["global_step"] == 12
    assert int(state["state_dict"]["queue_ptr"]) == 9 * 8 % 40
    assert all(t.isfinite().all() for t in state["state_dict"].values())


def test_nothing_of_a_skipped_batch_stays(images, tmp_path):
    """A run whose only batches are skipped ends with the weights and statistics it began with."""
    words = command(images, tmp_path, "faults.non_finite=skip", "max_epochs=1")
    assert run(tmp_path, words, None, 0, range(1, 99))[0] == 0
    state = checkpoint.load(tmp_path)["state_dict"]
    student = {k: v for k, v in state.items() if k.startswith(("backbone.", "projector."))}
    for key, value in student.items():
        if key.endswith("num_batches_tracked"):
            continue
        # the teacher began as a copy, and an average of equals (to rounding) moves nothing
        torch.testing.assert_close(value, state[f"momentum_{key}"], rtol=1e-5, atol=1e-6)
        if key.endswith("running_mean"):
            assert not value.any()


def test_a_hopeless_run_stops(images, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "HOPELESS", 3)
    words = command(images, tmp_path, "faults.non_finite=skip")
    code, text = run(tmp_path, words, None, 0, range(4, 99))
    assert code == main.FAULT and "3 steps on end" in last_line(text)


def test_a_worker_process_killed(tmp_path):
    # an epoch far longer than what the worker loads ahead, so it dies with work left
    images = image_folder(tmp_path / "images", per_class=32, splits=("train",))
    folder = tmp_path / "run"
    words = command(images, folder, "data.backend=host", "data.num_workers=1", "max_epochs=1")
    code, text = run(folder, words, lambda: multiprocessing.active_children()[0].kill(), 3)
    assert code == main.FAULT
    assert "worker was killed" in last_line(text) and "resume=true" in last_line(text)
    assert checkpoint.load(folder)["global_step"] >= 2
    finish(folder, words)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_deleted_while_training(tmp_path, workers):
    images = image_folder(tmp_path / "images", per_class=16, splits=("train",))
    folder, files = tmp_path / "run", sorted((images / "train").rglob("*.png"))
    words = command(images, folder, "data.backend=host", f"data.num_workers={workers}")
    code, text = run(folder, words, lambda: [file.rename(f"{file}.x") for file in files], 3)
    assert code == main.FAULT
    assert ".png cannot be used (No such file or directory" in last_line(text)
    assert f"last good checkpoint is {folder}/last.ckpt" in last_line(text)
    for file in files:
        Path(f"{file}.x").rename(file)
    finish(folder, words)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_told_to_stop(images, tmp_path, terminal, number, code):
    """The step is finished and saved; Ctrl-C, a preemption, a time limit. With the progress shown,
    which begins in the middle of an epoch after a resume."""
    words = command(images, tmp_path, "checkpoint.every_n_steps=0", "enable_progress_bar=true")
    found, text = run(tmp_path, words, lambda: os.kill(os.getpid(), number), 3)
    assert found == code
    assert f"{signal.Signals(number).name}: finishing this step" in text
    assert checkpoint.load(tmp_path)["global_step"] == 4
    if number == signal.SIGTERM:  # of all what is saved is the same
        finish(tmp_path, words)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_to_all_processes_of_the_run(tmp_path, terminal, number, code):
    """As torchrun and SLURM send it: the data workers go on until the step is done."""
    images = image_folder(tmp_path / "images", per_class=32, splits=("train",))
    folder = tmp_path / "run"
    words = command(images, folder, "data.backend=host", "data.num_workers=1",
                    "checkpoint.every_n_steps=0", "max_epochs=1")  # fmt: skip

    def signals():
        children = [str(child.pid) for child in multiprocessing.active_children()]
        assert children
        subprocess.run(["kill", f"-{number.value}", *children, str(os.getpid())], check=True)
        time.sleep(0.5)

    found, text = run(folder, words, signals, 3)
    assert found == code, text
    assert checkpoint.load(folder)["global_step"] == 4
    if number == signal.SIGTERM:
        finish(folder, words)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_evaluation_told_to_stop(images, finished, tmp_path, monkeypatch, number, code):
    """At a moment that a clock gives, with hundreds of epochs to go."""
    shutil.copytree(images / "train", tmp_path / "val")
    (tmp_path / "linear.yaml").write_text(
        f"pretrained_feature_extractor: {finished}\nmax_epochs: 1000\naccelerator: cpu\n"
        "data: {dataset: custom, num_workers: 0,"
        f" train_path: {images}/train, val_path: {tmp_path}/val}}\n"
        "optimizer: {name: sgd, batch_size: 8, lr: 0.1}\nscheduler: {name: none}\n"
    )
    starts = Progress.on_train_epoch_start

    def on_train_epoch_start(self, trainer, module):
        starts(self, trainer, module)
        if trainer.current_epoch == 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
            threading.Timer(0.05, lambda: os.kill(os.getpid(), number)).start()

    monkeypatch.setattr(Progress, "on_train_epoch_start", on_train_epoch_start)
    found, text = run(tmp_path, ["linear", str(tmp_path / "linear.yaml")])
    assert found == code, text
    assert "Traceback" not in text


def test_the_second_signal_stops_at_once_with_the_same_status(images, tmp_path):
    words = command(images, tmp_path, "checkpoint.every_n_steps=0")
    twice = lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]
    assert run(tmp_path, words, twice, 3)[0] == 143
    assert not (tmp_path / "last.ckpt").exists()


def test_a_death_of_a_worker_by_the_same_signal_is_no_fault_of_memory(tmp_path):
    trainer = SimpleNamespace(callbacks=[SimpleNamespace(stop=SIGTERMException(143))])
    with pytest.raises(SIGTERMException) as ended, faults.reported(trainer, tmp_path):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
    assert ended.value.code == 143
    with pytest.raises(SIGTERMException) as ended, faults.reported(trainer, tmp_path):
        raise SIGTERMException  # Lightning's own: of no status, which is 0
    assert ended.value.code == 143


def test_one_process_at_a_time_trains_in_a_directory(images, tmp_path, monkeypatch):
    monkeypatch.setattr(directories, "LOCK_SECONDS", 1)
    folder = tmp_path / "run"
    with directories.locked(folder):
        code, text = run(folder, command(images, folder))
    assert code == main.USER_MISTAKE and "another process trains there" in last_line(text)
    assert not (folder / "config.yaml").exists()
    assert run(folder, command(images, folder, "max_epochs=1"))[0] == 0


def test_what_another_process_saves_meanwhile_is_gone_on_from(images, finished, tmp_path):
    """A job that is put back in the queue overlaps with the one before, which is saving."""
    folder = tmp_path / "run"
    folder.mkdir()
    lock = directories.locked(folder)
    lock.__enter__()

    def saves_and_ends():
        for name in ("last.ckpt", "config.yaml"):
            shutil.copy(finished / name, folder)
        lock.__exit__(None, None, None)

    threading.Timer(3, saves_and_ends).start()
    code, text = run(folder, command(images, folder, "max_epochs=1", "seed=6", "resume=true"))
    assert code == main.USER_MISTAKE and "last.ckpt was made with another config: seed" in text
    assert (folder / "last.ckpt").read_bytes() == (finished / "last.ckpt").read_bytes()


def test_a_run_is_not_overwritten_by_resuming_another(images, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    one = shutil.copytree(finished, tmp_path / "one")
    before = (one / "last.ckpt").read_bytes()
    code, text = run(one, command(images, one, f"resume={finished}", "resume_force=true"))
    assert code == main.USER_MISTAKE and "holds a run already" in last_line(text)
    assert (one / "last.ckpt").read_bytes() == before
    itself = 'resume="~/one/last.ckpt"'
    assert run(one, command(images, one, itself, "resume_force=true"))[0] == 0


@pytest.mark.parametrize("left", ["results.json", "best.ckpt", "resnet18-1abc-ep=99.ckpt"])
def test_what_is_left_of_another_run_is_not_taken_for_this_ones(images, tmp_path, left):
    """Checkpoints deleted to save space, results kept; a run of solo-learn's own scripts."""
    (tmp_path / left).write_text("[]")
    (tmp_path / "args.json").write_text("theirs")
    for resume in ("true", "false"):
        code, text = run(tmp_path, command(images, tmp_path, f"resume={resume}"))
        assert code == main.USER_MISTAKE and f"holds {left} of another run" in last_line(text)
    assert (tmp_path / "args.json").read_text() == "theirs"


def test_weights_that_are_not_finite_at_the_end_are_a_fault(images, tmp_path, monkeypatch):
    """Not a run of status 0 that left nothing."""
    monkeypatch.setattr(checkpoint_io, "all_finite", lambda state: False)
    code, text = run(tmp_path, command(images, tmp_path, "max_epochs=1"))
    assert code == main.FAULT and "the state is not finite" in last_line(text)
    assert "no checkpoint was made" in last_line(text)


def test_a_finished_run_is_not_overwritten(images, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    code, text = run(folder, command(images, folder, "max_epochs=1"))
    assert code == main.USER_MISTAKE and "holds a run already" in last_line(text)


def test_a_full_disk_at_the_first_save(images, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    code, text = run(tmp_path, command(images, tmp_path), limit, 1)
    assert code == main.FAULT
    assert "not written: no space left" in last_line(text)
    assert "there is no earlier one" in last_line(text)


def test_a_resume_reads_the_checkpoint_once_and_a_finished_run_says_so(
    images, finished, tmp_path, monkeypatch
):
    folder, counts = shutil.copytree(finished, tmp_path / "run"), tmp_path / "counts"
    words = command(images, folder, "max_epochs=1")
    read, verify = checkpoint.read_checked, checkpoint.verify

    def counted(function):
        def call(path):
            with counts.open("a") as file:
                file.write(f"{function.__name__} ")
            return function(path)

        return call

    monkeypatch.setattr(checkpoint, "read_checked", counted(read))
    monkeypatch.setattr(checkpoint, "verify", counted(verify))
    code, text = run(folder, [*words, "resume=true"])
    assert code == 0 and counts.read_text() == "read_checked "
    assert f"{folder}/last.ckpt: all 1 epochs are done; the run is finished" in text
    counts.unlink()
    more = ["resume=true", "resume_force=true", "max_epochs=2", "checkpoint.every_n_steps=0"]
    code, text = run(folder, [*words, *more])
    assert code == 0 and "finished" not in text
    assert counts.read_text() == "read_checked verify ", "and its save is read back"


def test_known_faults_have_a_line_and_bugs_have_none():
    killed = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    assert "num_workers" in faults.explain(killed)
    assert "batch_size" in faults.explain(torch.OutOfMemoryError("CUDA out of memory"))
    for memory in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        assert "out of memory" in faults.explain(memory)
    assert "x.png" in faults.explain(FileNotFoundError(2, "No such file", "x.png"))
    assert "No space left" in faults.explain(OSError(errno.ENOSPC, "No space left on device"))
    assert faults.explain(RuntimeError("size mismatch")) is None
    assert faults.explain(ConnectionResetError(errno.ECONNRESET, "Connection reset")) is None


class Numbers(torch.utils.data.Dataset):
    """Two numbers, or an exception of the data set's own."""

    def __init__(self, error=None):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if self.error:
            raise self.error
        return index


BROKEN = [
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    EOFError(),
    pickle.UnpicklingError("pickle data was truncated"),
    multiprocessing.AuthenticationError("digest sent was rejected"),
    RuntimeError("received 0 items of ancdata"),
]


class Breaking:
    """In place of the queue by which batches come from the workers."""

    def __init__(self, error):
        self.error = error

    def get(self, timeout):
        raise self.error


def what_ends(loader, error=None):
    """What the loader raises, with its queue broken by `error`, or not."""
    batches = iter(loader)
    queue = batches._data_queue
    try:
        if error:
            batches._data_queue = Breaking(error)
        next(batches)
    except Exception as found:
        return found
    finally:
        batches._data_queue = queue
        batches._shutdown_workers()


@pytest.mark.parametrize("error", BROKEN, ids=lambda e: type(e).__name__)
def test_every_way_to_report_a_lost_worker_is_a_fault(tmp_path, error):
    """The connection breaks before the worker counts as dead. The same exception raised by the
    data set, or in this process, is something else."""
    ended = what_ends(torch.utils.data.DataLoader(Numbers(), num_workers=1), error)
    assert "worker was killed" in faults.explain(ended)
    trainer = SimpleNamespace(callbacks=[], global_step=1)
    with pytest.raises(RunFault, match="worker was killed"), faults.reported(trainer, tmp_path):
        raise ended
    own = what_ends(torch.utils.data.DataLoader(Numbers(error), num_workers=1))
    assert own is not None and not faults.is_a_workers_death(own)
    assert not faults.is_a_workers_death(error.with_traceback(None))


def test_a_workers_death_behind_other_exceptions():
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    for cause in (killed, RuntimeError("Pin memory thread exited unexpectedly")):
        behind = SystemError("<built-in method> returned a result with an exception set")
        behind.__cause__ = cause
        assert faults.is_a_workers_death(behind)
    loader = torch.utils.data.DataLoader(Numbers(), num_workers=1)
    full = what_ends(loader, OSError(errno.EMFILE, "Too many open files"))
    assert full is not None and not faults.is_a_workers_death(full)


def test_only_a_training_is_told_to_resume(tmp_path, capsys):
    """And only where there is something to resume from."""
    gone = FileNotFoundError(2, "No such file or directory", "x.png")

    def fails():
        raise gone

    assert main.guarded(fails) == main.FAULT
    assert capsys.readouterr().err == "ressl: x.png: No such file or directory\n"
    trainer = SimpleNamespace(callbacks=[], global_step=1)
    for end in ("no checkpoint was made", "last.ckpt, resume=true continues from it"):
        with pytest.raises(RunFault, match=f"{end}$"), faults.reported(trainer, tmp_path):
            raise gone
        (tmp_path / "last.ckpt").touch()


@pytest.mark.parametrize("depth", [0, 20])
def test_a_workers_user_error_is_its_own_words(depth, capsys):
    """PyTorch makes it again, of the whole traceback in the worker, however long that is."""

    def load(depth):
        if depth:
            try:
                load(depth - 1)
            except UserError as error:
                raise UserError("x.png cannot be used") from error
        raise UserError("x.png cannot be used")

    try:
        load(depth)
    except UserError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(UserError) as found:
        wrapped.reraise()
    assert own_words(found.value) == "x.png cannot be used"
    assert main.guarded(wrapped.reraise) == main.USER_MISTAKE
    assert capsys.readouterr().err == "ressl: error: x.png cannot be used\n"


@pytest.mark.slow
def test_a_step_that_does_not_end(images, tmp_path):
    """A minute's hang of a real run; which thread hung is told."""
    words = command(images, tmp_path, "faults.timeout=0.4")

    def work():
        os.dup2(os.open(tmp_path / "err.txt", os.O_WRONLY | os.O_CREAT), 2)
        run_cli(words, lambda: time.sleep(300), 3)

    assert in_child(work) == os.EX_TEMPFAIL
    text = (tmp_path / "err.txt").read_text()
    assert "in training_step" in text and f"{tmp_path}/last.ckpt, resume=true" in text
