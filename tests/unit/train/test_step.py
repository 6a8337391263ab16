"""The step as one function computes what Algorithm 1, Lightning's loop and SGD compute, bit for
bit, in place and without waiting: what a CUDA graph of it needs."""

import copy
import csv
import logging
from contextlib import contextmanager
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from helpers import Interrupted, Stop, image_folder

from ressl_plugin import config
from ressl_plugin.run import checkpoint
from ressl_plugin.train.pretrain import pretrain
from ressl_plugin.train.step import CapturedReSSL, OneCopy, settle
from ressl_plugin.utils.errors import UserError

RECIPES = {
    "paper": ["momentum.base_tau=0.99", "batchnorm.groups=2", "batchnorm.permute=true"],
    "host": [
        "momentum.base_tau=0.9", "momentum.final_tau=1.0", "momentum.classifier=true",
        "augmentations=[{preset: contrastive, crop_size: 16, num_crops: 2},"
        " {preset: weak, crop_size: 16}]", "method_kwargs.nt_xent_weight=0.5",
        "optimizer.exclude_bias_n_norm_wd=true", "batchnorm.groups=0",
    ],
    "journal": [
        "method_kwargs.predictor=true", "method_kwargs.pred_hidden_dim=32",
        "method_kwargs.infonce_epochs=1", "precision=bf16-mixed", "performance.log_every=2",
        # of 32 pixels: PyTorch 2.14.1's bf16 gradient of a stride over 1x1 is wrong (docs/faq.md)
        "augmentations=[{preset: contrastive, crop_size: 32}, {preset: weak, crop_size: 32}]",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(name, recipe, capture, *words, callbacks=()) -> its directory; 2 epochs of 5 steps."""
    root = tmp_path_factory.mktemp("step")
    images = image_folder(root / "images", classes=10, per_class=4)
    loaded = config.load("digits/ressl")  # once: it takes a quarter of the time of a run

    def run(name, recipe, capture, *words, callbacks=()):
        words = [
            f"run_dir={root}/{name}", f"data.train_path={images}/train", "accelerator=cpu",
            f"data.val_path={images}/val", "backbone.name=timm:resnet10t", "backbone.stem=auto",
            "backbone.kwargs={channels: [8, 8, 16, 16]}", "method_kwargs.queue_size=600",
            "data.backend=batched", "optimizer.batch_size=8", "max_epochs=2", "seed=3",
            "knn_eval.enabled=true", "knn_eval.every=1",
            "enable_progress_bar=false", "enable_model_summary=false", "precision=32-true",
            "resume=true", f"performance.capture={capture}", *RECIPES[recipe], *words,
        ]  # fmt: skip
        cfg = copy.deepcopy(loaded)
        cfg.merge_with_dotlist(words)
        if cfg.method != "ressl":
            cfg.method_kwargs = {}
        pretrain(config.finish(cfg), callbacks)
        return root / name

    return run


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def leaves(tree):
    """What a checkpoint holds, by its path."""
    if isinstance(tree, (dict, list, tuple)):
        parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {(k, *path): v for k, part in parts for path, v in leaves(part).items()}
    return {(): tree}


def assert_same(ours, theirs, *keys):
    """Two runs' checkpoints, bit for bit."""
    states = [checkpoint.load(folder) for folder in (ours, theirs)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "ressl_rng", *keys):
        a, b = (leaves(state[key]) for state in states)
        assert list(a) == list(b)
        for path, value in a.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda x, y: x == y
            assert same(value, b[path]), f"{key}: {path}"
    assert [state["global_step"] for state in states] == [10, 10]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_of_it_is_the_plain_run(run, recipe):
    """Weights, teacher, memory, optimizer, schedules, counts, means, accuracies, what is logged."""
    ours, theirs = run(f"one_{recipe}", recipe, True), run(f"plain_{recipe}", recipe, False)
    assert_same(ours, theirs, "loops", "ressl_epoch")
    assert rows(ours) == rows(theirs)


@pytest.mark.parametrize(
    "stop, ways",
    [
        (3, (True, True)),
        pytest.param(8, (True, False), marks=pytest.mark.slow),
        pytest.param(8, (False, True), marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_within_an_epoch_with_it_and_without(run, stop, ways):
    name, each = f"stopped{stop}{ways[0]}", "checkpoint.every_n_steps=1"
    with pytest.raises(Interrupted):
        run(name, "paper", ways[0], each, callbacks=[Stop(stop)])
    whole = run("plain_paper", "paper", False)  # made before, or now
    assert_same(run(name, "paper", ways[1], each), whole, "ressl_epoch")


class Places(pl.Callback):
    """Where all that a step reads and writes lies, after each step; the module, too."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, module, *_):
        self.module = module
        self.found.append(places(module))


def places(module):
    optimizer = module.optimizers().state
    momenta = [state["momentum_buffer"] for state in optimizer.values()]
    totals = [t for pair in module.online.means._totals["train"].values() for t in pair]
    tensors = [*module.state_dict().values(), *momenta, *totals, *module._inputs.there]
    return [t.data_ptr() for t in tensors]


def test_nothing_that_lasts_is_ever_moved(run):
    """Over steps, validation, a new epoch, and where a state is loaded."""
    seen = Places()
    run("places", "host", True, callbacks=[seen])
    module = seen.module
    assert len(seen.found) == 10 and len(seen.found[0]) > 100
    assert all(found == seen.found[0] for found in seen.found)
    module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()})
    module.online.means.load([module.online.means.state()], "cpu")
    assert places(module) == seen.found[0]
    module._graph, module._warm = "of this fit", 3
    module.on_train_start()  # of the next
    assert module._graph is None and module._inputs is None and not module._warm


class Stream:
    """In the place of CUDA's, which is not here: what was asked of it."""

    def __init__(self, name, did):
        self.name, self.did = name, did

    def wait_stream(self, other):
        self.did.append(f"{self.name} waits for {other.name}")


def test_steps_are_run_then_captured_once_then_replayed(monkeypatch):
    did = []
    here, aside = Stream("here", did), Stream("aside", did)

    class Graph:
        def replay(self):
            did.append("replay")

    @contextmanager
    def within(name, stream):
        did.append(f"{name} {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: here)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within("on", stream))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _, stream, **how: within("captured", stream))
    module = SimpleNamespace(on_gpu=True, _graph=None, _warm=0, _stream=aside)
    for _ in range(6):
        CapturedReSSL._run(module, lambda: did.append("step"))
    warm = ["aside waits for here", "on aside", "step", "here waits for aside"]
    assert did == warm * 3 + ["captured aside", "step"] + ["replay"] * 3
    module._graph = None  # InfoNCE is over
    CapturedReSSL._run(module, lambda: did.append("step"))
    assert did[-3:] == ["captured aside", "step", "replay"]


def test_tensors_of_every_kind_arrive_in_one_piece():
    g = torch.Generator().manual_seed(0)
    make = lambda: [
        torch.rand(3, generator=g, dtype=torch.float64), torch.rand(5, generator=g) < 0.5,
        torch.randint(9, (7, 2), generator=g), torch.rand(3, 4, 3, generator=g).mT,
    ]  # fmt: skip
    first, second = make(), make()
    inputs = OneCopy(first, torch.device("cpu"))
    addresses = [t.data_ptr() for t in inputs.there]
    for tensors in (first, second):
        inputs.send(tensors)
        assert all(map(torch.equal, inputs.there, tensors))
        assert [t.dtype for t in inputs.there] == [t.dtype for t in tensors]
    assert addresses == [t.data_ptr() for t in inputs.there]
    with pytest.raises(RuntimeError):
        inputs.send([*second[:3], torch.rand(4, 4, 3)])


@pytest.mark.parametrize(
    "word, reason",
    [
        ("accumulate_grad_batches=2", "accumulate_grad_batches=2; it must be 1"),
        ("faults.non_finite=skip", "faults.non_finite=skip; it must be stop"),
        ("data.backend=host", "data.backend=host; it must be batched"),
        ("optimizer.name=adamw", "optimizer.name=adamw; it must be sgd, fused"),
        ("method=simsiam", "method=simsiam; only ressl has such a step"),
        ("precision=64-true", "precision=64-true; it must be 32-true or bf16-mixed"),
        ("detect_anomaly=true", "detect_anomaly=true; it waits for the GPU"),
        ("reload_dataloaders_every_n_epochs=1", "reload_dataloaders_every_n_epochs; the images"),
    ],
)
def test_what_cannot_be_captured_is_refused(run, tmp_path, word, reason):
    with pytest.raises(UserError, match=f"^config: performance.capture=true and {reason}"):
        run("refused", "paper", True, word)


@pytest.mark.parametrize(
    "changes, captured, said",
    [
        ({"accelerator": "cpu"}, False, ""),
        ({"accelerator": "gpu"}, True, "the whole step is one function, replayed as a CUDA graph"),
        (
            {"accelerator": "gpu", "profile": True},
            False,
            "performance.capture=auto: steps are not captured (profile=true; it cannot look",
        ),
    ],
)
def test_auto_captures_on_a_gpu_what_can_be(changes, captured, said, caplog):
    caplog.set_level(logging.INFO)
    words = [f"{key}={value}" for key, value in changes.items()]
    cfg = config.finish(config.load("digits/ressl", ["precision=32-true", "strategy=auto", *words]))
    cfg.optimizer.kwargs = {"fused": True}
    assert cfg.performance.capture == "auto"
    settle(cfg, "batched", 1)
    assert cfg.performance.capture is captured and said in caplog.text
    assert bool(caplog.text) == bool(said)
