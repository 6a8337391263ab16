"""The recipes, key by key, against the paper and the authors' code; where they differ, and why.

Sources: Sections 3, 4.1 and 4.2 and Tables 1 to 8 of the paper; where it is silent the reference
code (ImageNet) and the authors' small-data code.
"""

import re

import pytest
from omegaconf import OmegaConf

from ressl_plugin import config, data
from ressl_plugin.evaluate import recipes
from ressl_plugin.experiments.paper_numbers import tables
from ressl_plugin.utils.devices import device_count
from ressl_plugin.views.presets import PRESETS
from ressl_plugin.views.recipe import read

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EVERY = {
    "method": "ressl",
    "temperature_q": 0.1,
    "temperature_k": 0.04,
    "proj_batchnorm": False,  # Linear - ReLU - Linear
    "predictor": False,
    "infonce_epochs": 0,
    "nt_xent_weight": 0,
    "constant momentum": True,
    "optimizer": "sgd",
    "sgd momentum": 0.9,
    "images a step": 256,
    "scheduler": ("warmup_cosine", "step", 5, 0.0, 0.0),
    "max_epochs": 200,
    "precision": "32-true",
    "interpolation": "bilinear",
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "sync_batchnorm": False,
    "data.fraction": -1,
    "data.no_labels": False,
    "teacher": [("weak", (0.2, 1.0))],
}
SMALL = {
    **EVERY,
    "backbone": ("resnet18", "paper"),
    "proj_hidden_dim": 2048,
    "proj_output_dim": 128,
    "queue_size": 4096,
    "momentum": 0.99,
    "lr": 0.06,
    "weight_decay": 5e-4,
    "spared from decay": "nothing",
    "batchnorm": (8, "group", True),
    "sides": [32, 32],
    "student": [("contrastive", (0.2, 1.0))],
    "linear": ("sgd", 30.0, 256, 0, 100, "step", [60, 80], None, None),
    "linear area": (0.08, 1.0),
}
MEDIUM = {**SMALL, "queue_size": 16384, "momentum": 0.996, "sides": [64, 64], "image_size": 64}
LARGE = {
    **EVERY,
    "backbone": ("resnet50", "imagenet"),
    "proj_hidden_dim": 4096,
    "proj_output_dim": 512,
    "queue_size": 131072,
    "momentum": 0.999,
    "lr": 0.05,
    "weight_decay": 1e-4,
    "spared from decay": "names with bn or bias",
    "batchnorm": (0, "shuffle", False),
    "devices": 8,
    "sides": [224, 224],
    "statistics": IMAGENET,
    "student": [("contrastive", (0.2, 1.0))],
    "linear": ("sgd", 0.3, 256, 0, 100, "warmup_cosine", None, "step", 0),
    "linear area": (0.08, 1.0),
}
FIVE = [(0.2, 1.0), (0.172, 0.86), (0.143, 0.715), (0.114, 0.571), (0.086, 0.429)]
FOUR = [FIVE[0], *FIVE[2:]]  # inferred: the paper calls five crops "four plus a 192 image"
PAPER = {
    "cifar/ressl": {
        **SMALL,
        "temperature_k": 0.05,  # Table 2's best
        "statistics": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    },
    "cifar/ressl data.dataset=cifar100 method_kwargs.temperature_k=0.04": {
        **SMALL,
        "statistics": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    },
    "stl10/ressl": {
        **MEDIUM,
        "temperature_k": 0.05,
        "statistics": ((0.4408, 0.4279, 0.3867), (0.2682, 0.2610, 0.2686)),
    },
    "tiny-imagenet/ressl": {
        **MEDIUM,
        "statistics": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    },
    "imagenet/ressl": LARGE,
    "imagenet/ressl_2x": {**LARGE, "student": 2 * LARGE["student"], "sides": [224] * 3},
    "imagenet/ressl_multicrop4": {
        **LARGE,
        "student": [("contrastive", area) for area in FOUR],
        "sides": [224, 224, 160, 128, 96],
    },
    "imagenet/ressl_multicrop5": {
        **LARGE,
        "student": [("contrastive", area) for area in FIVE],
        "sides": [224, 224, 192, 160, 128, 96],
    },
}
SWAV = "imagenet/swav_multicrop"
# What a recipe has instead, and why. A deviation that is not here fails; so does one that is no
# longer there.
MACHINE = ("auto", "bfloat16 takes half the time; the relation itself is float32 all the same")
DECAY = (
    "biases and batch norm",
    "the paper's sentence; the code's test by name lets the batch norm of shortcuts decay",
)
DEVIATIONS = {
    **{(name, "precision"): MACHINE for name in PAPER},
    **{(n, "spared from decay"): DECAY for n, wanted in PAPER.items() if "imagenet/" in n[:9]},
}


def finished(words, kind="pretrain"):
    target, *overrides = words.split()
    cfg = config.load(target, overrides, kind)
    return config.finish(cfg) if kind == "pretrain" else cfg


def view(crop):
    """("weak" or "contrastive", area) of a crop that does just what the paper's does."""
    for name in ("weak", "contrastive"):
        crops = read([{"preset": "contrastive"}, {"preset": "weak"}]).crops
        (wanted,) = crops[name == "weak" :][:1]
        fields = set(vars(wanted)) - {"area", "crop_size", "role", "mean", "std", "interpolation"}
        if all(getattr(crop, f) == getattr(wanted, f) for f in fields):
            return name, crop.area
    return crop


def settings(words):
    """Every setting of a recipe that the paper or the authors' code decides."""
    cfg = finished(words)
    kwargs, norm, optimizer, schedule = (
        cfg.method_kwargs, cfg.batchnorm, cfg.optimizer, cfg.scheduler,
    )  # fmt: skip
    spared = {True: "biases and batch norm", False: "nothing"}
    views = data.view_recipe(cfg)
    devices = device_count(cfg.devices, 1)
    evaluation = finished(f"{words.split('/')[0]}/ressl data.dataset={cfg.data.dataset}", "linear")
    run = OmegaConf.merge(cfg, {"data": evaluation.data})
    crop = recipes.training_transform(run).transforms[0]
    (interpolation,) = {c.interpolation for c in views.crops} | {crop.interpolation.value}
    (statistics,) = {(c.mean, c.std) for c in views.crops} | {data.mean_std(run)}
    return {
        "method": cfg.method,
        **{k: kwargs[k] for k in (
            "temperature_q", "temperature_k", "proj_hidden_dim", "proj_output_dim", "queue_size",
            "proj_batchnorm", "predictor", "infonce_epochs", "nt_xent_weight")},
        "backbone": (cfg.backbone.name, cfg.backbone.stem),
        "momentum": cfg.momentum.base_tau,
        "constant momentum": cfg.momentum.base_tau == cfg.momentum.final_tau,
        "optimizer": optimizer.name,
        "sgd momentum": optimizer.kwargs.get("momentum", 0.9),
        "lr": optimizer.lr,
        "images a step": optimizer.batch_size * devices * cfg.num_nodes,
        "devices": devices,
        "weight_decay": optimizer.weight_decay,
        "spared from decay": spared[optimizer.exclude_bias_n_norm_wd],
        "scheduler": (schedule.name, schedule.interval, schedule.warmup_epochs,
                      schedule.warmup_start_lr, schedule.min_lr),
        "max_epochs": cfg.max_epochs,
        "precision": cfg.precision,
        "accumulate_grad_batches": cfg.accumulate_grad_batches,
        "gradient_clip_val": cfg.get("gradient_clip_val"),
        "sync_batchnorm": cfg.sync_batchnorm,
        "batchnorm": (norm.groups, norm.mode, norm.permute),
        "data.fraction": cfg.data.fraction,
        "data.no_labels": cfg.data.no_labels,
        "image_size": cfg.data.image_size,
        "interpolation": interpolation,
        "statistics": statistics,
        "sides": [c.crop_size for c in views.crops],
        "student": [view(views.crops[i]) for i in views.student],
        "teacher": [view(views.crops[views.teacher])],
        "linear": (evaluation.optimizer.name, evaluation.optimizer.lr,
                   evaluation.optimizer.batch_size, evaluation.optimizer.weight_decay,
                   evaluation.max_epochs, evaluation.scheduler.name,
                   evaluation.scheduler.get("lr_decay_steps"),
                   evaluation.scheduler.get("interval"),
                   evaluation.scheduler.get("warmup_epochs")),
        "linear area": tuple(crop.scale),
    }  # fmt: skip


@pytest.mark.parametrize("words", PAPER)
def test_every_setting_is_the_papers_or_a_known_deviation(words):
    wanted, ours = {"devices": 1, "image_size": None, **PAPER[words]}, settings(words)
    assert ours.keys() == wanted.keys()
    known = {key: ours for (name, key), (ours, why) in DEVIATIONS.items() if name == words and why}
    assert {key: value for key, value in ours.items() if value != wanted[key]} == known


def test_the_presets_are_the_recipes_views():
    for preset, name in (("multicrop4", "ressl_multicrop4"), ("multicrop5", "ressl_multicrop5"),
                         ("two_views", "ressl_2x")):  # fmt: skip
        crops = read([{"preset": preset}]).crops
        theirs = data.view_recipe(finished(f"imagenet/{name}")).crops
        assert [(c.role, c.crop_size, view(c)) for c in crops] == [
            (c.role, c.crop_size, view(c)) for c in theirs
        ]
    assert len(PRESETS["multicrop5"]) == 6


@pytest.mark.parametrize("name", ["cifar/ressl_solo", "imagenet-100/ressl_solo"])
def test_solo_learns_own_recipes_say_nothing_new(name):
    """Bicubic, its statistics, the student's crops for the linear classifier: as in 0.1.0."""
    cfg = finished(name)
    keys = ("statistics", "interpolation", "linear_area")
    assert [cfg.data[key] for key in keys] == ["solo", "bicubic", None]
    assert not cfg.batchnorm.permute and cfg.batchnorm.groups == 0


def test_the_papers_statistics_are_the_run_s_for_its_other_methods_too():
    """Tables 1 and 2 on CIFAR-100, Tiny ImageNet by its own name: a word on the command line."""
    for name, dataset in (("cifar", "cifar100"), ("tiny-imagenet", "tiny-imagenet")):
        cfg = finished(f"{name}/ressl data.dataset={dataset} method=simclr")
        wanted = [w["statistics"] for n, w in PAPER.items() if dataset in n]
        assert [data.mean_std(cfg)] == wanted


def test_swavs_row_of_table_7_is_its_authors_run():
    """facebookresearch/swav, scripts/swav_200ep_bs256_pretrain.sh."""
    cfg = finished(SWAV)
    assert (cfg.method, cfg.backbone.name, cfg.max_epochs) == ("swav", "resnet50", 200)
    assert OmegaConf.to_container(cfg.method_kwargs) == {
        "proj_hidden_dim": 2048, "proj_output_dim": 128, "num_prototypes": 3000,
        "temperature": 0.1, "sk_epsilon": 0.05, "sk_iters": 3, "queue_size": 3840,
        "epoch_queue_starts": 15, "freeze_prototypes_epochs": 1,
    }  # fmt: skip
    optimizer, schedule = cfg.optimizer, cfg.scheduler
    assert (optimizer.name, optimizer.batch_size * len(cfg.devices)) == ("lars", 256)
    assert (optimizer.lr, optimizer.weight_decay) == (0.6, 1e-6)
    assert (schedule.name, schedule.warmup_epochs, schedule.min_lr) == ("warmup_cosine", 0, 0.0006)
    assert cfg.sync_batchnorm
    crops = [(c.crop_size, c.area, c.brightness, c.hue) for c in data.view_recipe(cfg).crops]
    assert crops == 2 * [(224, (0.14, 1.0), 0.8, 0.2)] + 6 * [(96, (0.05, 0.14), 0.8, 0.2)]


# The first line: a table, a row, a column and its number; or beside which; or that there is none.
HEAD = re.compile(r"# (Beside )?Table (\d+), row ([^,]+), column ([^,:(]+?)(?:: | \()([\d.]+)\b")
NONE = "# In no table of the paper: "


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in ("pretrain", "linear") for n in config.recipes(k)]
)
def test_a_recipe_opens_with_its_place_in_the_paper(kind, name):
    file = config.find(name, kind)
    first = file.read_text().splitlines()[0]
    assert file.with_suffix(".sh").read_text().splitlines()[1] == first
    if first.startswith(NONE):
        assert name.split("/")[0] in ("digits", "imagenet-100")
        return
    beside, table, row, column, number = HEAD.match(first).groups()
    plain = lambda text: re.sub(r"\W", "", text).lower()
    values = {plain(key): value for key, value in tables()[int(table)].values[row].items()}
    assert values[plain(column)] == float(number)
    assert bool(beside) == (kind == "pretrain" and name not in {*PAPER, SWAV})
