"""Recipes: presets, overrides, roles, and every mistake named by its place."""

import pytest
from omegaconf import OmegaConf

from ressl_plugin.utils.errors import UserError
from ressl_plugin.views.presets import PRESETS, TABLE4
from ressl_plugin.views.recipe import expand, read

PLAIN = {
    "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
    "color_jitter": {
        "prob": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
    },
    "grayscale": {"prob": 0.2},
    "gaussian_blur": {"prob": 0.5},
    "solarization": {"prob": 0.0},
    "equalization": {"prob": 0.0},
    "horizontal_flip": {"prob": 0.5},
    "crop_size": 32,
    "num_crops": 1,
}


def plain(**change):
    return {**PLAIN, **change}


def sizes(recipe):
    return [v.crop_size for v in recipe.crops]


def test_the_papers_two_views():
    recipe = read([{"preset": "contrastive", "crop_size": 32}, {"preset": "weak", "crop_size": 32}])
    student, teacher = recipe.crops
    assert (recipe.student, recipe.teacher) == ([0], 1)
    assert (student.role, teacher.role) == ("student", "teacher")
    jitter = (student.brightness, student.contrast, student.saturation, student.hue)
    assert (student.jitter_prob, *jitter) == (0.8, 0.4, 0.4, 0.4, 0.1)
    assert (student.gray_prob, student.blur_prob, student.blur_sigma) == (0.2, 0.5, (0.1, 2.0))
    assert student.area == teacher.area == (0.2, 1.0)
    assert student.flip_prob == teacher.flip_prob == 0.5
    assert teacher.jitter_prob == teacher.gray_prob == teacher.blur_prob == 0


def test_two_views_has_two_contrastive_crops_for_one_weak_one():
    recipe = read([{"preset": "two_views"}])
    assert (recipe.student, recipe.teacher, len(recipe.crops)) == ([0, 1], 2, 3)


def test_multicrop_sizes_areas_and_the_hosts_order():
    four, five = read([{"preset": "multicrop4"}]), read([{"preset": "multicrop5"}])
    assert sizes(four) == [224, 224, 160, 128, 96]
    assert sizes(five) == [224, 224, 192, 160, 128, 96]
    assert four.teacher == five.teacher == 1
    assert [five.crops[i].area for i in five.student] == [
        (0.2, 1.0),
        (0.172, 0.86),
        (0.143, 0.715),
        (0.114, 0.571),
        (0.086, 0.429),
    ]
    # The host's scripts count the views as large as the first and want exactly two.
    for entries in map(expand, ([{"preset": "multicrop4"}], [{"preset": "multicrop5"}])):
        assert sum(e["crop_size"] == entries[0]["crop_size"] for e in entries) == 2


def test_crop_size_beside_a_multicrop_preset_scales_every_size():
    recipe = read([{"preset": "multicrop4", "crop_size": 64}])
    assert sizes(recipe) == [64, 64, 46, 37, 27]


@pytest.mark.parametrize("name", TABLE4)
def test_each_teacher_of_table_4_does_what_its_name_says(name):
    teacher = read([{"preset": "contrastive"}, {"preset": name}]).crops[1]
    did = {
        "crop": teacher.crop_enabled,
        "flip": teacher.flip_prob == 0.5,
        "jitter": teacher.jitter_prob == 0.8,
        "gray": teacher.gray_prob == 0.2,
        "blur": teacher.blur_prob == 0.5,
    }
    assert "+".join(k for k, v in did.items() if v) == ("" if name == "none" else name)
    assert teacher.role == "teacher" and teacher.solarize_prob == teacher.equalize_prob == 0


def test_overrides_beside_a_preset_win_and_leave_the_preset_alone():
    entry = {
        "preset": "contrastive",
        "crop_size": 48,
        "gaussian_blur": {"sigma": [0.5, 1]},
        "rrc": {"crop_min_scale": 0.08},
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 1, 1],
        "interpolation": "bilinear",
        "ratio": [1, 1],
    }
    view = read([entry, {"preset": "weak", "crop_size": 48}]).crops[0]
    assert (view.crop_size, view.blur_prob, view.blur_sigma) == (48, 0.5, (0.5, 1))
    assert (view.crop_enabled, view.area) == (True, (0.08, 1.0))
    assert (view.mean, view.std, view.ratio) == ((0.1, 0.2, 0.3), (1, 1, 1), (1, 1))
    assert view.interpolation == "bilinear"
    assert PRESETS["contrastive"][0]["crop_size"] == 224
    assert PRESETS["contrastive"][0]["gaussian_blur"]["sigma"] == [0.1, 2.0]


def test_ratio_may_stand_in_rrc_as_the_host_layer_has_it_and_sigma_may_be_a_number():
    rrc = {**PLAIN["rrc"], "ratio": [1, 2]}
    recipe = read([plain(rrc=rrc), plain(gaussian_blur={"prob": 1, "sigma": 0.7})])
    assert recipe.crops[0].ratio == (1, 2) and recipe.crops[1].blur_sigma == (0.7, 0.7)
    assert expand([plain(ratio=[1, 2])])[0]["rrc"] == rrc
    without_crop = expand([{"crop_size": 8, "ratio": [1, 2]}])[0]
    assert without_crop["rrc"]["enabled"] is False


def test_overrides_of_a_multicrop_preset_keep_the_teacher_weak():
    entry = {"preset": "multicrop4", "solarization": {"prob": 0.2}, "horizontal_flip": {"prob": 0}}
    recipe = read([entry])
    assert [v.solarize_prob for v in recipe.crops] == [0.2, 0, 0.2, 0.2, 0.2]
    assert {v.flip_prob for v in recipe.crops} == {0}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_expanded_entries_are_the_hosts_and_read_the_same_again(name):
    given = [{"preset": name}]
    roles = [e["role"] for e in PRESETS[name]]
    given = given if "student" in roles else [{"preset": "contrastive"}, *given]
    given = given if "teacher" in roles or "teacher" in given[0] else [*given, {"preset": "weak"}]
    entries = expand(given)
    assert read(entries) == read(given)
    for entry in entries:
        assert set(PLAIN) <= set(entry) and "preset" not in entry
        for key, value in PLAIN.items():
            assert not isinstance(value, dict) or set(value) <= set(entry[key])


def test_a_plain_host_list_keeps_the_hosts_convention():
    small = plain(crop_size=16, num_crops=2)
    recipe = read([plain(), plain(gaussian_blur={"prob": 0.1}), small])
    assert (recipe.student, recipe.teacher) == ([0, 2, 3], 1)
    symmetric = read([plain(num_crops=2), small])
    assert (symmetric.student, symmetric.teacher) == ([0, 2, 3], 1)
    assert [v.role for v in symmetric.crops] == ["student", "teacher", "student", "student"]


def test_the_hosts_file_as_omegaconf_with_bare_zero_probabilities():
    weak = plain(color_jitter={"prob": 0.0}, grayscale={"prob": 0.0}, num_crops=1)
    recipe = read(OmegaConf.create([plain(), weak]))
    assert recipe.teacher == 1 and recipe.crops[1].jitter_prob == 0


def test_a_named_teacher_makes_the_others_students_wherever_it_stands():
    recipe = read([plain(role="teacher"), plain(), plain(), plain(crop_size=16)])
    assert (recipe.student, recipe.teacher) == ([1, 2, 3], 0)


def test_entries_with_no_crops_are_left_out():
    recipe = read([plain(crop_size=64, num_crops=0), plain(), plain()])
    assert sizes(recipe) == [32, 32]


def test_mean_and_std_come_from_the_entry_then_the_data_set():
    data = ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2))
    own = plain(mean=[0.5, 0.5, 0.5], std=[0.3, 0.3, 0.3])
    recipe = read([own, plain()], data)
    assert (recipe.crops[0].mean, recipe.crops[1].mean) == ((0.5, 0.5, 0.5), data[0])
    assert (recipe.crops[0].std, recipe.crops[1].std) == ((0.3, 0.3, 0.3), data[1])
    assert read([own, plain()]).crops[1].mean == (0.485, 0.456, 0.406)


JITTER = PLAIN["color_jitter"]
MISTAKES = [
    ([plain()], "no teacher"),
    ([plain(role="student"), plain(role="student")], "no teacher"),
    ([plain(), plain(num_crops=2)], r"augmentations\[1\].*none is a teacher"),
    ([plain(role="teacher"), plain(role="teacher")], r"augmentations\[1\] is a second teacher"),
    ([plain(), plain(role="teacher", num_crops=2)], r"augmentations\[1\] is a second teacher"),
    ([plain(role="teacher")], "no student"),
    ([plain(crop_size=16), plain(), plain()], r"augmentations\[0\].crop_size = 16 .*before"),
    (
        [plain(), plain(color_jitter={**JITTER, "prob": 1.5})],
        r"augmentations\[1\].color_jitter.prob=1.5: must be a number >= 0 and <= 1",
    ),
    ([plain(), plain(horizontal_flip={"prob": -0.1})], r"\[1\].horizontal_flip.prob=-0.1"),
    ([plain(), plain(grayscale={"prob": "0.2"})], r"\[1\].grayscale.prob='0.2'"),
    ([plain(grayscale={"prob": True}), plain()], r"\[0\].grayscale.prob=True"),
    ([plain(grayscale={"prob": float("nan")}), plain()], r"\[0\].grayscale.prob=nan"),
    (
        [plain(color_jitter={**JITTER, "brightness": -0.4}), plain()],
        r"\[0\].color_jitter.brightness=-0.4: must be a number >= 0",
    ),
    ([plain(color_jitter={**JITTER, "hue": 0.6}), plain()], r"\[0\].color_jitter.hue=0.6"),
    ([plain(color_jitter={"prob": 0.8}), plain()], r"\[0\].color_jitter.brightness is missing"),
    (
        [plain(), plain(rrc={"enabled": True, "crop_min_scale": 0.9, "crop_max_scale": 0.5})],
        r"\[1\].rrc: crop_min_scale 0.9 .*crop_max_scale 0.5",
    ),
    ([plain(rrc={"crop_min_scale": 0}), plain()], r"\[0\].rrc: crop_min_scale 0"),
    ([plain(rrc={"crop_max_scale": 1.2}), plain()], r"\[0\].rrc.crop_max_scale=1.2"),
    ([plain(rrc={"enabled": "yes"}), plain()], r"\[0\].rrc.enabled='yes'"),
    ([plain(), {"preset": "wek"}], r"\[1\].preset = wek .*`weak`"),
    ([plain(), {"preset": 3}], r"\[1\].preset = 3 is an unknown preset"),
    ([plain(), plain(colour_jitter={"prob": 0})], r"\[1\].colour_jitter .*`color_jitter`"),
    ([plain(grayscale={"p": 0.2}), plain()], r"\[0\].grayscale.p .*`prob`"),
    ([plain(grayscale=0.2), plain()], r"\[0\].grayscale = 0.2 must be a mapping"),
    ([plain(crop_size=0), plain()], r"\[0\].crop_size=0"),
    ([plain(crop_size=32.5), plain()], r"\[0\].crop_size=32.5"),
    ([{"preset": "multicrop4", "crop_size": 0}], r"\[0\].crop_size=0"),
    ([{"preset": "multicrop4", "role": "student"}], r"\[0\].role cannot stand beside"),
    ([plain(num_crops=-1), plain()], r"\[0\].num_crops=-1"),
    ([plain(), plain(num_crops=2**70)], r"\[1\].num_crops=1180.* >= 0 and <= 64"),
    ([plain(crop_size=10**6), plain()], r"\[0\].crop_size=1000000: .* >= 1 and <= 8192"),
    ([plain(gaussian_blur={"prob": 0.5, "sigma": [2, 0.1]}), plain()], r"blur.sigma=\[2, 0.1\]"),
    ([plain(ratio=[2, 1]), plain()], r"\[0\].ratio=\[2, 1\]"),
    ([plain(mean=[0.5]), plain()], r"\[0\].mean=\[0.5\]"),
    ([plain(std=[0.5, 0.5, 0]), plain()], r"\[0\].std=\[0.5, 0.5, 0\]"),
    ([plain(interpolation="nearest"), plain()], r"\[0\].interpolation='nearest'"),
    ([plain(role="tutor"), plain()], r"\[0\].role='tutor'"),
    ([{"num_crops": 1}, plain()], r"\[0\].crop_size is missing"),
    ([3], r"augmentations\[0\] = 3"),
    ([], r"augmentations is \[\]"),
    (None, "augmentations is None"),
    ([plain(num_crops=0)], "no teacher"),
]


@pytest.mark.parametrize("augmentations, message", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_entry(augmentations, message):
    with pytest.raises(UserError, match=message) as raised:
        read(augmentations)
    assert "\n" not in str(raised.value)
