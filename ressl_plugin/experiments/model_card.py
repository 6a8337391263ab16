"""`ressl export`: a run as a model to pass on, with a card made from what the run recorded."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from ressl_plugin import __version__
from ressl_plugin.config.diff import chosen
from ressl_plugin.data import identity
from ressl_plugin.evaluate.subject import method_name
from ressl_plugin.experiments import grouping
from ressl_plugin.run import checkpoint, results
from ressl_plugin.run.directories import Run, open_run
from ressl_plugin.run.exporting import Model, export
from ressl_plugin.utils.render import number, render

CARD = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [timm, image-feature-extraction, self-supervised, {method}]
{licence_line}---
# {name} by {title}{on}

An encoder: images in, {features} features out, no classifier. Trained by {title} on {trained_on},
{epochs}, with ressl_plugin {plugin}.

## Load

In this folder (with `hf-hub:USER/NAME` in place of `local-dir:.` from a hub):

```python
import timm
{modeling}
model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform(image)[None])  # (1, {features}), image: PIL, RGB
```
{torchvision}
## Results

{results}
## Recipe

What differs from the plugin's defaults:

```yaml
{recipe}```

## Versions

{versions}

## Licence

{licence}
{citation}"""
TORCHVISION = """
torchvision's {base} has the same names:

```python
from safetensors.torch import load_file
from torch import nn
from torchvision.models import {base}

model = {base}({arguments})
model.fc = nn.Identity()
{stem}model.load_state_dict(load_file("model.safetensors"))
```
"""
STEM = """\
model.conv1 = nn.Conv2d(3, {width}, 3, 1, {padding}, bias=False)
model.maxpool = nn.Identity()
"""
CITATION = """
## Citation

M. Zheng et al., "ReSSL: Relational Self-Supervised Learning with Weak Augmentation", NeurIPS 2021,
[arXiv 2107.09282](https://arxiv.org/abs/2107.09282).
"""
NO_RESULTS = "None yet.\n"
NO_LICENCE = (
    "None was named for these weights, nor for the images behind them. The training code is under "
    "MIT, timm under Apache-2.0."
)


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
    title = method_name(run.cfg)
    return CARD.format(
        name=model.name,
        title=title,
        method=run.cfg.method,
        on="" if run.cfg.data.dataset in ("custom", "npz") else f" on {run.cfg.data.dataset}",
        trained_on=f"{seen['images']:,} images" if seen else "images that are not recorded",
        epochs=_epochs(run),
        plugin=__version__,
        features=model.config["num_features"],
        modeling="" if model.padding is None else "import modeling  # of this folder\n",
        torchvision=_torchvision(model),
        results=_results(run),
        recipe=OmegaConf.to_yaml(OmegaConf.create(chosen(run.cfg))),
        versions=", ".join(f"{name} {number}" for name, number in results.versions().items()),
        licence_line=f"license: {licence}\n" if licence else "",
        licence=f"{licence}." if licence else NO_LICENCE,
        citation=CITATION if run.cfg.method == "ressl" else "",
    )


def _epochs(run: Run) -> str:
    if run.epochs is None:
        return "for an unknown time"
    if run.file.name == checkpoint.BEST:  # not a training of so few epochs: the rates fell later
        cfg = run.cfg
        return f"{run.epochs} of {cfg.max_epochs} epochs, the best by {cfg.checkpoint.best}"
    return f"{run.epochs} epochs"


def _torchvision(model: Model) -> str:
    if not model.torchvisions:
        return ""
    stem = ""
    if model.padding is not None:
        stem = STEM.format(width=model.network.conv1.out_channels, padding=model.padding)
    given = model.cfg.backbone.get("kwargs") or {}
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return TORCHVISION.format(base=model.base, arguments=arguments, stem=stem)


def _results(run: Run) -> str:
    """The table of these weights' evaluations, as `ressl table` chooses them."""
    lines = []
    if not results.read(run.dir):
        return NO_RESULTS
    (group,) = grouping.groups([run.dir])
    for records in grouping.evaluations(group):
        record, (value, spread) = records[0], grouping.summary(records)
        if record.get("epochs") not in (None, run.epochs):  # of another checkpoint; None: of no one
            continue
        images = ((record.get("data_sets") or {}).get("val") or {}).get("images", "")
        of = record.get("representation") or method_name(run.cfg)
        evaluation = f"{record['evaluator']}: {record['protocol']}"
        lines.append([evaluation, of, images, record["metric"], number(value, spread)])
    head = ["evaluation", "of", "test images", "metric", "%"]
    return render(head, lines) if lines else NO_RESULTS
