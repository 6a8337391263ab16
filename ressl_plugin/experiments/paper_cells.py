"""Which cell of the paper's tables a run belongs to, told from its config and its records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ressl_plugin.evaluate.subject import method_name
from ressl_plugin.evaluate.voc import NAME as VOC
from ressl_plugin.experiments.paper_numbers import (
    EPOCHS,
    SMALL,
    SUPERVISED_EPOCHS,
    TABLES,
    TEST_SETS,
    TRAINING_SETS,
)
from ressl_plugin.views import recipe

# Tables 6 to 10 spell one method otherwise
LATER = {"MoCoV2": "MoCo v2"}
RECIPE_TAU_T = {"cifar10": 0.05, "stl10": 0.05, "cifar100": 0.04, "tiny-imagenet": 0.04}
TABLE_5_TAU_T = 0.04  # on all four data sets
RECIPE_K = {"cifar10": 4096, "cifar100": 4096, "stl10": 16384, "tiny-imagenet": 16384}


def teacher_ops(cfg: Mapping) -> str:
    """The teacher's operations as Table 4 writes them: letters of CFJGB, or "none"."""
    views = recipe.read(cfg["augmentations"])
    teacher = views.crops[views.teacher]
    strength = teacher.brightness or teacher.contrast or teacher.saturation or teacher.hue
    on = {
        "C": teacher.crop_enabled and teacher.area[0] < 1,
        "F": teacher.flip_prob,
        "J": teacher.jitter_prob and strength,
        "G": teacher.gray_prob,
        "B": teacher.blur_prob,
    }
    return "".join(letter for letter, used in on.items() if used) or "none"


def variant(cfg: Mapping) -> str:
    """The method as Tables 6 to 8 and 10 name it: ReSSL by its student views."""
    name = method_name(cfg)
    if name != "ReSSL":
        return LATER.get(name, name)
    views = recipe.read(cfg["augmentations"])
    sizes = [views.crops[i].crop_size for i in views.student]
    return f"ReSSL {len(sizes)}x" if len(set(sizes)) == 1 else f"ReSSL {len(sizes)} crops"


def cell(number: int, cfg: Mapping, record: Mapping) -> tuple | None:
    """(row, column) of a record in the paper's table, which may lack it; None if it is not one.

    Args:
        number: of the table, 1 to 10.
        cfg: the run's config; record: of its results.json.
    """
    wanted = {9: ("lowshot", "mAP"), 10: ("finetune", "top1")}.get(number, ("linear", "top1"))
    if (record["evaluator"], record["metric"]) != wanted:
        return None
    data, kwargs = cfg["data"]["dataset"], cfg.get("method_kwargs") or {}
    if record["data"] != (VOC if number == 9 else data):
        return None  # pre-trained on one data set, evaluated on another
    if number == 1:
        return method_name(cfg), data
    if number == 9:
        shots = re.search(r"(\d+|full) a class", record["protocol"])
        name = method_name(cfg)
        return (LATER.get(name, name), _number(shots[1])) if shots else None
    if number == 10:
        return variant(cfg), _share(record)
    if number in (6, 7, 8):
        return variant(cfg), data
    if cfg.get("method") != "ressl":
        return None  # Tables 2 to 5 are ablations of ReSSL
    if number == 2:
        return (data, _number(kwargs.get("temperature_q"))), _number(kwargs.get("temperature_k"))
    if number == 5:
        return data, kwargs.get("queue_size")
    ops = teacher_ops(cfg)
    if number == 4:
        return ops, data
    return {"CF": "weak", "CFJGB": "contrastive"}.get(ops, ops), data


def misfit(number: int, cfg: Mapping) -> str | None:
    """What a run has other than the runs of the paper's table had, or None.

    Asked are the backbone and, of ReSSL on the table's own data, what the table holds fixed.
    """
    data, kwargs = cfg["data"]["dataset"], cfg.get("method_kwargs") or {}
    found = {"backbone.name": (cfg.get("backbone") or {}).get("name")}
    wanted = {"backbone.name": "resnet18" if number in (1, 2, 3, 4, 5, 8) else "resnet50"}
    if data in (("imagenet",) if number <= 5 else SMALL):
        return f"data.dataset={data}"
    if cfg.get("method") == "ressl":
        for key in ("predictor", "infonce_epochs"):  # the journal version's
            found[key], wanted[key] = kwargs.get(key) or 0, 0
    if cfg.get("method") == "ressl" and number <= 5 and data in SMALL:
        tau_t = TABLE_5_TAU_T if number == 5 else RECIPE_TAU_T[data]
        held = {"queue_size": RECIPE_K[data], "temperature_q": 0.1, "temperature_k": tau_t}
        temperatures = ("temperature_q", "temperature_k")
        varied = {2: temperatures, 3: temperatures, 5: ("queue_size",)}.get(number, ())
        for key in held.keys() - varied:
            found[key], wanted[key] = kwargs.get(key), held[key]
        if number not in (3, 4):
            found["teacher's operations"], wanted["teacher's operations"] = teacher_ops(cfg), "CF"
    if number in (6, 7) and cfg.get("augmentations"):  # Table 7 is of multi-crop
        sizes = {entry["crop_size"] for entry in recipe.expand(cfg["augmentations"])}
        found["crop sizes"] = "several" if len(sizes) > 1 else "one"
        wanted["crop sizes"] = "several" if number == 7 else "one"
    differing = [key for key in sorted(found) if found[key] != wanted[key]]
    return ", ".join(f"{k}={found[k]} instead of {wanted[k]}" for k in differing) or None


def deviations(
    number: int, cfg: Mapping, record: Mapping, trained_on: Mapping | None = None
) -> list[str]:
    """What the number of a record is of that the paper's is not: fewer epochs, other images.

    Args:
        number: of the table; cfg: the run's config; record: of its results.json.
        trained_on: the identity of the images that the run was trained on (`data.identify`).

    What a record does not say (those of version 0.1.0 know no images) is not counted.
    """
    found = []
    if cfg.get("method") != "random":
        wanted = SUPERVISED_EPOCHS.get(number) if cfg.get("method") == "supervised" else None
        wanted = wanted or EPOCHS
        epochs = record.get("epochs", cfg.get("max_epochs"))
        if epochs is not None and epochs != wanted:
            found.append(f"{epochs} epochs instead of {wanted}")
    return found + other_images(record) + _trained_on_others(cfg, trained_on)


def _trained_on_others(cfg: Mapping, trained_on: Mapping | None) -> list[str]:
    images = (trained_on or {}).get("images")
    usual = TRAINING_SETS.get(cfg["data"]["dataset"])
    if not images or not usual or images == usual:
        return []
    return [f"trained on {images} images instead of {usual}"]


def other_images(record: Mapping) -> list[str]:
    """Half a sentence about the images that a record is of, if they are not the paper's."""
    seen, usual = (record.get("data_sets") or {}).get("val"), TEST_SETS.get(record["data"])
    if not seen or not usual or (seen["images"], seen["classes"]) == usual:
        return []
    return [
        f"evaluated on {seen['images']} images of {seen['classes']} classes "
        f"instead of {usual[0]} of {usual[1]}"
    ]


def data_name(cfg: Mapping, record: Mapping) -> str:
    """The name of the images that a record is of; a folder's own name where the data set has none.

    `datasets/digits/train` is digits.
    """
    data = cfg.get("data") or {}
    if record["data"] not in ("custom", "npz") or not isinstance(data.get("train_path"), str):
        return record["data"]
    place = Path(data["train_path"])
    name = place.parent.name if place.stem.lower() in ("train", "training") else place.stem
    return name or record["data"]


def paper_number(
    cfg: Mapping, record: Mapping, trained_on: Mapping | None = None
) -> tuple[float, int] | None:
    """(value, number of the table) of the paper's cell that a record can be set beside, if any.

    The run must be one of the table (`misfit`), trained and evaluated on the paper's images; how
    many epochs it had is not asked, the paper's have 200. A run of several tables is set beside the
    first.
    """
    if not cfg or record.get("representation"):
        return None
    if other_images(record) or _trained_on_others(cfg, trained_on):
        return None
    for number in (n for n in TABLES if misfit(n, cfg) is None):
        place = cell(number, cfg, record)
        value = TABLES[number].get(*place) if place else None
        if value is not None:
            return value, number
    return None


def _share(record):
    """The share of the labels, also where a list gave them."""
    word = _number(record["protocol"].removeprefix("labels "))
    share = (record.get("details") or {}).get("share")
    return round(share, 2) if isinstance(word, str) and share else word


def _number(word):
    try:
        value = float(word)
    except (TypeError, ValueError):
        return word
    return int(value) if value.is_integer() else value
