"""What both generations of the host must do alike."""

import math
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ressl_plugin import host
from ressl_plugin.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
METHODS = sorted(set(host.METHODS) - {"base", "linear"})
OF_1_0_2 = (
    "barlow_twins byol deepclusterv2 dino mocov2plus nnbyol nnclr nnsiam ressl simclr simsiam "
    "swav vicreg wmse"
)
WEAK = {"crop_size": 16, "rrc": {"enabled": True, "crop_min_scale": 0.5, "crop_max_scale": 1.0}}


def run_python(code, **environment):
    """A fresh interpreter, for what happens at the host's import."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=120,
    )


def test_import_is_cheap():
    code = "import sys, ressl_plugin.host; print([m for m in ('torch', 'solo') if m in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"


def test_registry_is_the_hosts_own_dict():
    import solo.methods

    assert host.METHODS is solo.methods.METHODS
    assert set(OF_1_0_2.split()) <= set(host.METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_two_steps(method, config, trained):
    torch.manual_seed(0)
    cfg = config(method)
    before = OmegaConf.to_yaml(cfg)
    model = host.build_method(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    start = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    runner = trained(model)
    assert runner.global_step == 2
    assert math.isfinite(runner.callback_metrics["val_loss"])
    assert any(not torch.equal(start[name], p) for name, p in model.backbone.named_parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    names = {key.split(".")[0] for key in model.state_dict()}
    assert "backbone" in names and not names & {"encoder", "momentum_encoder"}


def test_keys_are_named_as_on_main(config):
    model = host.build_method(config("ressl", momentum={"classifier": True}))
    names = {key.split(".")[0] for key in model.state_dict()}
    assert names == {
        "backbone",
        "momentum_backbone",
        "projector",
        "momentum_projector",
        "classifier",
        "momentum_classifier",
        "queue",
        "queue_ptr",
    }


def test_old_checkpoints_load(config):
    model = host.MomentumBase(config("ressl"))
    old = {
        key.replace("backbone.", "encoder."): torch.zeros_like(value)
        for key, value in model.state_dict().items()
    }
    assert any(key.startswith("momentum_encoder.") for key in old)
    model.load_state_dict(old)
    assert all((value == 0).all() for value in model.state_dict().values())


class Toy(host.MomentumBase):
    """The least that derives from the base: it overrides forward, as the plugin's method does."""

    def forward(self, X):
        return {**super().forward(X), "z": X.mean((1, 2, 3))}

    def training_step(self, batch, batch_idx):
        out = super().training_step(batch, batch_idx)
        self.rates = [group["lr"] for group in self.optimizers().param_groups]
        self.seen = [*getattr(self, "seen", []), self.rates]
        assert len(out["z"]) == len(out["feats"]) == 2
        assert len(out["momentum_feats"]) == 2
        return out["loss"] + sum(f.square().mean() for f in out["feats"])


def test_momentum_base_offers_mains_attributes(config, trained):
    cfg = config("ressl", momentum={"classifier": True, "base_tau": 0.9, "final_tau": 0.9})
    cfg.knn_eval = {"enabled": True, "k": 3, "distance_func": "cosine"}
    model = Toy(cfg)
    # main_pretrain.py reads this of the config that it passed.
    assert cfg.performance.disable_channel_last is False and model.no_channel_last is False
    assert model.cfg is cfg
    assert model.features_dim == 512 and model.num_classes == 3
    assert model.knn.distance_fx == "cosine" and model.knn.k == 3
    names = [group["name"] for group in model.learnable_params]
    assert names == ["backbone", "classifier", "momentum_classifier"]
    assert model.momentum_pairs == [(model.backbone, model.momentum_backbone)]
    out = model(torch.randn(2, 3, 32, 32))
    assert out["feats"].shape == (2, 512) and out["logits"].shape == (2, 3)
    assert not model.momentum_forward(torch.randn(2, 3, 32, 32))["feats"].requires_grad

    teacher = model.momentum_backbone.conv1.weight.detach().clone()
    metrics = trained(model).callback_metrics
    assert not torch.equal(teacher, model.momentum_backbone.conv1.weight)
    expected = ["val_loss", "val_acc1", "val_acc5", "momentum_val_acc1", "val_knn_acc1", "tau"]
    assert set(expected) <= set(metrics)
    # Three classes: all five of "top five" are hit.
    assert metrics["val_acc5"] == metrics["momentum_val_acc5"] == 100
    assert model.momentum_updater.cur_tau == pytest.approx(0.9)


def test_validation_is_averaged_by_batch_size(config, trained):
    model = host.build_method(config("simclr"))
    batches = []
    step = model.validation_step

    def validation_step(*args, **kwargs):
        out = step(*args, **kwargs)
        if not model.trainer.sanity_checking:
            batches.append((out["batch_size"], float(out["val_loss"])))
        return out

    model.validation_step = validation_step
    metrics = trained(model).callback_metrics
    assert [n for n, _ in batches] == [8, 4]
    mean = sum(n * loss for n, loss in batches) / 12
    assert float(metrics["val_loss"]) == pytest.approx(mean, rel=1e-6)


def closed_form(t, warmup, length, start, lr, end):
    if t < warmup:
        return start + t * (lr - start) / (warmup - 1)
    return end + (lr - end) * (1 + math.cos(math.pi * (t - warmup) / (length - warmup))) / 2


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_schedule_in_closed_form(interval, config, trained):
    cfg = config("ressl", max_epochs=6, momentum={"classifier": True})
    cfg.scheduler = {
        "name": "warmup_cosine",
        "warmup_epochs": 2,
        "warmup_start_lr": 1e-3,
        "min_lr": 1e-4,
        "interval": interval,
    }
    model = Toy(cfg)
    trained(model, epochs=6, val=False)
    assert len(model.seen) == 12
    a = 2 if interval == "step" else 1
    for step, rates in enumerate(model.seen):
        t = step if interval == "step" else step // 2
        for rate, lr in zip(rates, (0.01, 0.05, 0.05)):
            assert rate == pytest.approx(closed_form(t, 2 * a, 6 * a, 1e-3, lr, 1e-4), rel=1e-5)


def test_step_schedule_static_rate_and_no_decay_of_vectors(config, trained):
    class Static(Toy):
        @property
        def learnable_params(self):
            groups = super().learnable_params
            return [groups[0], {**groups[1], "static_lr": True}]

    cfg = config("ressl", max_epochs=2)
    cfg.optimizer.exclude_bias_n_norm_wd = True
    cfg.optimizer.weight_decay = 0.1
    cfg.scheduler = {"name": "step", "lr_decay_steps": [1]}
    model = Static(cfg)
    runner = trained(model, epochs=2, val=False)
    groups = runner.optimizers[0].param_groups
    assert [group["name"] for group in groups] == [
        "backbone",
        "backbone_no_decay",
        "classifier",
        "classifier_no_decay",
    ]
    assert [group["weight_decay"] for group in groups] == [0.1, 0, 0, 0]
    for group in groups:
        vectors = [p.ndim <= 1 for p in group["params"]]
        assert all(vectors) if group["name"].endswith("_no_decay") else not any(vectors)
    assert model.seen[0][0] == 0.01 and model.seen[-1][0] == pytest.approx(0.001)
    # The groups with static_lr are held at the base rate once the schedule sets them.
    assert model.seen[-1][2] == model.seen[-1][3] == 0.01


def test_accumulation_multiplies_the_rate(config):
    model = host.build_method(config("simclr", accumulate_grad_batches=4))
    assert model.lr == pytest.approx(0.04) and model.classifier_lr == pytest.approx(0.2)


def test_batch_size_and_devices_do_not_scale_the_rate(config):
    model = host.build_method(config("simclr", optimizer__batch_size=512, devices="auto"))
    assert model.lr == 0.01


def lars_step(parameters, gradients, lr, eta, decay):
    """One step of LARS without momentum, by its definition."""
    out = []
    for p, g in zip(parameters, gradients):
        trust = eta * p.norm() / (g.norm() + decay * p.norm() + 1e-8)
        out.append(p - lr * trust * (g + decay * p) if p.ndim > 1 else p - lr * g)
    return out


def test_lars_scales_the_gradient_of_the_closure(config, trained):
    cfg = config("ressl", scheduler={"name": "none"})
    cfg.optimizer.name = "lars"
    cfg.optimizer.weight_decay = 0.01
    cfg.optimizer.kwargs = {"momentum": 0.0, "eta": 0.02, "exclude_bias_n_norm": True}
    torch.manual_seed(0)
    model = Toy(cfg)
    seen = {}

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            if "parameters" not in seen:
                ps = [p for p in module.backbone.parameters() if p.grad is not None]
                seen["parameters"] = [p.detach().clone() for p in ps]
                seen["gradients"] = [p.grad.clone() for p in ps]

        def on_train_batch_end(self, trainer, module, *_):
            seen.setdefault("after", [p.detach().clone() for p in module.backbone.parameters()])

    trained(model, val=False, callbacks=[Watch()])
    expected = lars_step(seen["parameters"], seen["gradients"], 0.01, 0.02, 0.01)
    for after, reference in zip(seen["after"], expected, strict=True):
        torch.testing.assert_close(after, reference, rtol=1e-5, atol=1e-7)


def test_resumed_run_goes_on_with_its_tau(config, trained, tmp_path):
    def base(epochs):
        cfg = config("ressl", max_epochs=4, momentum={"base_tau": 0.5, "final_tau": 1.0})
        return Toy(cfg), {"epochs": epochs, "val": False}

    whole, options = base(4)
    trained(whole, **options)
    half, options = base(4)
    runner = trained(half, **options, limit_train_batches=2)
    runner.save_checkpoint(tmp_path / "end.ckpt")

    taus = []

    class Stop(pl.Callback):
        def on_train_start(self, trainer, module):
            taus.append(module.momentum_updater.cur_tau)

    class Interrupt(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    model, options = base(4)
    trained(model, **options, callbacks=[Interrupt()])
    model, _ = base(4)
    runner = pl.Trainer(
        max_epochs=4, logger=False, enable_checkpointing=False, callbacks=[Stop()],
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )
    from torch.utils.data import DataLoader

    views = [[torch.arange(8), [torch.randn(8, 3, 32, 32)] * 2, torch.zeros(8).long()]] * 2
    runner.fit(model, DataLoader(views, batch_size=None), ckpt_path=tmp_path / "half.ckpt")
    # Four of eight steps: half way along the cosine from 0.5 to 1.
    assert taus == [pytest.approx(0.75)]


def test_host_ressl_stays_reachable(config, monkeypatch):
    own = host.METHODS["ressl"]

    class Plugin(host.MomentumBase):
        pass

    monkeypatch.setitem(host.METHODS, "ressl", Plugin)
    monkeypatch.setitem(host.METHODS, "ressl_host", own)
    assert type(host.build_method(config("ressl"))) is Plugin
    assert isinstance(host.build_method(config("ressl", method="ressl_host")), own)
    assert isinstance(host.ReSSL(config("ressl")), own) and issubclass(host.ReSSL, own)


def test_registered_backbone(config, trained):
    class Tiny(torch.nn.Module):
        num_features = 6

        def __init__(self, method, width=2):
            super().__init__()
            self.layer = torch.nn.Linear(3, width * 3)
            self.method = method

        def forward(self, x):
            return self.layer(x.mean((2, 3)))

    host.register_backbone("tiny_of_the_test", Tiny)
    cfg = config("ressl", backbone={"name": "tiny_of_the_test", "kwargs": {"width": 2}})
    backbone = host.build_backbone(cfg)
    assert backbone.method == "ressl" and host.features_dim(backbone) == 6
    model = host.build_method(cfg)
    assert model.features_dim == 6 and type(model.momentum_backbone) is Tiny
    trained(model)


@pytest.mark.parametrize("dataset, size", [("custom", 64), ("cifar10", 3)])
def test_bare_backbone_has_the_hosts_stem(dataset, size, config):
    cfg = config("ressl", data__dataset=dataset)
    backbone = host.build_backbone(cfg)
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, 512)
    assert backbone.conv1.kernel_size == ((7, 7) if dataset == "custom" else (3, 3))
    built = host.build_method(cfg).backbone
    assert {k: v.shape for k, v in built.state_dict().items()} == {
        k: v.shape for k, v in backbone.state_dict().items()
    }


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("method", "simclrr", "method=simclrr"),
        ("method", "linear", "method=linear"),
        ("backbone.name", "resnet19", "backbone.name=resnet19"),
    ],
)
def test_mistakes_are_named(key, value, words, config):
    cfg = config("simclr")
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError, match=words):
        host.build_method(cfg)


def test_class_count_of_folders(config, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("no class")
    cfg = config("simclr")
    del cfg.data.num_classes
    with pytest.raises(UserError, match=r"data\.num_classes"):
        host.build_method(cfg)
    cfg.data.train_path = str(tmp_path)
    assert host.build_method(cfg).num_classes == 2


def test_linear_model_trains_the_classifier_only(config, images):
    cfg = config("ressl", max_epochs=2, optimizer__lr=0.5)
    backbone = host.build_backbone(cfg)
    before = [value.clone() for value in backbone.state_dict().values()]
    model = host.LinearModel(backbone, cfg)
    weight = model.classifier.weight.detach().clone()
    runner = fit_linear(model, images)
    assert not torch.equal(weight, model.classifier.weight)
    for old, new in zip(before, model.backbone.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    assert runner.callback_metrics["val_acc5"] == 100


def fit_linear(model, loaders):
    runner = pl.Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    runner.fit(model, *loaders)
    return runner


def test_linear_model_finetunes(config, images):
    cfg = config("ressl", max_epochs=2, finetune=True)
    backbone = host.build_backbone(cfg)
    before = backbone.conv1.weight.detach().clone()
    model = host.LinearModel(backbone, cfg)
    fit_linear(model, images)
    assert not torch.equal(before, model.backbone.conv1.weight)


@pytest.mark.parametrize("scheduler", ["reduce", "step", "none"])
def test_linear_model_schedules(scheduler, config, images):
    cfg = config("ressl", max_epochs=2)
    cfg.scheduler = {"name": scheduler, "lr_decay_steps": [1]}
    model = host.LinearModel(host.build_backbone(cfg), cfg)
    runner = fit_linear(model, images)
    rate = runner.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx({"reduce": 0.01, "step": 0.001, "none": 0.01}[scheduler])
    if scheduler == "reduce":
        assert runner.lr_scheduler_configs[0].monitor == "val_loss"


def brute_force(train, labels, test, truth, k, temperature, distance):
    """Weighted k-NN in numpy, an image at a time."""
    right = {1: 0, 5: 0}
    for image, label in zip(test, truth):
        if distance == "cosine":
            norms = np.linalg.norm(train, axis=1) * np.linalg.norm(image)
            similarity = train @ image / norms
            weight = np.exp(similarity / temperature)
        else:
            similarity = weight = 1 / (np.linalg.norm(train - image, axis=1) + 1e-5)
        votes = dict.fromkeys(range(10), 0.0)
        for i in np.argsort(-similarity)[:k]:
            votes[int(labels[i])] += weight[i]
        ranked = sorted(votes, key=votes.get, reverse=True)
        for top in right:
            right[top] += label in ranked[: min(top, k)]
    return right[1] * 100 / len(test), right[5] * 100 / len(test)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk", [int(5e6), 200])
def test_knn_against_brute_force_with_missing_classes(distance, chunk):
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 12)
    train = generator.normal(size=(96, 5)) + labels[:, None] % 3
    # The test set lacks most of the classes, the highest one among them.
    truth = generator.choice([0, 3, 5], size=40)
    test = generator.normal(size=(40, 5)) + truth[:, None] % 3
    knn = host.KNN(k=9, T=0.2, distance_fx=distance, max_distance_matrix_size=chunk)
    as_tensor = lambda array: torch.as_tensor(array)
    for half in (slice(0, 50), slice(50, 96)):
        called = knn(
            train_features=as_tensor(train[half]), train_targets=as_tensor(labels[half])
        )
        assert called is None
    knn(test_features=as_tensor(test), test_targets=as_tensor(truth))
    reference = brute_force(train, labels, test, truth, 9, 0.2, distance)
    assert knn.compute() == pytest.approx(reference)
    assert 0 < reference[0] < 100
    assert knn.compute() == (-1, -1)


def photograph(size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 5, size[0] // 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size)


def test_view_is_normalised_by_what_is_given():
    image = Image.new("RGB", (40, 30), (255, 0, 51))
    plain = {"crop_size": 16, "num_crops": 1}
    view = host.view_transform("cifar10", plain)(image)
    mean, std = host.MEAN_STD["cifar10"]
    assert view.dtype == torch.float32 and view.shape[0] == 3 and 16 in view.shape[1:]
    expected = [(v - m) / s for v, m, s in zip((1, 0, 0.2), mean, std)]
    assert view.mean((1, 2)).tolist() == pytest.approx(expected, rel=1e-4)
    given = {**plain, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1.0]}
    view = host.view_transform("cifar10", given)(image)
    assert view.mean((1, 2)).tolist() == pytest.approx([2, -1, -0.3], rel=1e-4)


def steps_of(pipeline):
    """{type name: step}, what RandomApply wraps taken out."""
    inner = lambda step: getattr(step, "transforms", [step])[0]
    return {type(inner(step)).__name__: step for step in pipeline.transforms}


def test_view_has_the_steps_that_are_named_in_mains_order():
    everything = {
        **WEAK,
        "color_jitter": {"prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
        "grayscale": {"prob": 0.2},
        "gaussian_blur": {"prob": 0.5, "sigma": [0.5, 0.6]},
        "solarization": {"prob": 0.1},
        "equalization": {"prob": 0.3},
        "horizontal_flip": {"prob": 0.5},
        "interpolation": "bilinear",
    }
    everything["rrc"] = {**WEAK["rrc"], "ratio": [0.9, 1.1]}
    steps = steps_of(host.view_transform("stl10", everything))
    assert list(steps) == [
        "RandomResizedCrop",
        "ColorJitter",
        "RandomGrayscale",
        "GaussianBlur",
        "Solarization",
        "Equalization",
        "RandomHorizontalFlip",
        "ToTensor",
        "Normalize",
    ]
    crop = steps["RandomResizedCrop"]
    assert tuple(crop.scale) == (0.5, 1.0) and tuple(crop.ratio) == (0.9, 1.1)
    assert crop.interpolation.value == "bilinear"
    assert tuple(steps["GaussianBlur"].transforms[0].sigma) == (0.5, 0.6)
    assert steps["Equalization"].p == 0.3
    assert list(steps_of(host.view_transform("imagenet", WEAK))) == [
        "RandomResizedCrop",
        "ToTensor",
        "Normalize",
    ]


def test_view_without_a_crop_resizes_the_shorter_side():
    view = host.view_transform("imagenet", {"crop_size": 15, "rrc": {"enabled": False}})
    assert view(photograph()).shape == (3, 15, 20)


def test_view_mistakes_are_named():
    with pytest.raises(UserError, match="crop_size"):
        host.view_transform("custom", {"rrc": {"enabled": True}})
    with pytest.raises(UserError, match="interpolation=cubic"):
        host.view_transform("custom", {**WEAK, "interpolation": "cubic"})


@pytest.fixture
def folders(tmp_path):
    """Ten images in two classes, and four to validate on."""
    for split, count in (("train", 5), ("val", 2)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                photograph().save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def folder_config(config, folders, **data):
    cfg = config("ressl")
    cfg.data = {
        "dataset": "custom",
        "train_path": str(folders / "train"),
        "val_path": str(folders / "val"),
        **data,
    }
    return cfg


def test_pretraining_data_and_loader(config, folders):
    transform = host.n_crops(
        [
            (host.view_transform("custom", WEAK), 2),
            (host.view_transform("custom", {**WEAK, "crop_size": 8}), 1),
        ]
    )
    dataset = host.pretrain_dataset(folder_config(config, folders), transform)
    index, views, target = dataset[7]
    assert (index, target) == (7, 1)
    assert [tuple(view.shape) for view in views] == [(3, 16, 16), (3, 16, 16), (3, 8, 8)]
    batches = list(host.loader(dataset, batch_size=4, num_workers=0))
    assert [len(targets) for _, _, targets in batches] == [4, 4]
    assert len(torch.cat([indexes for indexes, _, _ in batches]).unique()) == 8


def test_fraction_is_stratified(config, folders):
    cfg = folder_config(config, folders, fraction=0.4)
    dataset = host.pretrain_dataset(cfg, None)
    assert [dataset[i][0] for i in range(len(dataset))] == [0, 1, 2, 3]
    assert sorted(dataset[i][2] for i in range(4)) == [0, 0, 1, 1]
    with pytest.raises(UserError, match=r"data\.fraction=1\.5"):
        host.pretrain_dataset(folder_config(config, folders, fraction=1.5), None)


def test_unlabelled_folder(config, folders):
    cfg = folder_config(config, folders, train_path=str(folders / "train/a"), no_labels=True)
    dataset = host.pretrain_dataset(cfg, None)
    assert len(dataset) == 5 and dataset[0][2] == -1


def test_classification_data(config, folders):
    train, val = host.classification_datasets(
        folder_config(config, folders), lambda image: "train", lambda image: "val"
    )
    assert (len(train), len(val)) == (10, 4)
    assert train[0] == ("train", 0) and val[3] == ("val", 1)


@pytest.mark.parametrize(
    "data, words",
    [
        ({"dataset": "cifar11"}, r"data\.dataset=cifar11"),
        ({"format": "zip"}, r"data\.format=zip"),
        ({"train_path": "nowhere"}, r"data\.train_path=nowhere"),
    ],
)
def test_data_mistakes_are_named(data, words, config, folders):
    with pytest.raises(UserError, match=words):
        host.pretrain_dataset(folder_config(config, folders, **data), None)


IMPORT = """
import sys
from ressl_plugin.errors import UserError
from ressl_plugin import host
try:
    host.METHODS
except UserError as error:
    print(error)
"""


def test_bad_checkout_is_named(tmp_path):
    said = run_python(IMPORT, SOLO_LEARN=str(tmp_path / "none")).stdout
    assert f"SOLO_LEARN={tmp_path / 'none'}" in said and len(said.splitlines()) == 1


def test_unknown_solo_is_no_host(tmp_path):
    (tmp_path / "solo").mkdir()
    (tmp_path / "solo" / "__init__.py").write_text("")
    said = run_python(IMPORT, SOLO_LEARN=str(tmp_path)).stdout
    assert str(tmp_path / "solo") in said and "pip install --no-deps solo-learn==1.0.2" in said


def test_missing_host_says_how_to_install():
    # An import path without solo: a finder that hides it, in front of all others.
    hide = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "solo" else find(name, *a)
"""
    said = run_python(hide + IMPORT, SOLO_LEARN="").stdout
    assert "pip install --no-deps solo-learn==1.0.2" in said and "SOLO_LEARN=" in said


def test_another_solo_loaded_before_is_named(tmp_path):
    (tmp_path / "solo").mkdir()
    (tmp_path / "solo" / "__init__.py").write_text("")
    code = f"import types, sys; m = types.ModuleType('solo'); m.__file__ = '/elsewhere/solo/x.py'\n"
    said = run_python(code + "sys.modules['solo'] = m\n" + IMPORT, SOLO_LEARN=str(tmp_path)).stdout
    assert "already imported from /elsewhere/solo" in said
