"""`ressl export`: a run as a model to pass on, with a card made from what the run recorded."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from ressl_plugin.config.diff import chosen
from ressl_plugin.data import identity
from ressl_plugin.evaluate.subject import method_name
from ressl_plugin.experiments import grouping, tables, template
from ressl_plugin.run import checkpoint, results
from ressl_plugin.run.directories import Run, open_run
from ressl_plugin.run.exporting import Model, export
from ressl_plugin.utils.render import number, render


def export_run(path: str | Path, out: Path, licence: str | None = None, onnx: bool = False) -> Path:
    """A run's backbone, with its card, in the new folder `out` (see run/exporting.py).

    Args:
        licence: of the weights, by its SPDX name; None: the card says that none was named.
        onnx: as ONNX, too.

    Raises:
        UserError: no such run, a backbone that timm cannot build, a folder that holds something.
    """
    run = open_run(path)
    model = Model(run)
    return export(model, out, card(run, model, licence), onnx)


def card(run: Run, model: Model, licence: str | None) -> str:
    """README.md of an export: the data, the recipe, the results, and how it is loaded."""
    seen = identity.of_run(run.dir)
    given = model.cfg.backbone.get("kwargs") or {}
    return template("model_card.md").render(
        cfg=run.cfg,
        model=model,
        title=method_name(run.cfg),
        imported=run.imported,
        trained_on=f"{seen['images']:,} images" if seen else "images that are not recorded",
        epochs=_epochs(run),
        features=model.config["num_features"],
        arguments=", ".join(f"{key}={value!r}" for key, value in given.items()),
        results=_results(run),
        recipe=OmegaConf.to_yaml(OmegaConf.create(chosen(run.cfg))),
        versions=results.versions(),
        licence=licence,
    )


def _epochs(run: Run) -> str:
    if run.epochs is None:
        return "for an unknown time"
    if run.file.name == checkpoint.BEST:  # not a training of so few epochs: the rates fell later
        cfg = run.cfg
        return f"{run.epochs} of {cfg.max_epochs} epochs, the best by {cfg.checkpoint.best}"
    return f"{run.epochs} epochs"


def _results(run: Run) -> str:
    """The table of these weights' evaluations, as `ressl table` chooses them."""
    lines = []
    (group,) = grouping.groups([run.dir])
    for records in grouping.evaluations(group):
        record, (value, spread) = records[0], grouping.summary(records)
        if record.get("epochs") not in (None, run.epochs):  # of another checkpoint; None: of no one
            continue
        images = ((record.get("data_sets") or {}).get("val") or {}).get("images", "")
        of = record.get("representation") or method_name(run.cfg)
        evaluation = f"{record['evaluator']}: {record['protocol']}"
        on = tables.data_name(run.cfg, record["data"])
        lines.append([evaluation, of, on, images, record["metric"], number(value, spread)])
    head = ["evaluation", "of", "data", "test images", "metric", "%"]
    return render(head, lines) if lines else "None yet.\n"
