"""Whatever stands in a config or in an image file: a result or a UserError, nothing else."""

import copy
import io
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fuzzing import FEW, MANY, edited, edits, examples, from_a_check, leaves, tiny, values
from helpers import make_config
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import ExifTags, Image

from ressl_plugin import config, data, host
from ressl_plugin.config import checks
from ressl_plugin.data.images import load_image
from ressl_plugin.method import registry
from ressl_plugin.train.host_config import host_config
from ressl_plugin.train.pretrain import build, make_trainer
from ressl_plugin.train.settling import settled
from ressl_plugin.utils.errors import UserError
from ressl_plugin.views import recipe

# Configs ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def settings_of_torch():
    """A Trainer sets some for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    monkeypatch.setattr(checks, "_memory", lambda: 1 << 28)


@pytest.fixture(autouse=True)
def tiny_backbone():
    registry.register()
    host.BACKBONES["tiny"] = tiny


VALID = OmegaConf.to_container(make_config(backbone__name="tiny"))
VIEW_KEYS = [
    "crop_size", "num_crops", "role", "preset", "interpolation", "mean", "std", "rrc",
    "rrc.enabled", "rrc.crop_min_scale", "rrc.crop_max_scale", "rrc.ratio", "color_jitter",
    "color_jitter.prob", "color_jitter.brightness", "color_jitter.hue", "grayscale.prob",
    "gaussian_blur.prob", "gaussian_blur.sigma", "solarization.prob", "equalization.prob",
    "horizontal_flip.prob", "horizontal_flip",
]  # fmt: skip
VIEWS = [f"augmentations.{i}.{key}" for i in (0, 1) for key in VIEW_KEYS]
KWARGS = ["momentum", "nesterov", "dampening", "betas", "eps", "fused", "foreach", "eta", "lr"]
OF_OTHERS = [*(f"optimizer.kwargs.{key}" for key in KWARGS), "backbone.kwargs.width"]
KEYS = sorted({*config.known_keys(), *VIEWS, *OF_OTHERS})
changes = st.dictionaries(
    st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS).map(lambda k: k + "x")), values,
    min_size=1, max_size=3,
)  # fmt: skip


def changed(mapping):
    """The valid config with some keys replaced; a key set within something that is no mapping
    replaces it."""
    cfg = copy.deepcopy(VALID)
    for key, value in mapping.items():
        node = cfg
        *path, last = [int(p) if p.isdigit() else p for p in key.split(".")]
        for part in path:
            if isinstance(node, list):
                node.extend({} for _ in range(part + 1 - len(node)))  # an earlier key emptied it
                node = node[part]
                continue
            if not isinstance(node.get(part), dict | list):
                node[part] = {}
            node = node[part]
        if isinstance(node, list):
            node.append({last: value})
        else:
            node[last] = value
    return cfg


def read(mapping):
    """As from a file; through one where OmegaConf alone does not take it."""
    try:
        return OmegaConf.create(mapping)
    except OmegaConfBaseException:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "fuzz.yaml"
            path.write_text(yaml.safe_dump(mapping))
            return config.load(str(path))


def config_or_user_error(mapping):
    try:
        cfg = config.finish(read(changed(mapping)))
        assert isinstance(cfg, DictConfig)
        views = recipe.read(cfg.augmentations)
        cfg = settled(cfg)
        checks.check_trainable(cfg)
        trainer = make_trainer(cfg, Path("never-made"))
        scaled = host_config(cfg, views, 10)
        one_step(build(scaled), scaled, trainer)
    except UserError as error:
        assert from_a_check(error), f"made of a caught exception: {error}"


def one_step(model, cfg, trainer):
    """The optimizer takes one, on weights of its own: some values fail there only."""
    model.trainer = trainer
    name, model.scheduler = model.scheduler, "none"  # which needs the number of steps
    made = model.configure_optimizers()
    model.scheduler = name
    optimizer = made[0][0] if isinstance(made, tuple) else made
    for group in optimizer.param_groups:
        weight = torch.nn.Parameter(torch.ones(2, 2))
        weight.grad = torch.ones(2, 2)
        group["params"] = [weight]
    optimizer.step()


def buggy(*args, **kwargs):
    return None.size


@pytest.mark.parametrize(
    "place",
    ["ressl_plugin.method.ressl.OnlineEvaluation", "ressl_plugin.method.ressl._teacher_of",
     "ressl_plugin.views.recipe._view", "ressl_plugin.views.recipe._completed",
     "ressl_plugin.config.checks.check_temperatures",
     "ressl_plugin.config.settings.check_optimizer",
     "ressl_plugin.train.pretrain.loggers", "ressl_plugin.method.backbone.set_stem",
     "ressl_plugin.utils.devices.device_count"],
)  # fmt: skip
def test_a_bug_of_ours_is_found(monkeypatch, place):
    monkeypatch.setattr(place, buggy)
    with pytest.raises(AttributeError):
        config_or_user_error({})


@pytest.mark.parametrize("kind", [AttributeError, KeyError, AssertionError, TypeError])
def test_a_bug_in_disguise_is_told_from_a_check(kind):
    def raised(how):
        try:
            how()
        except UserError as error:
            return error

    def disguised():
        try:
            raise kind("a bug")
        except kind as error:
            raise UserError(f"config: cannot be built: {error}") from None

    assert not from_a_check(raised(disguised))
    assert from_a_check(raised(lambda: recipe.read([])))


@examples(FEW // 3)
@given(changes)
def test_configs(mapping):
    config_or_user_error(mapping)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@examples(MANY)
@given(changes)
def test_many_configs(mapping):
    config_or_user_error(mapping)


METHODS = ["ressl", "byol", "simclr", "simsiam", "dino", "supervised", "ressl_host"]
BUILT_FROM = [*OF_OTHERS, *(key for key in KEYS if key.startswith("method_kwargs."))]
parts = st.dictionaries(st.sampled_from(BUILT_FROM), leaves, min_size=1, max_size=2)
of_a_method = st.builds(
    lambda mapping, method: {**mapping, "method": method}, parts, st.sampled_from(METHODS)
)


@examples(FEW // 6)
@given(of_a_method)
def test_what_methods_and_optimizers_are_built_from(mapping):
    config_or_user_error(mapping)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@examples(MANY)
@given(of_a_method)
def test_much_of_what_methods_and_optimizers_are_built_from(mapping):
    config_or_user_error(mapping)


KINDS = [None, -1, math.nan, 2**70, "x", [[]], {"a": {}}, b"x"]


def test_every_key():
    keys = [key for key in KEYS if key not in VIEWS[len(VIEW_KEYS) :]]  # the second view's
    for i, key in enumerate(keys):
        config_or_user_error({key: KINDS[i % len(KINDS)]})


@pytest.mark.slow
@pytest.mark.parametrize("value", KINDS, ids=str)
def test_every_key_with_every_kind_of_value(value):
    for key in KEYS:
        config_or_user_error({key: value})


# Image files --------------------------------------------------------------------------------------


def encoded():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    made = []
    for mode, formats in (
        ("RGB", ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")),
        ("L", ("PNG", "JPEG", "TIFF")),
        ("P", ("PNG", "GIF")),
        ("RGBA", ("PNG", "WEBP", "TIFF")),
        ("CMYK", ("JPEG", "TIFF")),
        ("1", ("PNG", "PPM")),
        ("I;16", ("PNG", "TIFF")),
        ("F", ("TIFF",)),
    ):
        for kind in formats:
            file = io.BytesIO()
            image = Image.fromarray(pixels)
            if mode == "I;16":
                image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
            else:
                image = image.convert("L").convert(mode) if mode == "F" else image.convert(mode)
            image.save(file, kind)
            made.append(file.getvalue())
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return [*made, file.getvalue()]


IMAGES = encoded()
NAMES = ("x.png", "x.jpg", "x.webp", "x.tif", "x.bmp", "x.ppm", "x.gif")


def image_or_user_error(content, todo, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(edited(content, todo))
        try:
            image = load_image(path, exif=len(content) % 2)
            assert image.mode == "RGB" and min(image.size) > 0
            assert np.asarray(image).shape[2] == 3
        except UserError as error:
            assert str(path) in str(error)


@examples(FEW)
@given(st.sampled_from(IMAGES), edits, st.sampled_from(NAMES))
def test_image_files(content, todo, name):
    image_or_user_error(content, todo, name)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@examples(MANY)
@given(st.sampled_from(IMAGES), edits, st.sampled_from(NAMES))
def test_many_image_files(content, todo, name):
    image_or_user_error(content, todo, name)


def test_checking_a_folder_of_broken_files(tmp_path):
    generator = np.random.default_rng(1)
    kinds = ["flip", "set", "cut", "insert", "repeat", "head"]
    for i in range(150):
        todo = [
            (kinds[generator.integers(6)], int(generator.integers(2**16)), generator.bytes(4))
            for _ in range(generator.integers(1, 5))
        ]
        path = tmp_path / f"class{i % 3}" / f"{i}{NAMES[i % len(NAMES)][1:]}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(edited(IMAGES[i % len(IMAGES)], todo))
    report = data.check_folder(tmp_path)
    assert report.lines()
    with pytest.raises(UserError):
        report.refuse()


# Files that would run something -----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch {mark}']",
        "method: !!python/object/new:subprocess.Popen [['touch', '{mark}']]",
        "name: !!python/name:os.system",
        "name: ${{python:open('{mark}', 'w')}}",
        "backbone: {{_target_: os.system, command: 'touch {mark}'}}",
        "optimizer: {{_target_: subprocess.call, _args_: [[touch, '{mark}']]}}",
        "name: *nothing",
        "name: {{",
        "\t- :",
    ],
)
def test_a_config_is_never_executed(tmp_path, text):
    mark = tmp_path / "mark"
    path = tmp_path / "evil.yaml"
    path.write_text(text.format(mark=mark) + "\n")
    with pytest.raises(UserError) as caught:
        config.finish(config.load(str(path)))
    assert str(caught.value)
    assert not mark.exists()
