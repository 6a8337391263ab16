"""Every benchmark script runs, prints its table and writes the keys that readers rely on."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ressl_plugin.data import make_digits
from ressl_plugin.utils import precision

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
MOST_LAUNCHES = 800  # device operations of a step
SPLITS = {"train": 60, "test": 20}
TINY = ["--pairs", "1", "--threads", "1"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:  # `views`, `loss` and such are names of others, too
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """Overrides for a small network and one in seven of the digits."""
    folder = make_digits(tmp_path_factory.mktemp("few") / "digits")
    for file in folder.glob("*/*/*.png"):
        if int(file.stem) % 7:
            file.unlink()
    return [
        f"data.train_path={folder}/train", f"data.val_path={folder}/val", "accelerator=cpu",
        "backbone.name=timm:resnet10t", "backbone.stem=auto", "optimizer.batch_size=64",
        "backbone.kwargs={channels: [4, 4, 8, 8]}",
    ]  # fmt: skip


def figures(script, name, tmp_path, *options):
    file = tmp_path / "figures.json"
    returned = script(name).main([*TINY, "--json", str(file), *options])
    assert json.loads(file.read_text()) == returned
    assert all(value > 0 for value in returned.values())
    return returned


def test_step(script, tmp_path):
    options = ["--batch", "4", "--size", "8", "--queue", "16", "--steps", "1"]
    found = figures(script, "step", tmp_path, *options)
    ratios = {f"time_ratio_{side}" for side in ("host_stem", "paper_stem", "default", "plain")}
    if precision.fastest(gpu=False) != "32-true":
        ratios.add("time_ratio_bf16")
    assert set(found) == {*ratios, "outside_network_share"} and found["outside_network_share"] < 1


def test_loss(script, tmp_path):
    found = figures(script, "loss", tmp_path, "--size", "128", "8192", "64")
    assert set(found) == {"time_ratio_128_8192"}


def test_views(script, tmp_path):
    options = ["--batch", "8", "--images", "16", "--photos", "16", "--photo-size", "16"]
    found = figures(script, "views", tmp_path, *options, "--size", "8", "--workers", "0")
    assert {"batched_vs_host", "batched_224_vs_host"} <= set(found)
    assert ("dali_cpu_vs_host" in found) == bool(importlib.util.find_spec("nvidia"))


@pytest.mark.slow  # what it times is in test_gpu_rows_dry, too
def test_end_to_end(script, tmp_path):
    options = ["--batch", "4", "--size", "8", "--steps", "1", "--workers", "0"]
    found = figures(script, "end_to_end", tmp_path, *options)
    assert set(found) == {"images_per_s_ratio", "images_per_s_ratio_default"}


def test_launches(script, tmp_path):
    file = tmp_path / "launches.json"
    found = script("launches").main([*TINY, "--json", str(file), "--batch", "16"])
    assert json.loads(file.read_text()) == found
    kinds = {"device_ops", "host_ops", "copies", "waits"}
    assert set(found) == {*kinds, "graph_breaks", *(f"captured_{kind}" for kind in kinds)}
    assert found["waits"] == found["graph_breaks"] == 0
    assert 500 < found["device_ops"] <= MOST_LAUNCHES and found["copies"] <= 12
    assert found["captured_waits"] == found["captured_host_ops"] == 0
    assert found["captured_copies"] == 1 and found["captured_device_ops"] > 500


def test_launches_tell_waits_copies_and_work_apart(script):
    counts = script("launches").Counts()
    there = torch.ones(4, device="meta")
    with counts:
        there.view(2, 2)
        there.add(1)
        float(there.sum())
        torch.ones(2).to("meta")
        there.copy_(torch.ones(4))
    assert [counts.total(kind) for kind in script("launches").KINDS] == [2, 2, 2, 1]


def test_launches_of_group_batch_norm_are_those_that_it_makes(script, monkeypatch):
    """Counted where they are made, kernels of Triton's and of PyTorch's."""
    jit = pytest.importorskip("triton.runtime.jit", reason="Triton is not installed")
    from ressl_plugin.method import batchnorm_kernels as kernels

    made, counts = [], script("launches").Counts()
    monkeypatch.setattr(jit.JITFunction, "run", lambda *_, **__: made.append(1))
    x, moments = torch.ones(4, 3, 2, 2, device="meta"), torch.ones(2, 2, 3, device="meta")
    calls = {
        "group_moments": lambda: kernels.statistics(x, None, None, None, 2, 0.1, 1e-5),
        "group_normalise": lambda: kernels.normalise(x, moments, None, None, 2),
        "group_gradients": lambda: kernels.gradients(x, x, moments, None, 2),
    }
    found = {}
    for name, call in calls.items():
        before = len(made) + counts.total("device_ops")
        with counts:
            call()
        found[name] = len(made) + counts.total("device_ops") - before
    assert found == script("launches").OF_SEVERAL


@pytest.mark.slow  # each of its four figures is a process that imports and trains
def test_busy(script, tmp_path):
    small = ["backbone.name=timm:resnet10t", "backbone.stem=auto", "optimizer.batch_size=256",
             "backbone.kwargs={channels: [4, 4, 8, 8]}", "accelerator=cpu"]  # fmt: skip
    options = ["--epochs", "1", "--settings", "passive", "--", *small]
    found = figures(script, "busy", tmp_path, *options)
    assert set(found) == {f"{place}_{name}" for place in ("quiet", "busy")
                          for name in ("nothing", "passive")}  # fmt: skip


def test_saving(script, tmp_path, capsys):
    file = tmp_path / "saving.json"
    options = ["--batch", "4", "--size", "8", "--steps", "2", "--json", str(file)]
    found = script("saving").main([*TINY, *options])
    assert json.loads(file.read_text()) == found and set(found) == {"stall_ratio", "held_ratio"}
    assert 0 < found["held_ratio"] < 1 and "152 MB" in capsys.readouterr().out


def test_a_stall_is_what_a_round_lasts_longer(script):
    saving = script("saving")
    order, seconds = [*saving.SIDES, *saving.SIDES[::-1]], [1.0, 1.5, 3.0, 5.0, 2.5, 2.0]
    assert saving.rounds_of(order, seconds) == [(1.0, 1.5, 3.0), (2.0, 2.5, 5.0)]
    assert saving.stalls(order, seconds) == [(0.0, 0.5, 2.0), (0.0, 0.5, 3.0)]


@pytest.mark.slow  # its ranks import everything
@pytest.mark.distributed
def test_gather(script, tmp_path):
    found = figures(script, "gather", tmp_path, "--largest", "4096")
    assert set(found) == {"gather_ms_32_4096", "broadcast_ms_32_4096"}


@pytest.mark.slow  # what it times is in test_step and test_views, too
def test_growth(script, tmp_path):
    options = ["--size", "8", "--steps", "1", "--images", "16", "--only", "crops", "workers"]
    found = figures(script, "growth", tmp_path, *options)
    assert {"ours_crops_1", "host_crops_1", "plain_crops_1", "ours_crops_4"} <= set(found)
    assert {"images_per_s_batched", "images_per_s_host_2_workers"} <= set(found)


@pytest.mark.slow
def test_warmup(script, tmp_path, few_digits):
    found = figures(script, "warmup", tmp_path, "--seeds", "1", "--epochs", "1", *few_digits)
    assert {"plain_entropy", "warmup_entropy", "warmup_trained_1", "plain_pixels_all"} <= set(found)
    assert found["plain_pixels_5"] == found["warmup_pixels_5"] < found["plain_pixels_all"]


def test_quality(script, tmp_path, few_digits):
    file = tmp_path / "figures.json"
    options = ["--seeds", "1", "--epochs", "2", "--every", "1", "--views", "2", "--json", str(file)]
    found = script("quality").main([*TINY, *options, *few_digits])
    assert json.loads(file.read_text()) == found
    metrics = {key.removesuffix("_picked") for key in found if key.endswith("_picked")}
    assert {"knn", "rankme", "alpha_req", "uniformity", "alignment", "lidar"} <= metrics
    for name in metrics:
        assert abs(found[f"{name}_spearman"]) <= 1 and 10 < found[f"{name}_picked"] <= 100
        assert found[f"{name}_below_best"] >= 0


def test_quality_cost(script, tmp_path, few_digits):
    found = figures(script, "quality", tmp_path, "--cost", "--epochs", "2", *few_digits)
    assert set(found) == {"online_share"}


def test_quality_ranks_and_picks(script):
    checkpoints = [(1, 50.0, 9.0, float("nan")), (2, 70.0, 7.0, 1.0), (3, 60.0, 8.0, 3.0)]
    rows = [{"epoch": e, "linear": a, "knn": a, "rankme": r, "alpha_req": q, "uniformity": -r,
             "alignment": a, "lidar": 1 / a, "last": e} for e, a, r, q in checkpoints]  # fmt: skip
    found = script("quality").verdict([rows])
    assert (found["knn_spearman"], found["knn_picked"], found["knn_below_best"]) == (1, 70, 0)
    assert (found["rankme_spearman"], found["rankme_picked"]) == (-1, 50)
    assert (found["alpha_req_spearman"], found["last_picked"]) == (1, 60)


@pytest.mark.parametrize(
    ("name", "keys"),
    [("captured", {"cifar_captured_images_per_s", "cifar_captured_step_ms"}),
     ("eager", {"cifar_eager_images_per_s", "cifar_eager_step_ms"}),
     ("host", {"cifar_host_images_per_s"}), ("profile", {"profile_eager_backward_ms"}),
     ("loss", {"loss_8_64_8"}), ("views", {"views_8"}),
     ("imagenet", {"imagenet_ours_images_per_s", "imagenet_host_images_per_s"})],
)  # fmt: skip
def test_gpu_rows_dry(script, tmp_path, name, keys):
    file = tmp_path / "row.json"
    figures = script("gpu_rows").main([name, "--dry-run", "--json", str(file)])
    written = json.loads(file.read_text())
    assert written["figures"] == figures
    assert keys <= set(figures) and len(written["rows"]) >= len(keys)


STAND_IN = """
import json, pathlib, signal, sys, time
file = pathlib.Path(sys.argv[3])
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == "views" else signal.SIG_DFL)
said = {"machine": ["a machine"], "rows": [[sys.argv[1], "1", ""]]}
rates = {"eager": {"cifar_eager_images_per_s": 8}, "host": {"cifar_host_images_per_s": 2}}
file.write_text(json.dumps({**said, "figures": rates.get(sys.argv[1], {})}))
time.sleep(60 if sys.argv[1] in ("loss", "views") else 0)
sys.exit(sys.argv[1] == "profile")
"""


def test_gpu_rows_that_fail_or_hang_take_nothing_with_them(script, tmp_path, monkeypatch):
    gpu, out = script("gpu"), tmp_path / "out"
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(gpu, "WORKER", tmp_path / "stand_in.py")
    monkeypatch.setattr(gpu, "LEAST", 1)
    monkeypatch.setattr(gpu, "GRACE", 1)
    monkeypatch.setattr(gpu, "ROWS", {**dict.fromkeys(gpu.ROWS, 30), "loss": 11, "views": 11})
    order = ["host", "profile", "loss", "views", "eager"]
    assert gpu.main(["--out", str(out), "--rows", *order]) == 1
    page = (out / "gpu.md").read_text()
    assert all(f"| {name} | 1 |" in page for name in order), "what they had written"
    assert page.count("cut off after 10 s") == 2 and "failed, see profile.txt" in page
    assert "ours / host's | 4.00 |" in page and "a machine" in page
    assert json.loads((out / "gpu.json").read_text())["cifar_ratio"] == 4
    assert gpu.main(["--out", str(out), "--seconds", "0", "--rows", "eager"]) == 1
    assert "the time is spent" in (out / "gpu.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gpu_dry_run(tmp_path):
    out = tmp_path / "out"
    command = ["bash", FOLDER / "gpu.sh", "--dry-run", "--seconds", "9999", "--out", out]
    assert subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}).returncode == 0
    names = {file.stem for file in out.glob("*.json")}
    assert {"captured", "host", "eager", "imagenet", "gpu"} <= names
    assert not list(out.rglob("*.ckpt")) and not list(out.rglob("*.npz"))


def test_scaling_reproduces_what_was_measured(script, tmp_path):
    figures = tmp_path / "gpu.json"
    figures.write_text(json.dumps({"cifar_eager_images_per_s": 15_000.0}))
    title, page = "CIFAR-10, ResNet-18", tmp_path / "SCALING.md"
    options = ["--recipes", title, "--gpu-json", str(figures), "--out", str(page)]
    rows = [row for row in script("scaling").main(options).splitlines() if row.startswith("| 1 |")]
    cells = [cell.strip() for cell in rows[0].split("|")[1:-1]]
    hours = 200 * 50_000 / 15_000 / 3600
    assert cells[2].split()[0] == f"{hours:.2f}" and cells[-1] == "15,000"
    assert "measured on 1" in page.read_text() and "is computed**" not in page.read_text()
    assert f"scaling.py --gpu-json {figures}`" in page.read_text()


def test_pairs_take_turns_and_ratios_are_of_neighbours(script):
    common = script("common")
    order = []
    sides = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    runs = common.alternate(sides, 2)
    assert order == ["a", "b", "b", "a"]
    assert runs == [{"a": 1, "b": 2}, {"a": 4, "b": 3}]
    middle, low, high = common.ratio(runs, "a", "b")
    assert (middle, low, high) == (pytest.approx(11 / 12), 0.5, pytest.approx(4 / 3))


@pytest.mark.slow
def test_photographs(script, tmp_path, monkeypatch):
    """Its stages, at a size that means nothing; a second call trains nothing."""
    draw = np.random.default_rng(0)
    images = {s: draw.integers(0, 256, (n, 32, 32, 3), np.uint8) for s, n in SPLITS.items()}
    arrays = {f"x_{s}": x for s, x in images.items()}
    arrays |= {f"y_{s}": np.arange(len(x)) % 10 for s, x in images.items()}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    (tmp_path / "settings.yaml").write_text("ressl_fast: {optimizer: {batch_size: 16}}")
    options = [
        "--data", str(tmp_path / "cifar10.npz"), "--held-out", str(tmp_path / "cifar10.npz"),
        "--settings", str(tmp_path / "settings.yaml"),
        "--out", str(tmp_path / "out"), "--methods", "ressl", "simclr", "supervised", "ressl_fast",
        "--seeds", "1", "--rates", "0.1", "0.2", "--rate-epochs", "2",
        "--epochs", "2", "--minutes", "0.01", "optimizer.batch_size=16", "knn_eval.k=2",
        "backbone.kwargs={channels: [8, 8, 16, 16]}", "method_kwargs.queue_size=16",
        "check_val_every_n_epoch=1", "enable_progress_bar=false",
    ]  # fmt: skip
    photographs = script("photographs")
    monkeypatch.setattr(photographs, "LABELS", (1, 2))
    file = tmp_path / "figures.json"
    found = photographs.main([*options, "--threads", "1", "--json", str(file)])
    assert json.loads(file.read_text()) == found
    names = {f"{k}_{m}_{b}" for k in ("linear", "knn") for b in ("2epochs", "0.01min")
             for m in ("paper", "simclr", "supervised", "fast")}  # fmt: skip
    assert set(found) == names | {"linear_best_other_2epochs", "linear_best_other_0.01min"}
    rates = OmegaConf.load(tmp_path / "out" / "rates.yaml")
    assert set(rates) == {"ressl", "simclr", "supervised", "ressl_fast"}
    assert (tmp_path / "out" / "minutes.png").is_file()
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("**/last.ckpt")}
    assert len(stamps) == 4 * 4
    assert photographs.main([*options, "--threads", "1"]) == found
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gpu_cifar10_dry_run(tmp_path):
    """In pieces, one of which is killed; what is done is not done again."""
    out = tmp_path / "out"
    script = ["bash", FOLDER / "gpu_cifar10.sh", "--dry-run", out]

    def call(piece):
        where = {**os.environ, "PYTHON": sys.executable, "PIECE": str(piece)}
        return subprocess.run(script, env=where).returncode

    assert call(0) == 75
    while not (out / "run" / "last.ckpt").exists():
        assert call(1) == 75
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if f"run_dir={out}/run".encode() in words:
                os.kill(int(process.name), signal.SIGKILL)
    codes = [call(300)]
    while codes[-1] and len(codes) < 4:
        codes.append(call(300))
    assert codes[-1] == 0 and set(codes) <= {0, 1, 75}
    assert (out / "cifar10" / "model.safetensors").is_file()
    assert list((out / "run" / "figures").glob("*.png"))
    records = json.loads((out / "run" / "results.json").read_text())
    assert {"knn", "linear"} <= {record["evaluator"] for record in records}
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert call(0) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
