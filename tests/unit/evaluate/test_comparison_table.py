"""The table of representations side by side."""

import csv
import io

import pytest
import torch
from sklearn.datasets import load_digits

from ressl_plugin.evaluate.compare import compare, comparison_table
from ressl_plugin.run import results
from ressl_plugin.utils.errors import UserError


@pytest.fixture(scope="module")
def compared():
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    half = {"raw pixels": (x[:500], y[:500], x[500:700], y[500:700])}
    half["top half"] = (x[:500, :32], y[:500], x[500:700, :32], y[500:700])
    return compare(half, "digits", draws=10)


def test_compare_gives_records_that_results_takes(compared, tmp_path):
    assert len(compared) == 2 * 4
    for record in compared:
        results.append(tmp_path, record)
    read = results.read(tmp_path)
    assert [r["representation"] for r in read] == ["raw pixels"] * 4 + ["top half"] * 4
    one, five, everything, knn = read[:4]
    assert one["seeds"] == list(range(10)) and one["n"] == 10 and five["n"] == 50
    assert one["spread"] > 0 and everything["spread"] is None and everything["n"] == 500
    assert one["value"] < five["value"] < everything["value"]
    assert knn["evaluator"] == "knn" and knn["value"] > 80


def test_comparison_table(compared):
    text = comparison_table(compared, "csv")
    header, pixels, half = csv.reader(io.StringIO(text))
    assert header == ["representation", "linear, 1 a class", "linear, 5 a class", "linear, all",
                      "kNN, k=20 T=0.07"]  # fmt: skip
    assert pixels[0] == "raw pixels" and half[0] == "top half"
    first = compared[0]
    assert pixels[1] == f"{first['value']:.2f} ± {first['spread']:.2f}"
    assert pixels[3] == f"{compared[2]['value']:.2f}"
    latex = comparison_table(compared, "latex")
    assert r"$\pm$" in latex and r"\toprule" in latex and "%" not in latex
    markdown = comparison_table(compared)
    lines = markdown.splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1


def test_the_latest_record_counts(compared):
    newer = {**compared[0], "value": 1.0, "spread": None}
    assert "| 1.00 " in comparison_table([*compared, newer])


def test_mistakes_are_named(compared):
    with pytest.raises(UserError, match="'html' unknown; one of markdown, latex, csv"):
        comparison_table(compared, "html")
