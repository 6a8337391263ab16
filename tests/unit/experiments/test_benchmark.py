"""Seven methods under one roof: same data, stem and evaluator; a table from results files only."""

import json
import shutil

import pytest
import torch
from helpers import image_folder
from omegaconf import OmegaConf

from ressl_plugin import config, host, run
from ressl_plugin.cli.main import main
from ressl_plugin.evaluate.logistic import NAME
from ressl_plugin.experiments import benchmark
from ressl_plugin.run import results
from ressl_plugin.train import pretrain
from ressl_plugin.utils.errors import RunFault, UserError
from ressl_plugin.views import recipe

METHODS = ["ressl", "ressl_host", "simclr", "byol", "simsiam", "mocov2plus", "supervised"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    images = image_folder(tmp_path_factory.mktemp("images"), classes=1, per_class=24)
    # any label: that there is nothing to learn is found soon, of 13 penalties after a few
    for file in sorted(images.rglob("*.png")):
        folder = file.parents[1] / f"class{int(file.stem) % 3}"
        folder.mkdir(exist_ok=True)
        file.rename(folder / file.name)
    return [
        "digits/ressl", "backbone.name=timm:resnet10t", "backbone.stem=auto",
        "backbone.kwargs={channels: [8, 8, 16, 16]}", "max_epochs=1", "accelerator=cpu",
        "optimizer.batch_size=8",
        f"data.train_path={images}/train", f"data.val_path={images}/val",
        "method_kwargs.queue_size=16", "method_kwargs.proj_hidden_dim=16",
        "enable_progress_bar=false", "enable_model_summary=false", "scheduler.warmup_epochs=0",
        "checkpoint.frequency=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def out(words, tmp_path_factory):
    """A finished benchmark, through the command line."""
    out = tmp_path_factory.mktemp("benchmark")
    assert main(["benchmark", *words, "--seeds", "3", "--out", str(out)]) == 0
    return out


def test_every_method_has_every_number(out):
    assert {p.name for p in out.iterdir() if p.is_dir()} == {f"{m}-seed3" for m in METHODS}
    for cell in (p for p in out.iterdir() if p.is_dir()):
        assert benchmark.complete(cell), cell.name
        assert not (cell / "previous").exists()
    lines = (out / "benchmark.md").read_text().splitlines()
    body = [line for line in lines if line.startswith("|")][2:]
    assert len(body) == 7
    assert all(cell.strip() for line in body for cell in line.strip("|").split("|"))
    assert (out / "benchmark.tex").read_text().count(r"\\") == 8


def test_a_finished_cell_is_not_run_again(out, words, capsys):
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/*") if p.name != "results.json"}
    records = {p.name: results.read(p) for p in out.iterdir() if p.is_dir()}
    assert main(["benchmark", *words, "--seeds", "3", "--out", str(out)]) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {p.name: results.read(p) for p in out.iterdir() if p.is_dir()} == records
    assert "[7/7]" in capsys.readouterr().out


def test_other_labels_of_a_finished_cell_are_evaluated(out, words, tmp_path):
    shutil.copytree(out / "byol-seed3", tmp_path / "byol-seed3")
    again = ["benchmark", *words, "--methods", "byol", "--seeds", "3", "--out", str(tmp_path)]
    assert main([*again, "--labels", "2"]) == 0
    assert "| 2 labels a class |" in (tmp_path / "benchmark.md").read_text()


def test_another_budget_in_the_same_place(out, words):
    again = [w for w in words[1:] if not w.startswith("max_epochs")]
    with pytest.raises(UserError, match="max_epochs: 1 -> 2"):
        benchmark.benchmark("digits/ressl", [*again, "max_epochs=2"], ["byol"], [3], out)


def test_unknown_method(words, tmp_path):
    with pytest.raises(UserError, match="known are ressl, ressl_fast, ressl_host, simclr"):
        benchmark.benchmark("digits/ressl", words[1:], ["simclr2"], [1], tmp_path)


def test_a_recipe_of_another_method(tmp_path):
    with pytest.raises(UserError, match="method=swav: a recipe of ReSSL is needed"):
        benchmark.benchmark("imagenet/swav_multicrop", [], None, [1], tmp_path)


def test_cells_that_all_fail_are_the_runs_fault(words, tmp_path, monkeypatch):
    def gone(cfg, meter):
        raise RunFault("loss is nan")

    monkeypatch.setattr(benchmark.sweep, "train", gone)
    with pytest.raises(RunFault, match="1 of 1"):
        benchmark.benchmark("digits/ressl", words[1:], ["byol"], [1], tmp_path)


def test_labels_a_class_are_at_least_one(words, tmp_path, capsys):
    assert main(["benchmark", *words, "--labels", "0", "--out", str(tmp_path)]) == 2
    assert "--labels 0: labels a class, from 1 on" in capsys.readouterr().err


# records that other commands may add to a cell: they are not the benchmark's
OF_OTHERS = [
    {"protocol": "small"}, {"checkpoint": "best.ckpt"}, {"epochs": 0},
    {"data_sets": {"val": {"images": 8, "classes": 2, "digest": "of others"}}},
    {"evaluator": "knn", "protocol": "k=200 cosine T=1"},
    {"evaluator": "knn", "protocol": "kNN, k=20 T=0.07", "representation": "raw pixels"},
    {"evaluator": "few-labels", "protocol": "linear, all", "representation": "ReSSL"},
]  # fmt: skip


def test_numbers_come_from_the_results_files(out, tmp_path):
    settings = benchmark.read_methods(config.finish(config.load("digits/ressl")))
    folders = []
    for seed, value in ((1, 80.0), (2, 90.0)):
        folder = tmp_path / f"byol-seed{seed}"
        folder.mkdir()
        cfg = OmegaConf.load(out / "byol-seed3" / "config.yaml")
        cfg.seed = seed
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        record = {"evaluator": "linear", "protocol": NAME, "data": "custom", "metric": "top1"}
        record["data_sets"] = {"val": {"images": 8, "classes": 2, "digest": "its own"}}
        results.append(folder, {**record, "value": 10.0})
        results.append(folder, {**record, "value": value})  # the latest counts
        results.append(folder, {**record, "evaluator": "training", "metric": "images/s",
                                "value": 10 * value})  # fmt: skip
        for other in OF_OTHERS:
            results.append(folder, {**record, "value": 33.0, **other})
        folders.append(folder)
    text = benchmark.table(folders, settings)
    rows = text.split("|", 1)[1]  # the caption names a folder, of any number
    assert "33" not in rows and "all" not in rows
    assert text.splitlines()[0].endswith(f", solo-learn {host.version()}.")
    assert "85.00 ± 7.07" in text and "850 ± 71" in text and "seeds 1, 2" in text
    assert "BYOL" in text and "SimCLR" not in text


def test_settings_of_their_own(words, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "simclr: {optimizer: {lr: 0.5}, max_epochs: 7}\n"
        "mine: {title: M, backprop: 1x, views: recipe, method: ressl,"
        " method_kwargs: '${recipe.method_kwargs}'}\n"
        "warm: {title: Warm, backprop: 1x, views: recipe, method: ressl, recipe: digits/ressl_v2}\n"
    )
    base = config.finish(config.load("digits/ressl", [*words[1:], "data.num_classes=3"]))
    settings = benchmark.read_methods(base, own)
    simclr, warm, byol = (
        benchmark.cell_config(base, name, settings[name], 1, tmp_path)
        for name in ("simclr", "warm", "byol")
    )
    assert (simclr.optimizer.lr, simclr.max_epochs, simclr.check_val_every_n_epoch) == (0.5, 7, 7)
    assert simclr.method_kwargs.temperature == 0.2  # of methods.yaml
    assert (byol.optimizer.lr, byol.max_epochs) == (base.optimizer.lr, 1)
    assert settings["mine"]["method_kwargs"] == base.method_kwargs
    theirs = config.finish(config.load("digits/ressl_v2", []))
    assert (warm.method, warm.name) == ("ressl", "warm-seed1")
    assert warm.method_kwargs == theirs.method_kwargs != base.method_kwargs
    assert warm.optimizer == {**theirs.optimizer, "batch_size": 8}
    assert recipe.read(warm.augmentations) == recipe.read(theirs.augmentations)
    assert warm.backbone == base.backbone and warm.data == base.data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("simclr: {optimiser: {lr: 0.5}}", "simclr: unknown key optimiser; did you mean optimizer"),
        ("simclr: 0.5", "simclr: a method and its settings are expected"),
        ("simclr: {optimizer: }", "simclr.optimizer=None: must be a mapping"),
        ("simclr: {views: [contrastive]}", r"simclr.views=\['contrastive'\]: must be"),
        ("simclr: {views: strong}", "simclr.views='strong': must be"),
        ("simclr: {max_epochs: '8'}", "simclr.max_epochs='8': must be a whole number"),
        ("simclr: {method_kwargs: '${recipe.no}'}", "Interpolation key 'recipe.no' not found"),
        ("mine: {method: ressl, views: recipe}", "mine: title and backprop needed"),
    ],
)
def test_mistakes_in_them(text, message, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(UserError, match=f"own.yaml: {message}"):
        benchmark.read_methods(config.finish(config.load("digits/ressl")), own)


def test_batch_norm_of_the_others_is_over_all_devices_where_ressls_is_shuffled(tmp_path):
    """Of few images a device, query and key would be known by their statistics."""
    for words, modes in ((["imagenet/ressl"], ("shuffle", "sync", "sync", "group")),
                         (["cifar/ressl"], ("group",) * 4)):  # fmt: skip
        base = config.finish(config.load(*words))
        settings = benchmark.read_methods(base)
        names = ("ressl", "mocov2plus", "ressl_host", "supervised")
        cells = [benchmark.cell_config(base, name, settings[name], 1, tmp_path) for name in names]
        assert tuple(cell.batchnorm.mode for cell in cells) == modes


def test_a_recipe_of_its_own_is_read_for_the_epochs_that_are_trained(tmp_path):
    base = config.finish(config.load("cifar/ressl", ["max_epochs=7", "optimizer.batch_size=128"]))
    settings = benchmark.read_methods(base)["ressl_fast"]
    cfg = benchmark.cell_config(base, "ressl_fast", settings, 1, tmp_path)
    assert (cfg.method, cfg.max_epochs, cfg.method_kwargs.infonce_epochs) == ("ressl", 7, 7)
    assert (cfg.optimizer.batch_size, cfg.optimizer.lr) == (64, 0.24)


@pytest.mark.parametrize("method", ["byol", "simclr", "ressl_host"])
def test_all_have_the_same_stem(method, tmp_path):
    pretrain.registry.register()
    base = config.finish(config.load("digits/ressl", ["data.num_classes=10"]))
    settings = benchmark.read_methods(base)[method]
    model = pretrain.make_method(benchmark.cell_config(base, method, settings, 1, tmp_path))
    teacher = getattr(model, "momentum_backbone", None)
    for backbone in (b for b in (model.backbone, teacher) if b is not None):
        assert backbone.conv1.kernel_size == (3, 3) and backbone.conv1.padding == (1, 1)
        assert isinstance(backbone.maxpool, torch.nn.Identity)
    if teacher is not None:
        assert torch.equal(teacher.conv1.weight, model.backbone.conv1.weight)
        assert not teacher.conv1.weight.requires_grad


def test_views_of_each_method():
    base = config.finish(config.load("cifar/ressl"))
    weak, strong = (lambda v: v.jitter_prob == 0), (lambda v: v.jitter_prob == 0.8)
    made = {kind: recipe.read(benchmark.views(base, kind)).crops
            for kind in ("recipe", "contrastive", "pair", "weak")}  # fmt: skip
    assert [strong(v) for v in made["contrastive"]] == [True, True]
    assert strong(made["pair"][0]) and weak(made["pair"][1])
    assert weak(made["weak"][0])
    assert made["recipe"] == recipe.read(base.augmentations).crops


def test_supervised_learns_and_needs_labels(out, words):
    state = run.open_run(out / "supervised-seed3").state
    assert any(k.startswith("classifier.") for k in state)
    from ressl_plugin.method.supervised import Supervised

    cfg = OmegaConf.create(json.loads((out / "supervised-seed3" / "args.json").read_text()))
    torch.manual_seed(0)
    model = Supervised(cfg)
    first = next(model.backbone.parameters())
    before = first.clone()
    model.log_dict = lambda *args, **kwargs: None  # no trainer here
    images, targets = torch.randn(8, 3, 16, 16), torch.arange(8) % 3
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = model.training_step([torch.arange(8), [images], targets], 0)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(first, before)
    cfg.data.no_labels = True
    with pytest.raises(UserError, match="no labels"):
        Supervised(cfg)


def test_rates_of_the_supervised_reference_count_accumulated_batches(out):
    """As those of all other methods, and as the log says."""
    from ressl_plugin.method.supervised import Supervised

    cfg = OmegaConf.create(json.loads((out / "supervised-seed3" / "args.json").read_text()))
    cfg.scheduler.name = "none"
    rates = []
    for cfg.accumulate_grad_batches in (1, 4):
        model = Supervised(cfg)
        made = model.configure_optimizers()
        rates.append(made.param_groups[0]["lr"])
        assert model.cfg.scheduler.min_lr == cfg.scheduler.min_lr * cfg.accumulate_grad_batches
    assert rates[0] > 0 and rates[1] == pytest.approx(4 * rates[0])


def test_images_without_labels_are_refused_before_the_first_training(words, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "run_cell", lambda cfg: pytest.fail("trained"))
    unlabelled = [*words[1:], "data.no_labels=true"]
    with pytest.raises(UserError, match="have no label, and labels are needed"):
        benchmark.benchmark("digits/ressl", unlabelled, None, [1], tmp_path)
