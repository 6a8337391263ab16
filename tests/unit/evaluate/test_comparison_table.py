"""The table of representations side by side."""

import pytest
import torch
from sklearn.datasets import load_digits

from ressl_plugin.evaluate.compare import compare, comparison_table
from ressl_plugin.run import results


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


def test_more_labels_than_a_class_has_are_left_out(caplog):
    y = torch.arange(2).repeat(4)[:7]  # of class 1 there are three
    x = torch.eye(7)
    found = compare({"rows": (x, y, x, y)}, "digits", draws=2)
    assert [r["protocol"] for r in found[:-1]] == ["linear, 1 a class", "linear, all"]
    assert "left out: 5 labels a class; the smallest class has 3" in caplog.text


def test_comparison_table(compared):
    header, _, pixels, half = comparison_table(compared).splitlines()
    assert len(header) == len(pixels) == len(half)
    names = ["representation", "linear, 1 a class", "linear, 5 a class", "linear, all",
             "kNN, k=20 T=0.07"]  # fmt: skip
    assert [cell.strip() for cell in header.strip("|").split("|")] == names
    assert "raw pixels" in pixels and "top half" in half
    first, _, everything, _ = compared[:4]
    assert f"| {first['value']:.2f} ± {first['spread']:.2f} " in pixels
    assert f"| {everything['value']:.2f} " in pixels
