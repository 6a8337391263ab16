"""The `ressl` command as a user types it: a run on real images, its evaluators, its mistakes."""

import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import image_folder
from omegaconf import OmegaConf
from PIL import Image

from ressl_plugin import data
from ressl_plugin.cli.main import main
from ressl_plugin.evaluate import recipes, subject
from ressl_plugin.run import results
from ressl_plugin.utils.errors import UserError

pytestmark = pytest.mark.timeout(280)

TINY = (
    "backbone.name=timm:resnet18", "backbone.stem=paper",
    "backbone.kwargs={channels:[8,8,8,8],zero_init_last:false}",
    "method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=8",
    "method_kwargs.queue_size=32", "optimizer.batch_size=64", "accelerator=cpu",
    "enable_progress_bar=false", "enable_model_summary=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A quarter of the digits, of every class alike: 360 images to train on and 90."""
    folder = data.make_digits(tmp_path_factory.mktemp("data") / "digits")
    for split in ("train", "val"):
        for i, file in enumerate(sorted((folder / split).rglob("*.png"))):
            if i % 4:
                file.unlink()
    return folder


def words(digits, folder, *more):
    return ["pretrain", "digits/ressl", f"data.train_path={digits}/train",
            f"data.val_path={digits}/val", f"run_dir={folder}", *TINY, *more]  # fmt: skip


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(words(digits, folder, "max_epochs=2")) == 0
    return folder


def error(capsys, *argv):
    """The one line that a user's mistake prints."""
    assert main([str(w) for w in argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "ressl: error" in line]
    assert len(lines) == 1
    return lines[0]


def test_a_run_is_a_directory(run):
    assert torch.get_float32_matmul_precision() == "highest", "for what comes after a training"
    assert (run / "last.ckpt").is_file()
    assert OmegaConf.load(run / "config.yaml").optimizer.lr == 0.24
    args = json.loads((run / "args.json").read_text())
    assert args["optimizer"]["lr"] == pytest.approx(0.24 * 64 / 256)
    assert args["data"]["num_classes"] == 10
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train_ressl_loss", "target_entropy", "val_acc1", "val_knn_acc1"} <= set(header)
    assert list((run / "logs" / "0").glob("events.out.tfevents*"))
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert {"queue", "queue_ptr"} <= set(state)


def test_every_evaluator_appends_to_results(run, capsys):
    assert main(["knn", str(run), "--k", "5", "20", "--temperature", "0.07"]) == 0
    assert main(["linear", str(run), "--fast"]) == 0
    assert main(["compare", str(run), "--draws", "2"]) == 0
    out = capsys.readouterr().out
    assert "kNN k=5 cosine T=0.07" in out
    assert main(["knn", str(run), "--k", "5", "--distance", "euclidean", "data.image_size=8"]) == 0
    assert "cosine" not in capsys.readouterr().out
    assert results.read(run)[-1]["protocol"].endswith(", data.image_size=8")
    assert "raw pixels" in (run / "comparison.md").read_text()
    assert {r["evaluator"] for r in results.read(run)} >= {"knn", "linear", "few-labels"}
    for record in results.read(run):
        assert {"protocol", "data", "metric", "value", "versions", "command"} <= set(record)


@pytest.mark.parametrize(
    ("words", "last"),
    [(("knn", "--k", "5"), "best (chosen on these"), (("compare", "--draws", "2"), "| raw pixels"),
     (("linear", "--fast"), "linear (")],
)  # fmt: skip
def test_a_full_disk_does_not_cost_the_numbers(run, capsys, words, last):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        status = main([words[0], str(run), *words[1:]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    out, err = capsys.readouterr()
    assert status == 3 and "File too large" in err
    assert last in out


def test_labels_a_class_that_there_are_not_cost_nothing(run, capsys, caplog):
    before = len(results.read(run))
    lowshot = ("lowshot", str(run), "--draws", "2", "--device", "cpu")
    assert main([*lowshot, "--per-class", "2", "64", "full"]) == 0
    assert "left out: 64 labels a class" in caplog.text
    made = [record["protocol"] for record in results.read(run)[before:]]
    assert made == ["SVM, 2 a class", "SVM, full a class"]
    assert "--per-class" in error(capsys, *lowshot, "--per-class", "64")
    assert "of VOC07 alone" in error(capsys, *lowshot, "--protocol", "goyal")


def test_overrides_of_several_lines_and_of_one_view(run):
    lines = "augmentations=[{preset: contrastive, crop_size: 8},\n {preset: weak, crop_size: 8}]"
    opened = subject.with_overrides(str(run), [lines])
    assert subject.protocol_of(opened, "small").isprintable()
    one = subject.with_overrides(str(run), ["augmentations.0.horizontal_flip.prob=0.25"])
    assert one.cfg.augmentations[0].horizontal_flip.prob == 0.25
    assert len(one.cfg.augmentations) == len(opened.cfg.augmentations) == 2
    with pytest.raises(UserError, match=r"augmentations\.x\.crop_size=8: .*not an int"):
        subject.with_overrides(str(run), ["augmentations.x.crop_size=8"])


def test_one_class_is_not_compared(run, digits, tmp_path, capsys):
    for split in ("train", "val"):
        shutil.copytree(digits / split / "3", tmp_path / split / "3")
    one = (f"data.train_path={tmp_path}/train", f"data.val_path={tmp_path}/val")
    assert "one class" in error(capsys, "compare", run, *one)


def test_figures_and_table(run, digits, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra `figures` is not installed")
    few = shutil.copytree(digits / "val", tmp_path / "few")  # t-SNE takes its time
    assert main(["figures", str(run), f"data.train_path={few}"]) == 0
    made = capsys.readouterr().out.split()
    assert {"curves.png", "features.png", "neighbours.png"} <= {p.rsplit("/", 1)[-1] for p in made}
    assert main(["knn", str(run), "--k", "20", "--temperature", "0.07"]) == 0
    assert main(["table", str(run), "--format", "csv"]) == 0


@pytest.fixture(scope="module")
def unlabelled_run(digits, tmp_path_factory):
    """A run on a flat folder of images, without labels and validation images."""
    folder = tmp_path_factory.mktemp("unlabelled")
    (folder / "images").mkdir()
    for i, file in enumerate(sorted((digits / "train").rglob("*.png"))[::4]):
        shutil.copy(file, folder / "images" / f"{i}.png")
    more = (f"data.train_path={folder}/images", "data.val_path=null", "data.no_labels=true",
            "max_epochs=1")  # fmt: skip
    assert main(words(digits, folder / "run", *more)) == 0
    return folder / "run"


def test_figures_need_no_labels(unlabelled_run, capsys):
    pytest.importorskip("matplotlib", reason="the extra `figures` is not installed")
    assert main(["figures", str(unlabelled_run)]) == 0
    made = capsys.readouterr().out.split()
    assert {"curves.png", "features.png", "neighbours.png"} <= {p.rsplit("/", 1)[-1] for p in made}


def test_features_are_written(run, unlabelled_run, digits, tmp_path, capsys):
    out = tmp_path / "f.npz"
    assert main(["features", str(run), str(out), "seed=2"]) == 0
    with np.load(out) as file:
        assert file["train_features"].shape == (360, 8)
        assert file["val_features"].shape == (90, 8) and file["val_features"].dtype == np.float32
        assert np.bincount(file["val_targets"]).sum() == 90 and len(file["classes"]) == 10
        assert file["train_features"].std() > 0
    assert main(["features", str(unlabelled_run), str(out)]) == 0
    with np.load(out) as file:
        assert set(file["train_targets"]) == {-1} and "val_features" not in file
    assert "ends in .npz" in error(capsys, "features", run, tmp_path / "f.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.npz"]


def test_raw_pixels_are_bounded(run, monkeypatch, caplog, capsys):
    monkeypatch.setattr(subject, "PIXELS", 1000)
    assert main(["compare", str(run), "--draws", "2"]) == 0
    assert "raw pixels are left out: " in caplog.text
    out = capsys.readouterr().out
    assert "untrained backbone" in out and "raw pixels" not in out


def test_linear_by_recipe_and_by_protocol(run, digits, tmp_path, capsys):
    recipe = tmp_path / "linear.yaml"
    recipe.write_text(
        f"name: l\npretrained_feature_extractor: {run}\nbackbone: {{name: 'timm:resnet18'}}\n"
        f"data: {{dataset: custom, train_path: {digits}/train, val_path: {digits}/val,"
        " num_workers: 0}\n"
        "optimizer: {name: sgd, batch_size: 256, lr: 1.0, weight_decay: 0}\n"
        "scheduler: {name: step, lr_decay_steps: [1]}\nmax_epochs: 1\n"
    )
    assert main(["linear", str(recipe)]) == 0
    assert "linear (recipe linear): top-1" in capsys.readouterr().out
    extracting = ["--fast", "--protocol", "small", "optimizer.batch_size=16"]
    assert main(["linear", str(run), *extracting]) == 0
    assert "linear (small, cached features): top-1" in capsys.readouterr().out
    assert main(["linear", str(recipe), "seed=7", "optimizer.lr=0.5"]) == 0
    assert results.read(run)[-1]["protocol"] == "recipe linear, optimizer.lr=0.5"
    assert main(["linear", str(recipe), "seed=7"]) == 0
    record = results.read(run)[-1]
    assert record["seeds"] == [7] and record["protocol"] == "recipe linear"
    assert record["details"]["lr"] == 1.0 and record["details"]["epochs"] == 1
    assert (record["epochs"], record["checkpoint"]) == (2, "last.ckpt")
    for flag in (["--fast"], ["--protocol", "small"]):
        assert "--fast and --protocol are for a run" in error(capsys, "linear", recipe, *flag)
    assert "batch_size=1: without effect" in error(capsys, "linear", run, "optimizer.batch_size=1")
    for word in ("max_epochs=1", "optimizer.lr=5"):
        assert f"{word}: without effect" in error(capsys, "linear", run, "--fast", word)
    assert "mixup=0.5" in error(capsys, "linear", recipe, "mixup=0.5")
    message = error(capsys, "linear", recipe, "backbone.name=resnet50")
    assert "backbone.name=resnet50" in message and "timm:resnet18" in message
    assert "pretrained_feature_extractor" in error(capsys, "linear", "digits/ressl")


def test_a_linear_recipe_without_data_takes_the_runs(run, tmp_path):
    """And no default of the schema in its place: the run's images have 16 pixels a side."""
    recipe = tmp_path / "linear.yaml"
    recipe.write_text(
        f"pretrained_feature_extractor: {run}\nmax_epochs: 1\ndata: {{num_workers: 0}}\n"
        "optimizer: {name: sgd, batch_size: 256, lr: 1.0}\n"
        "scheduler: {name: step, lr_decay_steps: [1]}\n"
    )
    assert main(["linear", str(recipe)]) == 0
    _, read = recipes.resolve(str(recipe), [])
    assert list(read.data) == ["num_workers"]


def test_an_unfinished_run_says_so_in_its_records(run, tmp_path, caplog):
    half = tmp_path / "half"
    shutil.copytree(run, half)
    cfg = OmegaConf.load(half / "config.yaml")
    cfg.max_epochs = 5
    OmegaConf.save(cfg, half / "config.yaml")
    assert main(["knn", str(half), "--k", "5", "--temperature", "0.07"]) == 0
    assert "has trained 2 of its 5 epochs" in caplog.text
    assert results.read(half)[-1]["epochs"] == 2


def test_a_run_is_not_overwritten_and_resumes(digits, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(words(digits, folder, "max_epochs=2", "limit_train_batches=2")) == 0
    before = (folder / "metrics.csv").read_text()
    assert "resume=true continues it" in error(capsys, *words(digits, folder, "max_epochs=2"))
    resumed = words(digits, folder, "max_epochs=2", "limit_train_batches=2", "resume=true")
    assert main(resumed) == 0
    assert (folder / "metrics.csv").read_text() == before
    other = words(digits, folder, "max_epochs=3", "limit_train_batches=2", "resume=true")
    assert "max_epochs: 2 -> 3" in error(capsys, *other)
    assert main([*other, "resume_force=true"]) == 0


@pytest.mark.parametrize("backend", ["host", "batched"])
def test_back_ends_train_two_views_and_multicrop(digits, tmp_path, backend):
    view = "crop_size: 16, interpolation: bilinear"
    augmentations = (
        f"augmentations=[{{preset: contrastive, {view}, num_crops: 2}},{{preset: weak, {view}}},"
        "{preset: contrastive, crop_size: 8}]"
    )
    more = (f"data.backend={backend}", augmentations, "max_epochs=1", "limit_train_batches=2",
            "batchnorm.groups=4", "knn_eval.enabled=false")  # fmt: skip
    assert main(words(digits, tmp_path / "run", *more)) == 0


def test_unlabelled_images_train(digits, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(70):
        Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(flat / f"{i}.png")
    more = (f"data.train_path={flat}", "data.val_path=null", "data.no_labels=true", "max_epochs=1")
    assert main(words(digits, tmp_path / "run", *more)) == 0
    assert (tmp_path / "run" / "last.ckpt").is_file()


@pytest.mark.parametrize("backend", ["host", "batched", "dali"])
def test_a_contact_sheet_of_the_views(digits, tmp_path, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="the extra `dali` is not installed")
    out = tmp_path / "views.png"
    words = ["views", "digits/ressl", f"data.train_path={digits}/train", "dali.device=cpu",
             "--images", "2", "--backend", backend, "--out", str(out)]  # fmt: skip
    assert main(words) == 0
    with Image.open(out) as sheet:
        assert len(sheet.convert("L").getcolors(1 << 20)) > 20  # a picture, not a blank page


@pytest.mark.parametrize("name", ["v.xyz", "v", "folder.png"])
def test_a_contact_sheet_is_a_picture(tmp_path, capsys, name):
    (tmp_path / "folder.png").mkdir()
    assert "the name of a picture" in error(capsys, "views", "digits/ressl", "--out",
                                            tmp_path / name)  # fmt: skip


def test_help_gives_the_defaults(capsys):
    for name, wanted in (("knn", "1 5 10 20 50 100 200"), ("lowshot", "16 32 64 full"),
                         ("finetune", "default: 20"), ("views", "default: views.png"),
                         ("benchmark", "default: 1 2 3")):  # fmt: skip
        with pytest.raises(SystemExit):
            main([name, "--help"])
        out = " ".join(capsys.readouterr().out.split())
        assert wanted in out
        assert "default: False" not in out and "default: []" not in out


def test_printing_the_config_trains_nothing(digits, tmp_path, capsys):
    assert main([*words(digits, tmp_path / "run"), "--cfg"]) == 0
    cfg = OmegaConf.create(capsys.readouterr().out)
    assert cfg.method_kwargs.queue_size == 32
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words", ["views digits/ressl", "benchmark digits/ressl", "import x cifar/ressl"]
)
def test_what_cannot_be_printed_is_not_asked_for(tmp_path, capsys, words):
    """--cfg was taken and ignored."""
    with pytest.raises(SystemExit) as stopped:
        main([*words.split(), "--cfg", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --cfg" in capsys.readouterr().err


def test_mistakes_about_data(digits, tmp_path, capsys):
    at = lambda *more: error(capsys, *words(digits, tmp_path / "run", *more))
    assert "/nowhere" in at("data.train_path=/nowhere")
    assert "data.dataset=cifar11" in at("data.dataset=cifar11")
    assert "optimizer.batch_size=5000" in at("optimizer.batch_size=5000")
    assert "accelerator=gpu" in at("accelerator=gpu") or torch.cuda.is_available()
    assert "method=resl" in at("method=resl")

    assert "~backbone.kwargs drops them" in at("backbone.name=resnet18")

    folder = image_folder(tmp_path / "images", per_class=30)
    (folder / "train" / "class0" / "bad.png").write_bytes(b"not an image")
    assert "bad.png" in at(f"data.train_path={folder}/train", f"data.val_path={folder}/val")
    (folder / "train" / "class0" / "bad.png").unlink()
    (folder / "train" / "empty").mkdir()
    assert "empty" in at(f"data.train_path={folder}/train", f"data.val_path={folder}/val")
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_mistakes_about_runs(run, tmp_path, capsys):
    assert "no such run" in error(capsys, "knn", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "checkpoint" in error(capsys, "knn", tmp_path / "empty")
    assert "backbone" in error(capsys, "knn", run, "backbone.kwargs.channels=[8,8,8,16]")
    assert "need" in error(capsys, "knn", run, "data.no_labels=true", "data.val_path=null")
    assert "--device" in error(capsys, "knn", run, "--device", "cuda:77")
    assert "temperature = nan" in error(capsys, "knn", run, "--temperature", "nan")
    euclidean = ("--distance", "euclidean", "--temperature", "0.5")
    assert "--temperature is of cosine" in error(capsys, "knn", run, *euclidean)
    assert "--lr-head -1" in error(capsys, "finetune", run, "--lr-head", "-1")
    assert "one config is needed" in error(capsys, "pretrain")


def test_a_queue_larger_than_the_data_set_warns(digits, tmp_path, caplog):
    more = ("max_epochs=1", "limit_train_batches=1", "method_kwargs.queue_size=2000")
    assert main(words(digits, tmp_path / "run", *more)) == 0
    assert "queue_size=2000: larger than the data set of 360 images" in caplog.text


def test_the_installed_command():
    done = subprocess.run(
        [sys.executable, "-m", "ressl_plugin.cli", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for command in ("pretrain", "linear", "knn", "table"):
        assert command in done.stdout
