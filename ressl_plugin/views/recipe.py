"""View recipes: the config's `augmentations` list, read once, checked, with a role for every view.

The schema is solo-learn main's; beside it stand `role`, `preset`, `interpolation`, `rrc.ratio`
(or `ratio`), `gaussian_blur.sigma` (pixels, a range or a number) and `solarization.threshold`. An
entry lists what is done to the image: an operation that it does not name is not done.
views/presets.py holds what `preset` may name.
"""

import copy
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ressl_plugin.config.schema import LARGEST_IMAGE
from ressl_plugin.utils.errors import UserError
from ressl_plugin.views.presets import COLOUR, INTERPOLATIONS, OPERATIONS, PLAIN_KEYS, PRESETS

MOST_VIEWS = 64  # of an entry: beyond, a slip of the finger
IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class View:
    """One entry of the recipe. Sizes in pixels, areas as fractions of the image's, hue in turns."""

    role: str
    crop_size: int
    num_crops: int = 1
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
    """`views` in config order; `crops` the same with num_crops expanded, one for each tensor that
    a back end draws; `student` and `teacher` are positions in `crops`."""

    views: list
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


def read(augmentations, mean_std=None, interpolation="bicubic"):
    """The `augmentations` list (dicts or OmegaConf) as a Recipe; raises UserError naming the entry.

    mean_std: (mean, std), three floats each, for entries that give none (else ImageNet's).
    interpolation: bicubic or bilinear, likewise. data.view_recipe(cfg) reads a run's.
    Without any role the host's convention holds: first large view student, second large view
    teacher, small ones student. With a teacher named, every entry without a role is a student's.
    """
    entries = _expand(augmentations)
    views = [_view(entry, mean_std or IMAGENET_MEAN_STD, interpolation) for where, entry in entries]
    views = _with_roles(views, [where for where, _ in entries])
    crops = [replace(v, num_crops=1) for v in views for _ in range(v.num_crops)]
    student = [i for i, v in enumerate(crops) if v.role == "student"]
    teacher = [i for i, v in enumerate(crops) if v.role == "teacher"]
    if not teacher:
        raise UserError("augmentations has no teacher view; give one entry `role: teacher`")
    if not student:
        raise UserError("augmentations has no student view; add one, such as `preset: contrastive`")
    return Recipe(views, crops, student, teacher[0])


def _expand(augmentations):
    if hasattr(augmentations, "_metadata"):  # an OmegaConf node
        from omegaconf import OmegaConf

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
        _check_keys(given, where)
        for entry in _resolve(dict(given), where):
            _complete(entry, where)
            if entry["num_crops"]:
                out.append((where, entry))
    return out


def _check_keys(entry, where):
    for key, value in entry.items():
        _known(key, (*OPERATIONS, *PLAIN_KEYS), f"{where}.{key}")
        if key in OPERATIONS:
            if not isinstance(value, Mapping):
                example = next(iter(OPERATIONS[key]))
                raise UserError(f"{where}.{key} = {value!r} must be a mapping with `{example}:`")
            for inner in value:
                _known(inner, OPERATIONS[key], f"{where}.{key}.{inner}")


def _known(key, valid, where, kind="an unknown key"):
    if key not in valid:
        close = difflib.get_close_matches(str(key), valid, 1, 0)
        raise UserError(f"{where} is {kind}; did you mean `{close[0] if close else valid[0]}`?")


def _resolve(given, where):
    """The entries of a preset with the overrides merged in; a plain entry alone."""
    name = given.pop("preset", None)
    if name is None:
        return [copy.deepcopy(given)]
    _known(name, tuple(PRESETS), f"{where}.preset = {name}", "an unknown preset")
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
        _whole(size, 1, LARGEST_IMAGE, f"{where}.crop_size")
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


def _complete(entry, where):
    """Fill in what an entry leaves out, in place, and check every value."""
    if "crop_size" not in entry:
        raise UserError(f"{where}.crop_size is missing; give the view's side in pixels")
    _whole(entry["crop_size"], 1, LARGEST_IMAGE, f"{where}.crop_size")
    _whole(entry.setdefault("num_crops", 1), 0, MOST_VIEWS, f"{where}.num_crops")
    jitter = entry.get("color_jitter", {})
    for key in OPERATIONS["color_jitter"]:
        if jitter.get("prob") and key not in jitter:
            raise UserError(f"{where}.color_jitter.{key} is missing; 0 turns it off")
    ratio = entry.pop("ratio", None)
    if ratio is not None:
        entry["rrc"] = {"enabled": "rrc" in entry, **entry.get("rrc", {}), "ratio": ratio}
    if "rrc" in entry:
        entry["rrc"] = {"enabled": True, **entry["rrc"]}
    for op, defaults in OPERATIONS.items():
        entry[op] = {**copy.deepcopy(defaults), **entry.get(op, {})}
        if "prob" in defaults:
            _number(entry[op]["prob"], 0, 1, f"{where}.{op}.prob", "a probability")
    for key in ("brightness", "contrast", "saturation"):
        _number(entry["color_jitter"][key], 0, None, f"{where}.color_jitter.{key}", "a strength")
    _number(entry["color_jitter"]["hue"], 0, 0.5, f"{where}.color_jitter.hue", "a hue shift")
    _number(
        entry["solarization"]["threshold"], 0, 256, f"{where}.solarization.threshold", "a level"
    )
    rrc = entry["rrc"]
    if not isinstance(rrc["enabled"], bool):
        raise UserError(f"{where}.rrc.enabled = {rrc['enabled']!r} must be true or false")
    for key in ("crop_min_scale", "crop_max_scale"):
        _number(rrc[key], 0, 1, f"{where}.rrc.{key}", "a fraction of the image's area")
    if not 0 < rrc["crop_min_scale"] <= rrc["crop_max_scale"]:
        raise UserError(
            f"{where}.rrc: crop_min_scale {rrc['crop_min_scale']} must be above 0 and not "
            f"above crop_max_scale {rrc['crop_max_scale']}"
        )
    blur = entry["gaussian_blur"]
    blur["sigma"] = [blur["sigma"]] * 2 if _is_number(blur["sigma"]) else blur["sigma"]
    _range(blur["sigma"], f"{where}.gaussian_blur.sigma")
    _range(rrc["ratio"], f"{where}.rrc.ratio")
    for key, low in (("mean", None), ("std", 1e-6)):
        if entry.get(key) is None:
            entry.pop(key, None)
            continue
        if not isinstance(entry[key], list | tuple) or len(entry[key]) != 3:
            raise UserError(f"{where}.{key} = {entry[key]!r} must be three numbers, one a channel")
        for value in entry[key]:
            _number(value, low, None, f"{where}.{key}", "a level on the scale 0 to 1")
    if entry.get("interpolation", "bicubic") not in INTERPOLATIONS:
        raise UserError(
            f"{where}.interpolation = {entry['interpolation']!r}; use bicubic or bilinear"
        )
    if entry.get("role") not in (None, "student", "teacher"):
        raise UserError(f"{where}.role = {entry['role']!r} must be student or teacher")


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value, low, high, where, what):
    bad = not _is_number(value) or (low is not None and value < low)
    if bad or (high is not None and value > high):
        low_text = "of any size" if low is None else f"at least {low}"
        bounds = f"between {low} and {high}" if high is not None else low_text
        raise UserError(f"{where} = {value!r}; it is {what} and must be a number {bounds}")


def _whole(value, low, high, where):
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{where} = {value!r} must be a whole number, {low} to {high}")


def _range(value, where):
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    if not pair or not 0 < value[0] <= value[1]:
        raise UserError(f"{where} = {value!r} must be [low, high] with 0 < low <= high")


def _view(entry, mean_std, interpolation):
    rrc, jitter = entry["rrc"], entry["color_jitter"]
    return View(
        role=entry.get("role"),
        crop_size=entry["crop_size"],
        num_crops=entry["num_crops"],
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


def _with_roles(views, places):
    """Give every view a role; an entry whose copies differ in role becomes several views."""
    if not views:
        return views
    large = max(v.crop_size for v in views)
    for before, after, place in zip(views, views[1:], places):
        if before.crop_size < large == after.crop_size:
            raise UserError(
                f"{place}.crop_size = {before.crop_size} stands before a larger view of {large}; "
                "large views come first, as the host takes the first for the large size"
            )
    named = [
        place for v, place in zip(views, places) for _ in range(v.num_crops) if v.role == "teacher"
    ]
    if len(named) > 1:
        raise UserError(f"{named[1]} is a second teacher view; {named[0]} is the teacher already")
    if named:
        return [v if v.role else replace(v, role="student") for v in views]
    owners = [i for i, v in enumerate(views) for _ in range(v.num_crops)]
    larges = [i for i, owner in enumerate(owners) if views[owner].crop_size == large]
    if len(larges) > 2:
        raise UserError(
            f"{places[owners[larges[2]]]} makes {len(larges)} large views and none is a teacher; "
            "give one entry `role: teacher`"
        )
    chosen = owners[larges[1]] if len(larges) == 2 else None
    out = []
    for i, view in enumerate(views):
        if i != chosen or view.role:
            out.append(replace(view, role="student"))
            continue
        before = larges[1] - owners.index(i)
        counts = (("student", before), ("teacher", 1), ("student", view.num_crops - before - 1))
        out += [replace(view, role=role, num_crops=n) for role, n in counts if n]
    return out
