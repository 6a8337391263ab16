"""Figures on real digits: files, size in print, what they show; errors."""

import math

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ressl_plugin import figures
from ressl_plugin.errors import UserError
from ressl_plugin.metrics import read_metrics

METRICS = """\
epoch,step,train_ressl_loss_epoch,train_ressl_loss_step,target_entropy,val_acc1,val_knn_acc1
0,0,,5.0,,,
0,1,,4.0,,,
0,1,4.6,,0.9,,
0,1,,,,40,50
1,3,3.5,,0.7,,
1,3,,,,60,70
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
    assert has_colour(pixels, figures.PALETTE[0]) and has_colour(pixels, figures.PALETTE[1])


def test_curves_leave_out_what_was_not_measured(metrics):
    (metrics / "metrics.csv").write_text("epoch,step,train_ressl_loss\n0,1,3.0\n1,2,2.0\n")
    full = math.ceil(3 * 0.95 * 300)
    assert len(printed(figures.curves(metrics, metrics / "c"))) < full / 2


@pytest.mark.parametrize(
    "text,message",
    [
        ("epoch,step,loss\n", "no measurements"),
        ("a,b\n1,2\n", "no column 'epoch'"),
        ("epoch,step,loss\n0,1,x\n", "column loss holds 'x'"),
        ("epoch,step,lr\n0,1,2\n", "no loss and no accuracy among lr"),
    ],
)
def test_curves_name_what_is_wrong_with_the_file(tmp_path, text, message):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        figures.curves(tmp_path, tmp_path / "c")


def test_no_metrics_file(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.csv"):
        figures.curves(tmp_path, tmp_path / "c")


def test_feature_space(tmp_path):
    data = load_digits()
    x, y = data.data[:150], data.target[:150]
    spaces = {"raw pixels": x, "first half": x[:, :32]}
    pixels = printed(figures.feature_space(spaces, y, tmp_path / "space"))
    assert all(has_colour(pixels, colour) for colour in figures.PALETTE)


def test_many_images_are_projected_by_pca_and_many_classes_drawn(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 6)), np.arange(300) % 30
    points, how = figures.embed(x, limit=100)
    assert how == "PCA" and points.shape == (300, 2)
    printed(figures.feature_space({"noise": x}, y, tmp_path / "space", limit=100))


def test_feature_space_needs_labels_and_images(tmp_path):
    with pytest.raises(UserError, match="no labels"):
        figures.feature_space({"x": np.ones((9, 3))}, -np.ones(9, int), tmp_path / "s")
    with pytest.raises(UserError, match="3 images"):
        figures.embed(np.ones((3, 3)))


def test_no_global_state_is_touched(metrics):
    import matplotlib

    before = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    figures.curves(metrics, metrics / "c")
    assert before == (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False))
