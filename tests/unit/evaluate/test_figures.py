"""Figures on real digits: files, size in print, what they show; errors."""

import contextlib
import importlib
import math
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from ranks import on_ranks
from sklearn.datasets import load_digits

from ressl_plugin.cli.main import guarded
from ressl_plugin.evaluate import figures
from ressl_plugin.run.metrics import read_metrics
from ressl_plugin.utils.errors import UserError

METRICS = """\
epoch,step,train_ressl_loss_epoch,train_ressl_loss_step,target_entropy,val_acc1,val_knn_acc1,momentum_val_acc1
0,0,,5.0,,,,
0,1,,4.0,,,,
0,1,4.6,,0.9,,,
0,1,,,,40,50,45
1,3,3.5,,0.7,,,
1,3,,,,60,70,65
"""


@pytest.fixture
def metrics(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    return tmp_path


def printed(paths):
    """Checks that PNG and PDF are there and one column wide; the pixels of the PNG."""
    png, pdf = paths
    assert (png.suffix, pdf.suffix) == (".png", ".pdf")
    assert pdf.read_bytes().startswith(b"%PDF") and b"/Type3" not in pdf.read_bytes()
    image = Image.open(png)
    assert image.width == pytest.approx(figures.COLUMN * 300, abs=1)
    return np.asarray(image.convert("RGB"))


def has_colour(pixels, colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(pixels.astype(int) - rgb).max(-1) <= 2).any()


def test_metrics_are_read_per_epoch(metrics):
    columns = read_metrics(metrics / "metrics.csv")
    epochs, loss = columns["train_ressl_loss"]
    assert epochs.tolist() == [0, 1] and loss.tolist() == [4.6, 3.5]  # not the steps' mean, 4.5
    assert columns["val_knn_acc1"][1].tolist() == [50, 70]


def test_curves(metrics):
    pixels = printed(figures.curves(metrics, metrics / "figures" / "curves", queue_size=512))
    # the student's classifier, kNN, the teacher's classifier
    assert all(has_colour(pixels, colour) for colour in figures.PALETTE[:3])


@pytest.fixture
def drawn(monkeypatch):
    """Figures, kept when they have been saved."""
    kept = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (kept.append(f), save(f, *a, **k))[1])
    return kept


def test_the_epochs_of_a_short_run_are_whole_numbers(tmp_path, drawn):
    for count in (1, 2, 3):
        rows = "".join(f"{epoch},{epoch},{3 - epoch}\n" for epoch in range(count))
        (tmp_path / "metrics.csv").write_text("epoch,step,loss\n" + rows)
        figures.curves(tmp_path, tmp_path / "c")
        axis = drawn[-1].axes[-1].xaxis
        low, high = axis.get_view_interval()
        labels = [t.get_text() for t in axis.get_ticklabels() if low <= t.get_position()[0] <= high]
        assert labels == [str(epoch + 1) for epoch in range(count)]


def test_curves_leave_out_what_was_not_measured(metrics):
    (metrics / "metrics.csv").write_text("epoch,step,train_ressl_loss\n0,1,3.0\n1,2,2.0\n")
    full = math.ceil(3 * 0.95 * 300)
    assert len(printed(figures.curves(metrics, metrics / "c"))) < full / 2


@pytest.mark.parametrize(
    "text,message",
    [
        ("epoch,step,loss\n", "no measurements"),
        ("a,b\n1,2\n", "no measurements"),
        ("epoch,step,loss\n0,1,x\n", "column loss holds 'x'"),
        ("epoch,step,lr\n0,1,2\n", "no loss and no accuracy among lr"),
    ],
)
def test_curves_name_what_is_wrong_with_the_file(tmp_path, text, message):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        figures.curves(tmp_path, tmp_path / "c")


def test_curves_of_a_method_of_the_host(tmp_path, drawn):
    """Without labels, too."""
    for name in ("train_nce_loss", "train_neg_cos_sim"):
        (tmp_path / "metrics.csv").write_text(f"epoch,step,{name},train_class_loss\n0,1,2,9\n")
        figures.curves(tmp_path, tmp_path / "c")
        (line,) = drawn[-1].axes[0].get_lines()
        assert line.get_ydata().tolist() == [2]


def test_another_run_that_has_only_begun_is_not_drawn(metrics, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.csv").write_text("lr-SGD,step\n0.1,1\n")
    printed(figures.curves(metrics, metrics / "c", behind=[tmp_path / "begun"]))


def test_no_metrics_file(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.csv"):
        figures.curves(tmp_path, tmp_path / "c")


def test_feature_space(tmp_path):
    data = load_digits()
    x, y = data.data[:150], data.target[:150]
    spaces = {"raw pixels": x, "first half": x[:, :32]}
    pixels = printed(figures.feature_space(spaces, y, tmp_path / "space"))
    assert all(has_colour(pixels, colour) for colour in figures.PALETTE)


def test_many_classes_are_drawn_without_a_legend(tmp_path, drawn):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 6)), np.arange(90) % 30
    assert figures.embed(x).shape == (90, 2)
    printed(figures.feature_space({"noise": x}, y, tmp_path / "space"))
    assert not drawn[0].legends


CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
LONG = [f"n0{i}: a class name that fills a line and costs $1 and $2" for i in range(10)]


@pytest.mark.parametrize("names", [CIFAR, LONG, ["_hidden", *CIFAR[1:]], list("abcdefghij")])
def test_a_legend_stays_in_the_column_and_cut_names_say_so(tmp_path, drawn, names):
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 10
    figures.feature_space({"x": x, "y": x}, y, tmp_path / "space", names)
    (legend,) = drawn[0].legends
    box, page = legend.get_window_extent(), drawn[0].bbox
    assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0
    assert all(box.y1 <= ax.get_window_extent().y0 for ax in drawn[0].axes)
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == names or all(
        text.endswith("…") and name.startswith(text[:-1]) for text, name in zip(texts, names)
    )


def test_images_without_label_are_grey(tmp_path, drawn):
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.full(40, -1)
    pixels = printed(figures.feature_space({"x": x}, y, tmp_path / "none"))
    assert has_colour(pixels, figures.UNLABELLED) and not drawn[0].legends
    assert not any(has_colour(pixels, colour) for colour in figures.PALETTE[:3])
    pixels = printed(figures.feature_space({"x": x}, y + np.arange(40) % 2, tmp_path / "s", ["a"]))
    assert has_colour(pixels, figures.UNLABELLED) and has_colour(pixels, figures.PALETTE[0])


def test_without_matplotlib_the_extra_is_named(tmp_path):
    """As it is where the extra was left out: what draws is imported anew in a fork without it."""
    err = tmp_path / "err.txt"

    def work():
        for name in [*sys.modules, "matplotlib"]:
            if name.partition(".")[0] == "matplotlib":
                sys.modules[name] = None  # not to be found
            elif name.startswith(("ressl_plugin.evaluate", "ressl_plugin.utils.plot_style")):
                del sys.modules[name]
        anew = importlib.import_module("ressl_plugin.evaluate.figures")
        assert anew is not figures
        with err.open("w") as file, contextlib.redirect_stderr(file):
            return guarded(lambda: anew.feature_space({"x": [[1.0]]}, [0], tmp_path / "f"))

    assert on_ranks(1, work, tmp_path / "ranks") == [2]
    last = err.read_text().splitlines()[-1]
    assert "drawing needs matplotlib" in last and "ressl_plugin[figures]" in last


def test_feature_space_needs_images(tmp_path):
    with pytest.raises(UserError, match="3 images"):
        figures.embed(np.ones((3, 3)))


def test_no_global_state_is_touched(metrics):
    import matplotlib

    before = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    figures.curves(metrics, metrics / "c")
    assert before == (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False))


@pytest.mark.parametrize("value", [0, 1])
def test_features_that_are_all_alike_are_no_picture(value):
    """scikit-learn's t-SNE ends in a segmentation fault on them."""
    with pytest.raises(UserError, match="all features are alike"):
        figures.embed(np.full((60, 16), float(value)))
