"""Each real directory is visited once, whatever links there are; the order is torchvision's."""

import os

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from ressl_plugin import data
from ressl_plugin.data.sources import FolderImages
from ressl_plugin.data.walk import by_extension, walk
from ressl_plugin.utils.errors import UserError


def names(dataset):
    return [os.path.relpath(path, dataset.root) for path, _ in dataset.samples]


PLAIN = [f"{label}/{i}.png" for label in "ab" for i in range(3)]


@pytest.mark.parametrize(
    "links",
    [
        {"a/loop": "."},
        {"a/loop": ".."},  # back to the root: both classes, again and again
        {"a/one": ".", "a/two": "."},  # two to the power of the longest path
        {"a/one": "..", "b/two": "..", "b/three": "../a"},
        {"a/other": "../b"},
        {"a/self": "self"},
        {"a/gone": "../nowhere"},
    ],
)
def test_links_never_multiply_images(make_folder, config, links):
    root = make_folder()
    for name, target in links.items():
        (root / name).symlink_to(target)
    for no_labels in (False, True):
        dataset = data.build_dataset(config("custom", root, no_labels=no_labels), "pretrain")
        assert names(dataset) == PLAIN


def test_class_folders_may_be_links(make_folder, config, tmp_path):
    root = make_folder()
    (tmp_path / "subset").mkdir()
    for label in "ab":
        (tmp_path / "subset" / label).symlink_to(root / label)
    assert names(data.build_dataset(config("custom", tmp_path / "subset"), "pretrain")) == PLAIN


def test_a_real_folder_counts_where_it_lies(make_folder, config):
    root = make_folder()
    (root / "b" / "deep").mkdir()
    Image.new("RGB", (4, 4)).save(root / "b" / "deep" / "x.png")
    (root / "a" / "link").symlink_to("../b/deep")
    dataset = data.build_dataset(config("custom", root), "pretrain")
    assert names(dataset) == [*PLAIN, "b/deep/x.png"]


def test_one_folder_under_two_classes_is_refused(make_folder, config):
    root = make_folder()
    (root / "c").symlink_to("a")
    with pytest.raises(UserError, match=r"another name of a folder that has been read: .*/c; "):
        data.build_dataset(config("custom", root), "pretrain")
    (root / "c").unlink()
    (root / "A").symlink_to("a")  # comes first, and is the link all the same
    with pytest.raises(UserError, match=r"another name of a folder that has been read: .*/A; "):
        data.build_dataset(config("custom", root), "pretrain")


def test_the_order_is_torchvisions(make_folder):
    root = make_folder()
    for name in (
        "a/z/1.png",
        "a/b c/2.png",
        "a/b/3.png",
        "a/b-c/4.png",
        "a/B/5.png",
        "a/b/q/6.png",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    expected = [path for path, _ in ImageFolder(root).samples]
    assert [path for path, _ in FolderImages(root).samples] == expected
    assert len(expected) == 12


def test_what_is_ignored_is_counted_by_extension(tmp_path):
    for name in ("1.avif", "2.AVIF", "3.txt", "README", "5.gif"):
        (tmp_path / name).touch()
    images, others = walk([tmp_path])
    assert by_extension(others) == "2 .avif, 1 .txt, 1 without"
    assert [os.path.basename(path) for path in images[str(tmp_path)]] == ["5.gif"]
