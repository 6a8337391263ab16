"""View recipes: the config's `augmentations` list, read once, checked, with a role for every view.

The schema is solo-learn main's; beside it stand `role`, `preset`, `interpolation`, `rrc.ratio`
(or `ratio`), `gaussian_blur.sigma` (pixels, a range or a number) and `solarization.threshold`. An
entry lists what is done to the image: an operation that it does not name is not done.
views/presets.py holds what `preset` may name.
"""

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from omegaconf import OmegaConf

from ressl_plugin.config.kinds import judged
from ressl_plugin.utils.errors import UserError
from ressl_plugin.views.presets import COLOUR, OPERATIONS, PLAIN, PRESETS

IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class View:
    """One entry of the recipe. Sizes in pixels, areas as fractions of the image's, hue in turns."""

    role: str
    crop_size: int
    crop_enabled: bool = False
    area: tuple = (0.08, 1.0)
    ratio: tuple = (3 / 4, 4 / 3)
    jitter_prob: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gray_prob: float = 0.0
    blur_prob: float = 0.0
    blur_sigma: tuple = (0.1, 2.0)
    solarize_prob: float = 0.0
    solarize_threshold: float = 128
    equalize_prob: float = 0.0
    flip_prob: float = 0.0
    interpolation: str = "bicubic"
    mean: tuple = IMAGENET_MEAN_STD[0]
    std: tuple = IMAGENET_MEAN_STD[1]


@dataclass(frozen=True)
class Recipe:
    """`crops` in config order, num_crops expanded: one View for each tensor that a back end draws;
    `student` and `teacher` are positions in it."""

    crops: list
    student: list
    teacher: int


def expand(augmentations):
    """The list with presets resolved: plain dicts in the host's schema, every operation present.

    An override beside a preset wins. On a preset of several views, crop_size scales all sizes in
    proportion, rrc and horizontal_flip go to every view, the colour operations to the student's
    only. Entries with `num_crops: 0` are left out. Raises UserError naming the entry.
    """
    return [entry for _, entry in _expand(augmentations)]


def entries(cfg):
    """`expand` of a config's augmentations; nothing where it has none."""
    return expand(cfg.augmentations) if cfg.get("augmentations") else []


def read(augmentations, mean_std=None, interpolation="bicubic"):
    """The `augmentations` list (dicts or OmegaConf) as a Recipe; raises UserError naming the entry.

    mean_std: (mean, std), three floats each, for entries that give none (else ImageNet's).
    interpolation: bicubic or bilinear, likewise. data.view_recipe(cfg) reads a run's.
    Without any role the host's convention holds: first large view student, second large view
    teacher, small ones student. With a teacher named, every entry without a role is a student's.
    """
    crops, places = [], []
    for where, entry in _expand(augmentations):
        view = _view(entry, mean_std or IMAGENET_MEAN_STD, interpolation)
        crops += [view] * entry["num_crops"]
        places += [where] * entry["num_crops"]
    crops = _with_roles(crops, places)
    student = [i for i, v in enumerate(crops) if v.role == "student"]
    teacher = [i for i, v in enumerate(crops) if v.role == "teacher"]
    if not teacher:
        raise UserError("augmentations has no teacher view; give one entry `role: teacher`")
    if not student:
        raise UserError("augmentations has no student view; add one, such as `preset: contrastive`")
    return Recipe(crops, student, teacher[0])


def _expand(augmentations):
    if OmegaConf.is_config(augmentations):
        augmentations = OmegaConf.to_container(augmentations, resolve=True)
    if not isinstance(augmentations, list | tuple) or not augmentations:
        raise UserError(
            f"augmentations is {augmentations!r}; it must be a list with a student's and a "
            "teacher's view, such as [{preset: contrastive}, {preset: weak}]"
        )
    out = []
    for i, given in enumerate(augmentations):
        where = f"augmentations[{i}]"
        if not isinstance(given, Mapping):
            raise UserError(f"{where} = {given!r} must be a mapping, such as {{preset: weak}}")
        _check(given, where)
        entries = [_completed(entry, where) for entry in _resolve(dict(given), where)]
        out += [(where, entry) for entry in entries if entry["num_crops"]]
    return out


def _check(given, where):
    """Every key and value of an entry, as it was given."""
    for key, value in given.items():
        if key == "preset":
            if value is not None:
                _known(value, PRESETS, f"{where}.preset = {value}", "an unknown preset")
        elif key in PLAIN:
            judged(f"{where}.{key}", value, PLAIN[key])
        else:
            _known(key, (*OPERATIONS, *PLAIN, "preset"), f"{where}.{key}")
            if not isinstance(value, Mapping):
                example = next(iter(OPERATIONS[key]))
                raise UserError(f"{where}.{key} = {value!r} must be a mapping with `{example}:`")
            for inner, setting in value.items():
                _known(inner, OPERATIONS[key], f"{where}.{key}.{inner}")
                judged(f"{where}.{key}.{inner}", setting, OPERATIONS[key][inner][1])


def _known(key, valid, where, kind="an unknown key"):
    if key not in list(valid):
        close = difflib.get_close_matches(str(key)[:100], list(valid), 1, 0)
        raise UserError(f"{where} is {kind}; did you mean `{close[0]}`?")


def _resolve(given, where):
    """The entries of a preset with the overrides merged in; a plain entry alone."""
    name = given.pop("preset", None)
    if name is None:
        return [copy.deepcopy(given)]
    entries = copy.deepcopy(PRESETS[name])
    if len(entries) > 1:
        for key in ("role", "num_crops"):
            if key in given:
                raise UserError(
                    f"{where}.{key} cannot stand beside `preset: {name}`, which has "
                    f"{len(entries)} entries; write them out to change one of them"
                )
    size = given.pop("crop_size", None)
    if size is not None:
        largest = entries[0]["crop_size"]
        for entry in entries:
            entry["crop_size"] = max(1, round(entry["crop_size"] * size / largest))
    for entry in entries:
        for key, value in given.items():
            if key in COLOUR and len(entries) > 1 and entry["role"] == "teacher":
                continue
            if key in OPERATIONS:
                entry[key] = {**entry.get(key, {}), **value}
            else:
                entry[key] = copy.deepcopy(value)
    return entries


def _completed(entry, where):
    """An entry with what it leaves out; checks what relates several of its values."""
    if "crop_size" not in entry:
        raise UserError(f"{where}.crop_size is missing; give the view's side in pixels")
    jitter = entry.get("color_jitter", {})
    for key in OPERATIONS["color_jitter"]:
        if jitter.get("prob") and key not in jitter:
            raise UserError(f"{where}.color_jitter.{key} is missing; 0 turns it off")
    entry = {key: value for key, value in entry.items() if value is not None}
    entry.setdefault("num_crops", 1)
    if "ratio" in entry:
        rrc = {"enabled": "rrc" in entry, **entry.get("rrc", {})}
        entry["rrc"] = {**rrc, "ratio": entry.pop("ratio")}
    if "rrc" in entry:
        entry["rrc"] = {"enabled": True, **entry["rrc"]}
    for operation, settings in OPERATIONS.items():
        defaults = {key: copy.deepcopy(default) for key, (default, _) in settings.items()}
        entry[operation] = {**defaults, **entry.get(operation, {})}
    low, high = (entry["rrc"][f"crop_{end}_scale"] for end in ("min", "max"))
    if not 0 < low <= high:
        raise UserError(
            f"{where}.rrc: crop_min_scale {low} must be above 0 and not above crop_max_scale {high}"
        )
    sigma = entry["gaussian_blur"]["sigma"]
    if not isinstance(sigma, list | tuple):
        entry["gaussian_blur"]["sigma"] = [sigma, sigma]
    return entry


def _view(entry, mean_std, interpolation):
    rrc, jitter = entry["rrc"], entry["color_jitter"]
    return View(
        role=entry.get("role"),
        crop_size=entry["crop_size"],
        crop_enabled=rrc["enabled"],
        area=(rrc["crop_min_scale"], rrc["crop_max_scale"]),
        ratio=tuple(rrc["ratio"]),
        jitter_prob=jitter["prob"],
        brightness=jitter["brightness"],
        contrast=jitter["contrast"],
        saturation=jitter["saturation"],
        hue=jitter["hue"],
        gray_prob=entry["grayscale"]["prob"],
        blur_prob=entry["gaussian_blur"]["prob"],
        blur_sigma=tuple(entry["gaussian_blur"]["sigma"]),
        solarize_prob=entry["solarization"]["prob"],
        solarize_threshold=entry["solarization"]["threshold"],
        equalize_prob=entry["equalization"]["prob"],
        flip_prob=entry["horizontal_flip"]["prob"],
        interpolation=entry.get("interpolation", interpolation),
        mean=tuple(entry.get("mean", mean_std[0])),
        std=tuple(entry.get("std", mean_std[1])),
    )


def _with_roles(crops, places):
    """Give every crop a role."""
    large = max((crop.crop_size for crop in crops), default=0)
    for before, after, place in zip(crops, crops[1:], places):
        if before.crop_size < large == after.crop_size:
            raise UserError(
                f"{place}.crop_size = {before.crop_size} stands before a larger view of {large}; "
                "large views come first, as the host takes the first for the large size"
            )
    named = [place for crop, place in zip(crops, places) if crop.role == "teacher"]
    if len(named) > 1:
        raise UserError(f"{named[1]} is a second teacher view; {named[0]} is the teacher already")
    larges = [i for i, crop in enumerate(crops) if crop.crop_size == large]
    if not named and len(larges) > 2:
        raise UserError(
            f"{places[larges[2]]} makes {len(larges)} large views and none is a teacher; "
            "give one entry `role: teacher`"
        )
    teacher = larges[1] if not named and len(larges) == 2 else None
    roles = ("teacher" if i == teacher else "student" for i in range(len(crops)))
    return [replace(crop, role=crop.role or role) for crop, role in zip(crops, roles)]
