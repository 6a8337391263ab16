"""The operations that a view may do, with what they are when an entry leaves them out, and the
recipes known by name: the paper's weak and contrastive views, its multi-crop variants (Table 7),
2x backprop, and each teacher of Table 4.
"""

from ressl_plugin.config.kinds import FLAG, NULL, Kind, is_number, list_of, number, one_of, whole
from ressl_plugin.config.schema import LARGEST_IMAGE

MOST_VIEWS = 64  # of an entry: beyond, a slip of the finger
_POSITIVE = Kind("a number above 0", lambda v: is_number(v) and v > 0)
_RANGE = Kind(
    "[low, high] with 0 < low <= high",
    lambda v: list_of(_POSITIVE, 2).call(v) and v[0] <= v[1],
)
_SIGMA = _POSITIVE | _RANGE
_SHARE, _STRENGTH, _PROBABILITY = number(0, 1), number(0), (0.0, number(0, 1))

OPERATIONS = {  # key -> what it is when an entry leaves it out, and what it may be
    "rrc": {
        "enabled": (False, FLAG),
        "crop_min_scale": (0.08, _SHARE),
        "crop_max_scale": (1.0, _SHARE),
        "ratio": ([3 / 4, 4 / 3], _RANGE),
    },
    "color_jitter": {
        "prob": _PROBABILITY,
        "brightness": (0.0, _STRENGTH),
        "contrast": (0.0, _STRENGTH),
        "saturation": (0.0, _STRENGTH),
        "hue": (0.0, number(0, 0.5)),
    },
    "grayscale": {"prob": _PROBABILITY},
    "gaussian_blur": {"prob": _PROBABILITY, "sigma": ([0.1, 2.0], _SIGMA)},
    "solarization": {"prob": _PROBABILITY, "threshold": (128, number(0, 256))},
    "equalization": {"prob": _PROBABILITY},
    "horizontal_flip": {"prob": _PROBABILITY},
}
COLOUR = ("color_jitter", "grayscale", "gaussian_blur", "solarization", "equalization")
PLAIN = {  # the other keys of an entry, and what they may be
    "crop_size": whole(1, LARGEST_IMAGE),
    "num_crops": whole(0, MOST_VIEWS),
    "mean": list_of(number(), 3) | NULL,
    "std": list_of(number(1e-6), 3) | NULL,
    "role": one_of("student", "teacher") | NULL,
    "interpolation": one_of("bicubic", "bilinear"),
    "ratio": _RANGE | NULL,
}

_CROP = {"rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0}}
_FLIP = {"horizontal_flip": {"prob": 0.5}}
_JITTER = {
    "color_jitter": {"prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
}
_GRAY = {"grayscale": {"prob": 0.2}}
_BLUR = {"gaussian_blur": {"prob": 0.5, "sigma": [0.1, 2.0]}}
_LARGE = {"crop_size": 224, "num_crops": 1}

_LETTERS = {"crop": _CROP, "flip": _FLIP, "jitter": _JITTER, "gray": _GRAY, "blur": _BLUR}
TABLE4 = (
    *("none", "crop", "flip", "jitter", "gray", "blur", "crop+flip", "crop+jitter", "crop+gray"),
    *("crop+blur", "crop+flip+jitter", "crop+flip+gray", "crop+flip+blur"),
)


def _teacher(name):
    parts = [] if name == "none" else name.split("+")
    return (
        {k: v for part in parts for k, v in _LETTERS[part].items()} | _LARGE | {"role": "teacher"}
    )


_WEAK = _teacher("crop+flip")
_CONTRASTIVE = {**_CROP, **_FLIP, **_JITTER, **_GRAY, **_BLUR, **_LARGE, "role": "student"}


def _student(size, low=0.2, high=1.0):
    area = {"enabled": True, "crop_min_scale": low, "crop_max_scale": high}
    return {**_CONTRASTIVE, "crop_size": size, "rrc": area}


# The reference's, which has 5 crops; of 4 no area is printed.
_SMALL = [_student(160, 0.143, 0.715), _student(128, 0.114, 0.571), _student(96, 0.086, 0.429)]

# The order is the host's: the first large view for the student, the second for the teacher, then
# the small ones. two_views has three large views, which only this plugin's own command accepts.
PRESETS = {
    "weak": [_WEAK],
    "contrastive": [_CONTRASTIVE],
    "two_views": [{**_CONTRASTIVE, "num_crops": 2}, _WEAK],
    "multicrop4": [_student(224), _WEAK, *_SMALL],
    "multicrop5": [_student(224), _WEAK, _student(192, 0.172, 0.86), *_SMALL],
    **{name: [_teacher(name)] for name in TABLE4},
}
