"""`ressl report`: what stands on the page, what does not, and the page in a real browser."""

import base64
import getpass
import io
import re
import socket

import pytest
from browser import CHROMIUM, Browser
from commands import command
from helpers import image_folder
from PIL import Image

from ressl_plugin.cli.main import main
from ressl_plugin.experiments.report import nameless, placeless
from ressl_plugin.run import results

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two experiments, both evaluated, the first without labels, too; a name that is markup."""
    folder = tmp_path_factory.mktemp("secretplace")
    images = image_folder(folder / "images", classes=2, per_class=12)
    small = ["data.num_workers=0", "precision=32-true", f"data.val_path={images}/val"]
    for name, more in (("first", []), ("second", ["method_kwargs.queue_size=30"])):
        words = command(images, folder / name, *small, *more, "knn_eval.k=2")
        assert main(words) == 0
        assert main(["knn", str(folder / name), "--k", "20", "--temperature", "0.07"]) == 0
    quality = ["--images", "8", "--views", "2", "--device", "cpu"]
    assert main(["quality", str(folder / "first"), *quality]) == 0
    (folder / "second").rename(folder / "second<i>")
    return folder


@pytest.fixture(scope="module")
def page(folder):
    out = folder / "pages" / "report.html"
    runs = [str(folder / name) for name in ("first", "second<i>")]
    assert main(["report", *runs, "--out", str(out), "--device", "cpu"]) == 0
    return out


def pictures(text):
    found = re.findall(r'src="data:image/webp;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_what_stands_on_the_page(folder, page):
    text = page.read_text()
    assert page.stat().st_size < 3e6
    assert len(pictures(text)) == 8 and all(p.width > 200 for p in pictures(text))
    for word in ("first", "second", "ReSSL", "24 images of 2 classes", "rankme", "lidar",
                 "kNN", "data.train_path", "ressl pretrain config.yaml", "2 of 2"):  # fmt: skip
        assert word.lower() in text.lower(), word
    value = next(r["value"] for r in results.read(folder / "first") if r["metric"] == "top1")
    assert f"{value:.2f}" in text and ">paper<" not in text  # no number has a place
    assert "Comparison" in text
    assert "second&lt;i&gt;" in text and "second<i>" not in text, "a folder's name is no markup"


def test_nothing_of_the_machine_and_nothing_from_elsewhere(folder, page):
    text = page.read_text()
    plain = re.sub(r'src="data:[^"]+"', "", text)
    for word in (str(folder), str(folder.parent), "secret", socket.gethostname(), "/home", "/tmp"):
        assert word not in plain, word
    if getpass.getuser() not in ("root", "run", "user"):  # words of the page
        assert getpass.getuser() not in plain
    assert set(re.findall(r"https?://[^\s\"<]+", plain)) == {"https://arxiv.org/abs/2107.09282"}


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("data.train_path=/home/ann/digits/train", "data.train_path=…/train"),
        ("data.train_path=/home/ann/lr=0.1/train", "data.train_path=…/train"),
        ("/home/ann/runs/x/resnet18-1abc-ep=99.ckpt", "…/resnet18-1abc-ep=99.ckpt"),
        ("+data.root=~/lr=0.1/train", "+data.root=…/train"),
        ("~/digits", "…/digits"),
        ("../../ann/digits", "…/digits"),
        ('data.train_path="/home/ann/my data/train"', "data.train_path=…/train"),
        ("data.paths=[/home/ann/a]", "data.paths=…/a"),
        ("runs/mine", "runs/mine"),
        ("--temperature", "--temperature"),
    ],
)
def test_places(word, shown):
    assert nameless(word) == shown
    elsewhere = {"run_dir": "/x", "wandb": {}, "resume_force": True, "data": {"train_path": "x"}}
    assert placeless({"a": [word], **elsewhere}) == {"a": [shown], "data": {}}


def test_what_cannot_be_drawn_is_said(folder, capsys, caplog):
    out = folder / "gone.html"
    words = ["report", str(folder / "second<i>"), "--out", str(out), "--device", "cpu"]
    assert main([*words, "data.train_path=/nowhere/at/all"]) == 0
    text = out.read_text()
    assert len(pictures(text)) == 1 and text.count("Not drawn") == 3  # the curves need no images
    assert "/nowhere/at/all" in caplog.text and "nowhere" not in text
    assert "second&lt;i&gt;" in text and "second<i>" not in text and "Comparison" not in text
    assert main([*words, "data.val_pth=/x"]) == 2, "a mistake is no picture's"
    assert "data.val_pth" in capsys.readouterr().err
    assert main(["report", str(folder / "first"), "--out", str(folder / "report.pdf")]) == 2
    assert ".html" in capsys.readouterr().err


def test_the_papers_number_stands_beside_ours(folder):
    from ressl_plugin.experiments import report
    from ressl_plugin.experiments.grouping import groups

    record = next(r for r in results.read(folder / "first") if r["metric"] == "top1")
    results.put_in_place(folder / "first", record, 2, *place_in_table_2())
    found = report.numbers(groups([folder / "first"])[0])
    assert found["columns"][-3:] == ["ours", "paper", "diff."]
    assert any("(Table 2)" in row[-2] for row in found["rows"])


def place_in_table_2():
    from ressl_plugin.experiments.paper_numbers import tables

    row, values = next(iter(tables()[2].values.items()))
    return row, next(iter(values))


@pytest.fixture
def browser(tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


COLUMN = """[...document.querySelectorAll("table.comparison tbody tr")].map(
    row => row.cells[COLUMN].textContent)"""


def column(browser, index):
    return browser.evaluate(COLUMN.replace("COLUMN", str(index)))


def test_in_a_browser(page, browser):
    browser.appear(390, dark=True)
    browser.open(page)
    shown = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"
    assert browser.evaluate(shown) == [True] * 8
    width = browser.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "the page is wider than a phone"

    click = 'document.querySelectorAll("table.comparison th button")[{}].click()'
    heads = browser.evaluate(
        '[...document.querySelectorAll("table.comparison th")].map(head => head.textContent)'
    )
    assert column(browser, 0) == ["first", "second<i>"]
    browser.evaluate(click.format(0))
    assert column(browser, 0) == ["first", "second<i>"]
    browser.evaluate(click.format(0))
    assert column(browser, 0) == ["second<i>", "first"]
    rankme = next(i for i, head in enumerate(heads) if head.startswith("rankme"))
    for _ in range(2):  # what was not measured stays last, either way
        browser.evaluate(click.format(rankme))
        assert column(browser, 0) == ["first", "second<i>"]

    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    requests = [told["request"]["url"] for told in browser.told("Network.requestWillBeSent")]
    assert requests[0] == page.resolve().as_uri()
    assert all(url.startswith("data:image/webp") for url in requests[1:])
    for kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
        assert browser.told(kind) == []
