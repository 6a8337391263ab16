"""`ressl compare`, representations side by side: the same labels, classifier and kNN."""

from __future__ import annotations

import numpy as np

from ressl_plugin.evaluate import knn
from ressl_plugin.evaluate.classifier import check_labels
from ressl_plugin.evaluate.sampling import stratified_draw, summary, there_are
from ressl_plugin.evaluate.subject import (
    Splits,
    data_sets_of,
    device_named,
    method_name,
    protocol_of,
    weights_of,
    with_overrides,
)
from ressl_plugin.run import results
from ressl_plugin.run.checkpoint import BEST
from ressl_plugin.utils import files
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
        protocol = protocol_of(run, record["protocol"])
        results.append(run.dir, {**record, "protocol": protocol, **more})
    said = ", ".join([*(["best.ckpt"] if run.file.name == BEST else []), *run.overrides])
    text = f"{said}:\n\n{table}\n" if said else f"{table}\n"
    files.replace(run.dir / "comparison.md", text.encode())


def compare(
    representations: dict[str, tuple],
    data: str,
    per_class: tuple = (1, 5, "all"),
    draws: int = 10,
) -> list[dict]:
    """Result records of each representation: few-label linear accuracy and kNN.

    Args:
        representations: name -> (features_train (N, d), y_train, features_test (M, d), y_test) of
            the same images in the same order.
        data: the data set's name, for the records.
    """
    per_class = there_are(per_class, next(iter(representations.values()))[1].tolist())
    records = []
    for name, parts in representations.items():
        common = {"data": data, "metric": "top1", "representation": name}
        for count in per_class:
            found = few_labels(*parts, count, draws)
            mean, values = found.pop("mean"), found.pop("values")
            protocol = f"linear, {count} a class" if count != "all" else "linear, all"
            record = {"evaluator": "few-labels", "protocol": protocol, "value": mean}
            records.append({**common, **record, **found, "details": {"values": values}})
        # only the default cell is reported: the best of a sweep is chosen on the test images
        cell = knn.default_cell(*parts)
        protocol = f"kNN, k={cell['k']} T={cell['temperature']}"
        record = {"evaluator": "knn", "protocol": protocol, "value": cell["top1"]}
        records.append({**common, **record, "n": len(parts[0])})
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
        per_class: labelled images drawn from each class, or "all" (one fit).
        draws: draw i uses `seed + i`: representations that are compared see the same images.

    Returns:
        `sampling.summary` of the accuracies in %, and "n", the labelled images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    check_labels(features_train, y_train, features_test, y_test)
    x_train, x_test = (normalize(np.asarray(x, float)) for x in (features_train, features_test))
    y_train, y_test = np.asarray(y_train), np.asarray(y_test)
    rows = np.arange(len(y_train))
    seeds = [seed] if per_class == "all" else [seed + i for i in range(draws)]
    values = []
    for one in seeds:
        if per_class != "all":
            rows = stratified_draw(y_train, per_class, one)
        model = LogisticRegression(C=100.0, max_iter=2000).fit(x_train[rows], y_train[rows])
        values.append(100.0 * float(model.score(x_test, y_test)))
    return {**summary(values, seeds), "n": len(rows)}


def comparison_table(records: list[dict]) -> str:
    """Representations (rows) by protocol (columns): mean ± spread of the records of `compare`."""
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        row = rows.setdefault(record["representation"], {})
        row[record["protocol"]] = number(record["value"], record.get("spread"))
    protocols = next(iter(rows.values()))
    return render(["representation", *protocols], [[name, *rows[name].values()] for name in rows])
