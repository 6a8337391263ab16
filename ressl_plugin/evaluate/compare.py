"""`ressl compare`, representations side by side: the same labels, classifier and kNN."""

from __future__ import annotations

import numpy as np

from ressl_plugin.evaluate import knn
from ressl_plugin.evaluate.classifier import check_labels
from ressl_plugin.evaluate.sampling import stratified_draw
from ressl_plugin.evaluate.subject import (
    Splits,
    data_sets_of,
    device_named,
    method_name,
    weights_of,
    with_overrides,
)
from ressl_plugin.run import results
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.render import number, render

COMMAND = {
    "name": "compare",
    "help": "the run's features beside the untrained backbone's and raw pixels",
    "arguments": {"--draws": {"type": "int", "help": "draws of the labelled images"}},
}


def evaluate(path, overrides, draws=10, device="auto") -> None:
    """A run's features, the untrained backbone's and raw pixels at 1, 5 and all labels, and kNN.

    Printed, added to the run's records, and written to its comparison.md.

    Example:
        >>> evaluate("runs/mine", [], draws=5)  # doctest: +SKIP
    """
    if draws < 2:
        raise UserError(f"--draws {draws}: at least 2, or there is no spread to state")
    run = with_overrides(path, overrides)
    splits = Splits(run, device_named(device))
    pixels = splits.pixels()
    representations = {
        method_name(run.cfg): splits.of(run.backbone()),
        "untrained backbone": splits.of(run.backbone(trained=False)),
        **({} if pixels is None else {"raw pixels": pixels}),
    }
    records = compare(representations, run.cfg.data.dataset, draws=draws)
    table = comparison_table(records)
    print(table, flush=True)  # before it is written: a full disk must not cost the numbers
    for record in records:
        trained = record["representation"] == method_name(run.cfg)
        more = {"data_sets": data_sets_of(run), **(weights_of(run) if trained else {})}
        results.append(run.dir, {**record, **more})
    (run.dir / "comparison.md").write_text(table + "\n")


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
            found = few_labels(x_train, y_train, x_test, y_test, count, draws, seed)
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


def few_labels(
    features_train,
    y_train,
    features_test,
    y_test,
    per_class: int | str,
    draws: int = 10,
    seed: int = 0,
) -> dict:
    """Accuracy of a linear classifier trained on a few labelled images a class.

    The classifier is one for every representation: scikit-learn's L2-regularised LogisticRegression
    (C=100) on rows scaled to unit length. It has no learning rate to favour a feature's scale, and
    needs no statistics of other images. On the digits, C=100 is within 1 point of the best of
    0.1 ... 1000 for raw pixels and for an untrained ResNet-18, at 1, 5 and all labels.

    Args:
        features_train: (N, d) tensor or array, y_train: (N,), features_test: (M, d), y_test: (M,).
        per_class: labelled images drawn from each class, or "all" (one fit, spread None).
        draws: how many independent draws; draw i uses `seed + i`, so that representations that
            are compared see the same labelled images.

    Returns:
        {"mean", "spread" (standard deviation over draws, ddof 1), "values" (%), "seeds", "n"}.

    Raises:
        UserError: a class has fewer images than per_class.
    """
    from sklearn.linear_model import LogisticRegression

    check_labels(features_train, y_train, features_test, y_test)
    x_train, x_test = _unit_rows(features_train), _unit_rows(features_test)
    y_train, y_test = np.asarray(y_train), np.asarray(y_test)
    seeds = [seed] if per_class == "all" else [seed + i for i in range(draws)]
    values = []
    for one in seeds:
        rows = stratified_draw(y_train, per_class, one)
        model = LogisticRegression(C=100.0, max_iter=2000).fit(x_train[rows], y_train[rows])
        values.append(100.0 * float(model.score(x_test, y_test)))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {
        "mean": float(np.mean(values)),
        "spread": spread,
        "values": values,
        "seeds": seeds,
        "n": len(rows),
    }


def _unit_rows(features):
    x = np.asarray(features, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


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
