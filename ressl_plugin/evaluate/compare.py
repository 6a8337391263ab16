"""Representations side by side: the same draws of labels, the same classifier, the same kNN."""

from __future__ import annotations

from ressl_plugin.evaluate import knn, linear
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.render import number, render


def compare(
    representations: dict[str, tuple],
    data: str,
    per_class: tuple = (1, 5, "all"),
    draws: int = 10,
    seed: int = 0,
) -> list[dict]:
    """Result records of each representation: few-label linear accuracy and kNN.

    Args:
        representations: name -> (features_train (N, d), y_train, features_test (M, d), y_test);
            for example ReSSL, untrained backbone, raw pixels. Same images in the same order.
        data: the data set's name, for the records.

    Returns:
        Records for `results.append`, each with `representation`; `comparison_table` sets
        them out.
    """
    records = []
    for name, (x_train, y_train, x_test, y_test) in representations.items():
        common = {"data": data, "metric": "top1", "representation": name}
        for count in per_class:
            found = linear.few_labels(x_train, y_train, x_test, y_test, count, draws, seed)
            records.append(
                {
                    **common,
                    "evaluator": "few-labels",
                    "protocol": f"linear, {count} a class" if count != "all" else "linear, all",
                    "value": found["mean"],
                    "spread": found["spread"],
                    "seeds": found["seeds"],
                    "n": found["n"],
                    "details": {"values": found["values"]},
                }
            )
        # only the default cell is reported: the best of a sweep is chosen on the test images
        cell = knn.default_cell(x_train, y_train, x_test, y_test)
        protocol = f"kNN, k={cell['k']} T={cell['temperature']}"
        records.append(
            {
                **common,
                "evaluator": "knn",
                "protocol": protocol,
                "value": cell["top1"],
                "n": len(x_train),
            }
        )
    return records


def comparison_table(records: list[dict], format: str = "markdown") -> str:
    """Representations (rows) by protocol (columns): mean ± spread of the latest record of each.

    Args:
        records: result records that have `representation`, as `compare` makes them.

    Raises:
        UserError: no such record.
    """
    records = [r for r in records if r.get("representation")]
    if not records:
        raise UserError(
            "no records to compare; evaluate the representations first (results.json has none)"
        )
    found = {(r["representation"], r["protocol"]): r for r in records}
    rows = list(dict.fromkeys(r["representation"] for r in records))
    columns = list(dict.fromkeys(r["protocol"] for r in records))

    def text(row, column):
        record = found.get((row, column))
        return number(record["value"], record.get("spread")) if record else ""

    body = [[row, *(text(row, column) for column in columns)] for row in rows]
    return render(["representation", *columns], body, format)
