"""Nearest neighbours (Fig. 2): the right ones, the wrong ones framed."""

import numpy as np
import pytest
import torch
from PIL import Image

from ressl_plugin import data
from ressl_plugin.config import finish, load
from ressl_plugin.evaluate import neighbours as module
from ressl_plugin.evaluate.neighbours import WRONG, neighbours, neighbours_of_run, without
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.knn import nearest
from ressl_plugin.utils.plot_style import COLUMN


def red(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    colour = [int(WRONG[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels - colour).max(-1) <= 8).sum()


def draw(tmp_path, wrong):
    """Two queries of class 0 and 1, three neighbours each, `wrong` of the first's of class 1."""
    grey = np.full((8, 8, 8, 3), 128, dtype=np.uint8)
    targets = [0, 0, 0, 0, 1, 1, 1, 1]
    first = [4 + i for i in range(wrong)] + [i for i in range(3 - wrong)]
    indices = np.array([first, [4, 5, 6]])
    queries = np.full((2, 8, 8, 3), 0.5)
    path = tmp_path / f"wrong{wrong}"
    png, pdf = neighbours({"weak": (queries, indices)}, grey, targets, [0, 1], path)
    assert pdf.is_file() and Image.open(png).width == pytest.approx(COLUMN * 300, abs=1)
    return red(png)


def test_red_frames_are_as_many_as_wrong_neighbours(tmp_path):
    none, one, three = (draw(tmp_path, wrong) for wrong in (0, 1, 3))
    assert none == 0 and one > 100
    assert three == pytest.approx(3 * one, rel=0.1)


def test_a_run_shows_its_weak_and_contrastive_views(tmp_path):
    data.make_digits(tmp_path / "digits")
    folders = [f"data.{s}_path={tmp_path}/digits/{s}" for s in ("train", "val")]

    class Run:
        cfg = finish(load("digits/ressl", folders))

        def backbone(self):
            return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten())

    paths = neighbours_of_run(Run(), tmp_path / "n", queries=3, k=4)
    again = neighbours_of_run(Run(), tmp_path / "m", queries=3, k=4)
    assert [p.suffix for p in paths] == [".png", ".pdf"]
    assert paths[0].read_bytes() == again[0].read_bytes()  # seeded
    other = neighbours_of_run(Run(), tmp_path / "o", queries=3, k=4, seed=1)
    assert paths[0].read_bytes() != other[0].read_bytes()


@pytest.mark.parametrize(
    ("presets", "titles"),
    [(["contrastive", "weak"], ["weak view", "contrastive view"]),
     (["contrastive"] * 2, ["view"]), (["weak"] * 2, ["view"])],
)  # fmt: skip
def test_a_panel_is_called_what_its_view_is(tmp_path, monkeypatch, presets, titles):
    """Of SimCLR both are contrastive, of the supervised reference both are weak."""
    data.make_digits(tmp_path / "digits")
    folders = [f"data.{split}_path={tmp_path}/digits/{split}" for split in ("train", "val")]
    views = [{"preset": name, "crop_size": 16, "role": None} for name in presets]

    class Run:
        cfg = finish(load("digits/ressl", folders))

        def backbone(self):
            return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten())

    Run.cfg.augmentations = views
    drawn = []
    monkeypatch.setattr(module, "neighbours", lambda panels, *_: drawn.extend(panels))
    neighbours_of_run(Run(), tmp_path / "n", queries=3, k=4)
    assert drawn == titles


def test_queries_may_be_training_images_alone(tmp_path):
    """As in the paper's Figure 2."""
    data.make_digits(tmp_path / "digits")
    folders = [f"data.train_path={tmp_path}/digits/train", f"data.val_path={tmp_path}/nowhere"]

    class Run:
        cfg = finish(load("digits/ressl", folders))

        def backbone(self):
            return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten())

    assert neighbours_of_run(Run(), tmp_path / "n", queries=3, k=4, split="train")
    with pytest.raises(UserError, match="nowhere"):
        neighbours_of_run(Run(), tmp_path / "n", queries=3, k=4)


@pytest.mark.parametrize("rows", [[0], [3, 1]])
def test_a_query_out_of_the_bank_is_not_its_own_neighbour(rows):
    bank = torch.eye(5)
    _, found = nearest(bank, torch.arange(5), bank[rows], 4)
    near = np.stack([without(some, row) for some, row in zip(found.numpy(), rows)])
    assert near.shape == (len(rows), 3) and not any(r in found for r, found in zip(rows, near))
    assert without(np.array([2, 1, 0]), row=4).tolist() == [2, 1]


def test_a_white_picture_has_an_edge(tmp_path):
    white = np.full((3, 8, 8, 3), 255, dtype=np.uint8)
    panel = {"weak": (white[:1], np.array([[0, 1, 2]]))}
    png, _ = neighbours(panel, white, [0, 0, 0], [0], tmp_path / "n")
    grey = np.asarray(Image.open(png).convert("L"))
    row = grey[len(grey) // 2] < 250
    assert np.count_nonzero(row[1:] & ~row[:-1]) >= 8  # two edges of four pictures


def test_without_labels_nothing_is_wrong(tmp_path):
    picture = np.zeros((2, 4, 4, 3))
    panel = {"weak": (picture, np.array([[0], [1]]))}
    png, _ = neighbours(panel, picture, [-1, -1], [-1, 1], tmp_path / "n")
    assert red(png) == 0
