"""Fine-tuning on a share of the labels."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from ressl_plugin.evaluate.finetune import finetune, labelled_rows, labels_named, protocol
from ressl_plugin.utils.errors import RunFault, UserError


class Images(TensorDataset):
    def __init__(self, x, y, samples=None):
        super().__init__(x, y)
        self.targets = y.tolist()
        if samples:
            self.samples = samples


def digits():
    data = load_digits()
    x = torch.tensor(data.data / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(data.target)
    names = [(f"train/{t}/img_{i}.JPEG", int(t)) for i, t in enumerate(y[:1000])]
    return Images(x[:1000], y[:1000], names), Images(x[1000:1300], y[1000:1300])


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.AvgPool2d(2)
    )


def test_it_learns_repeats_and_leaves_the_backbone_alone():
    train, val = digits()
    backbone = network().eval()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    settings = {"epochs": 10, "lr_backbone": 0.2, "lr_head": 2.0, "batch_size": 64}
    first, again = (finetune(backbone, train, val, 0.1, **settings) for _ in range(2))
    assert first == again and 99 <= first["n"] <= 101
    assert first["top1"] > 70 and first["top5"] > first["top1"]
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    more = finetune(backbone, train, val, 1.0, **settings)
    assert more["n"] == 1000 and more["top1"] > first["top1"]


def test_each_part_has_its_own_learning_rate():
    """With the backbone's at zero only the head (and the running statistics) can learn."""
    train, val = digits()
    seen = []

    class Watched(torch.nn.Conv2d):
        def forward(self, x):
            seen.append(self.weight.detach().clone())
            return super().forward(x)

    torch.manual_seed(0)
    backbone = torch.nn.Sequential(Watched(1, 4, 3), torch.nn.Flatten())
    finetune(backbone, train, val, 0.05, epochs=2, lr_backbone=0.0, lr_head=0.5)
    assert all(torch.equal(w, seen[0]) for w in seen)
    seen.clear()
    finetune(backbone, train, val, 0.05, epochs=2, lr_backbone=0.1, lr_head=0.5)
    assert not torch.equal(seen[0], seen[-1])


def test_the_draw_is_stratified_and_seeded():
    train, _ = digits()
    rows = labelled_rows(train, 0.1, seed=3)
    counts = np.bincount(np.array(train.targets)[rows], minlength=10)
    assert (np.abs(counts - np.bincount(train.targets) * 0.1) <= 0.5).all()
    assert (rows == labelled_rows(train, 0.1, seed=3)).all()
    assert len(set(rows) & set(labelled_rows(train, 0.1, seed=4))) < len(rows)
    assert len(labelled_rows(train, 0.0001)) == 10  # at least one image a class


def test_a_list_of_names(tmp_path):
    train, _ = digits()
    path = tmp_path / "1percent.txt"
    path.write_text("img_7.JPEG\nimg_3.JPEG\n\n")
    assert labelled_rows(train, path).tolist() == [3, 7]
    path.write_text("img_7.JPEG\nimg_9999.JPEG\n")
    with pytest.raises(UserError, match=r"img_9999\.JPEG is not in"):
        labelled_rows(train, path)
    path.write_text("\n")
    with pytest.raises(UserError, match="empty"):
        labelled_rows(train, path)
    with pytest.raises(UserError, match="image folder"):
        labelled_rows(digits()[1], path)


def test_names_that_several_classes_have(tmp_path):
    train, _ = digits()
    train.samples = [(f"/data/class{i % 2}/{i // 2}.png", i % 2) for i in range(len(train))]
    path = tmp_path / "list.txt"
    path.write_text("class1/0.png\nclass0/3.png\n")
    assert labelled_rows(train, path).tolist() == [1, 6]
    path.write_text("0.png\n")
    with pytest.raises(UserError, match=r"0\.png is the name of several"):
        labelled_rows(train, path)


def test_labels_from_the_command_line(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("x\n")
    assert labels_named("0.01") == 0.01 and labels_named(str(path)) == path
    for word in ("0", "1.5", "nan", str(tmp_path / "absent.txt")):
        with pytest.raises(UserError, match="labels"):
            labels_named(word)


def test_mistakes_are_named():
    train, val = digits()
    with pytest.raises(RunFault, match=r"loss is .* at learning rates .*--lr-backbone"):
        finetune(network(), train, val, 0.1, 3, lr_backbone=1e38, lr_head=1e38)
    train.targets = [-1] * len(train.targets)
    with pytest.raises(UserError, match="no labels"):
        finetune(network(), train, val)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ((0.01,), "labels 0.01"),
        (("/of/this/machine/list.txt", 20), "labels list.txt"),
        ((0.1, 1), "labels 0.1, 1 epochs"),
        ((0.1, 20, 0.0, 5.0), "labels 0.1, lr-backbone 0, lr-head 5"),
    ],
)
def test_what_is_not_as_usual_is_in_the_name_of_the_number(settings, name):
    """Or it would take the place of the usual number in the paper's table."""
    assert protocol(*settings) == name
