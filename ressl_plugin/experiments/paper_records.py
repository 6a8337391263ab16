"""What of a cell's evaluations is there, what is still to be done, and what place the numbers have.

A number counts if it is of the cell's weights, on the images that its config names now, and made as
the table's file says.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ressl_plugin import run
from ressl_plugin.evaluate import finetune, linear, logistic, lowshot, subject
from ressl_plugin.evaluate.voc import NAME as VOC
from ressl_plugin.run import results
from ressl_plugin.utils.errors import UserError


def evaluate(
    folder: Path, evaluator: str, settings: dict, fast=False, voc=None, device="auto", place=None
) -> None:
    """One evaluator on a trained cell, unless its results are there as they are wanted.

    `place`: labels -> `{table, row, column}` of the numbers, whoever made them and when, which is
    written into their records (`Cell.place`); None: they are in no table.
    """
    found = wanted(folder, evaluator, settings, fast)
    due = [what for what, record in found.items() if not record]
    if due:
        _make(folder, evaluator, settings, due, fast, voc, device)
        found = wanted(folder, evaluator, settings, fast)
    for what, record in found.items() if place else ():
        results.put_in_place(folder, record, **place(_labels(evaluator, what, record)))


def _make(folder: Path, evaluator: str, settings: dict, due: list, fast, voc, device) -> None:
    if evaluator == "linear":
        linear.evaluate(str(folder), [], None if fast else due[0], fast, device)
    elif evaluator == "lowshot":
        lowshot.evaluate(folder, [], voc, list(map(str, due)), settings["draws"], device)
    elif evaluator == "finetune":
        for labels in due:
            finetune.evaluate(folder, [], str(labels), settings["epochs"], device=device)


def _labels(evaluator: str, what, record: dict) -> str:
    """As a column names them: of a list of images, the share of the labels that it is."""
    if evaluator != "finetune":
        return str(what)
    share = finetune.labels_named(str(what))
    return f"{share:g}" if isinstance(share, float) else f"{round(record['details']['share'], 2):g}"


def wanted(folder: Path, evaluator: str, settings: dict, fast: bool) -> dict:
    """What an evaluator is to do on a trained cell -> the record of it, None where there is none.

    That is a protocol, counts of labels a class, or shares of the labels.
    """
    opened = run.open_run(folder)
    latest = _latest(opened, evaluator)
    if evaluator == "linear":
        protocol = logistic.NAME if fast else linear.default_protocol(opened.cfg)
        return {protocol: latest.get(protocol)}
    if evaluator == "lowshot":
        counts = [lowshot.count_named(str(count)) for count in settings["per_class"]]
        return {count: _drawn_as(latest, count, settings["draws"]) for count in counts}
    return {
        labels: _tuned_as(
            latest.get(finetune.protocol(labels, settings["epochs"])), labels, settings["epochs"]
        )
        for labels in settings["labels"]
    }


def _latest(opened: run.Run, evaluator: str) -> dict[str, dict]:
    """Protocol -> its last record, if it is of these weights and of these images.

    A run can be evaluated before it is finished, another checkpoint beside its own, and on images
    that are others by now. Records that do not say which weights they are of do not count.
    """
    here = ("lowshot", VOC, "mAP") if evaluator == "lowshot" else (
        evaluator, opened.cfg.data.dataset, "top1"
    )  # fmt: skip
    found = [
        record
        for record in results.read(opened.dir)
        if (record["evaluator"], record["data"], record["metric"]) == here
    ]
    about = subject.weights_of(opened) if found else {}
    if evaluator != "lowshot" and any("data_sets" in record for record in found):
        with suppress(UserError):  # a plan can be made where the images are not
            about["data_sets"] = subject.data_sets_of(opened)
    said = lambda record: {"data_sets": about.get("data_sets"), **record}  # not by earlier versions
    return {
        record["protocol"]: record
        for record in found
        if all(key in said(record) and said(record)[key] == about[key] for key in about)
    }


def _drawn_as(latest: dict[str, dict], count: int | str, draws: int) -> dict | None:
    record = latest.get(f"{lowshot.TITLES['pcl']}, {count} a class", {})
    draws = 1 if count == "full" else draws
    return record if len(record.get("seeds", ())) == draws else None


def _tuned_as(record: dict | None, labels, epochs: int) -> dict | None:
    """The fine-tuning if it was the table's, not one with other epochs, rates or list of images."""
    how = (record or {}).get("details") or {}
    rates = how.get("lr_backbone"), how.get("lr_head")
    listed = finetune.list_digest(labels)  # of earlier versions' records nobody knows
    same = how.get("epochs") == epochs and how.get("list", listed) == listed
    return record if same and rates in finetune.RATES else None
