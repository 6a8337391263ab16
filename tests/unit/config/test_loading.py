"""Configs: every recipe is complete, every mistake is named."""

import importlib.util
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ressl_plugin import config
from ressl_plugin.train import pretrain
from ressl_plugin.utils.errors import UserError

MINIMAL = """
method: ressl
backbone: {name: resnet18}
method_kwargs: {proj_hidden_dim: 64, proj_output_dim: 32, temperature_q: 0.1, temperature_k: 0.04}
data: {dataset: custom, train_path: somewhere}
optimizer: {name: sgd, batch_size: 32, lr: 0.1}
max_epochs: 2
"""


@pytest.fixture
def minimal(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(MINIMAL)
    return str(file)


def finished(target, *overrides):
    return config.finish(config.load(target, list(overrides)))


def test_defaults_are_the_hosts(minimal):
    cfg = finished(minimal)
    assert cfg.method_kwargs.queue_size == 65536
    assert (cfg.momentum.base_tau, cfg.momentum.final_tau) == (0.99, 1.0)
    assert cfg.scheduler.warmup_start_lr == 3e-5
    assert cfg.batchnorm.groups == 0


def test_known_keys_need_no_plus(minimal):
    cfg = finished(minimal, "devices=2", "+profile=true", "optimizer.kwargs.nesterov=true",
                   "limit_train_batches=3")  # fmt: skip
    assert (cfg.devices, cfg.profile, cfg.limit_train_batches) == (2, True, 3)
    assert cfg.optimizer.kwargs.nesterov is True


def test_a_config_made_for_the_host_works_unchanged(tmp_path, caplog):
    """The shape of solo-learn's own ressl.yaml: a group for the views, one for wandb, dead keys."""
    (tmp_path / "augmentations").mkdir()
    (tmp_path / "augmentations" / "pair.yaml").write_text(
        "- {rrc: {enabled: True, crop_min_scale: 0.08, crop_max_scale: 1.0}, crop_size: 32,"
        " num_crops: 2}\n"
    )
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "team.yaml").write_text("enabled: False\nentity: None\nproject: p\n")
    (tmp_path / "theirs.yaml").write_text(
        "defaults:\n  - _self_\n  - augmentations: pair.yaml\n  - wandb: team.yaml\n"
        "  - override hydra/hydra_logging: disabled\n  - override hydra/job_logging: disabled\n"
        "hydra: {output_subdir: null, run: {dir: .}}\n"
        + MINIMAL.replace("temperature_q", "base_tau_momentum: 0.9, momentum_classifier: ,"
                          " temperature_q")
        + "auto_resume: {enabled: True}\ndevices: [0]\nsync_batchnorm: True\naccelerator: gpu\n"
        "strategy: ddp\nprecision: 16-mixed\n"
    )  # fmt: skip
    cfg = finished(str(tmp_path / "theirs.yaml"))
    assert (len(cfg.augmentations), cfg.devices, cfg.wandb.project) == (1, [0], "p")
    assert "base_tau_momentum" in caplog.text and "no effect" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "unknown key optimizer.lrr; did you mean optimizer.lr"),
        ("+optimizer.lrr=1", "unknown key optimizer.lrr; did you mean optimizer.lr"),
        ("max_epoch=1", "did you mean max_epochs"),
        ("method_kwargs.queue_sise=3", "did you mean method_kwargs.queue_size"),
        ("optimizer.lr=fast", "optimizer.lr='fast'"),
        ("max_epochs=0", "max_epochs=0: must be a whole number >= 1"),
        ("~max_epochs", "max_epochs must be given"),
        ("~method_kwargs.temperature_q", "temperature_q must be given"),
        ("method_kwargs.temperature_k=0.2", "temperature_k=0.2 (tau_t) must be below"),
        ("method_kwargs.queue_size=0", "queue_size=0"),
        ("momentum.base_tau=2", "momentum.base_tau=2"),
        ("data.backend=bached", "did you mean batched"),
        ("backbone.stem=papr", "did you mean paper"),
        ("optimizer.batch_size=-1", "optimizer.batch_size=-1"),
        ("scheduler.name=cosine", "scheduler.name='cosine'"),
        ("precision=bf16mixed", "did you mean bf16-mixed"),
        ("precision=8", "precision=8: must be one of"),
        ("resume=1", "resume=1: must be true, false, or the path"),
        ("resume=[a]", "true, false, or the path"),
        ("+logger=true", "config: logger: every run sets this one itself"),
        ("callbacks=[]", "config: callbacks: every run"),
        ("+plugins=[]", "config: plugins: every run"),
        ("+enable_checkpointing=true", "config: enable_checkpointing: every run"),
        ("+default_root_dir=here", "config: default_root_dir: every run"),
        ("seed=4294967296", "seed=4294967296: must be a whole number >= 0 and <= 4294967295"),
        ("seed=-1", "seed=-1: must be a whole number >= 0"),
        ("max_epochs=9223372036854775808", "max_epochs=9223372036854775808: must be a whole"),
        ("optimizer.lr=inf", "optimizer.lr=inf: must be a number >= 0"),
        ("optimizer.classifier_lr=-1", "optimizer.classifier_lr=-1"),
        ("optimizer.classifier_lr=nan", "optimizer.classifier_lr=nan"),
        ("optimizer.kwargs={momentum: nan}", "optimizer.kwargs.momentum=nan: must be a number"),
        ("scheduler.warmup_start_lr=-1", "scheduler.warmup_start_lr=-1.0: must be a number >= 0"),
        ("scheduler.min_lr=nan", "scheduler.min_lr=nan: must be a number >= 0"),
        ("scheduler.min_lr=-0.1", "scheduler.min_lr=-0.1: must be a number >= 0"),
        ("scheduler.warmup_epochs=inf", "scheduler.warmup_epochs=inf"),
        ("scheduler.name=step", "scheduler.lr_decay_steps must say after which epochs"),
        ("gradient_clip_val=-1", "gradient_clip_val=-1: must be a number >= 0"),
        ("gradient_clip_val=nan", "gradient_clip_val=nan"),
        ("gradient_clip_val=true", "gradient_clip_val=True: must be a number >= 0"),
        ("limit_train_batches=0", "limit_train_batches=0: nothing would be trained"),
        ("max_steps=0", "max_steps=0: a run ends with an epoch, max_epochs says"),
        ("data.val_path=", "data.val_path='': must be a path, which is not empty, or null"),
        ("run_dir=", "run_dir='': must be a path, which is not empty, or null"),
        ("resume=", "resume='': must be true, false, or the path of a run"),
        ("data.fraction=nan", "data.fraction=nan"),
        ("data.fraction=0", "data.fraction=0.0: must be a share above 0 and up to 1, or -1"),
        ("data.fraction=-0.5", "data.fraction=-0.5: must be a share above 0"),
        ("data.fraction=1.5", "data.fraction=1.5: must be a share above 0"),
        ("data.image_size=100000000", "must be a whole number >= 1 and <= 8192"),
        ("data.num_workers=100000", "must be a whole number >= 0 and <= 1024"),
        ("data.linear_area=[0.5, 0.1]", "data.linear_area=[0.5, 0.1]: must be null, or [least,"),
        ("method_kwargs.temperature_k=1e-40", "temperature_k=1e-40: must be a number >= 0.0001"),
        ("method_kwargs.temperature_q=inf", "method_kwargs.temperature_q=inf"),
        ("method_kwargs.infonce_temperature=1e-300", "must be a number >= 0.0001"),
        ("method_kwargs.infonce_temperature=nan", "method_kwargs.infonce_temperature=nan"),
        ("method_kwargs.queue_size=1000000000000", "must be a whole number >= 1 and <="),
        ("method_kwargs.proj_hidden_dim=10000000000", "must be a whole number >="),
        ("checkpoint=false", "checkpoint=False: a mapping is expected; checkpoint.enabled=false"),
        ("augmentations=mine", "augmentations=mine: a list is expected"),
        ("optimizer=3", "optimizer=3: a mapping is expected"),
        ("check_val_every_n_epoch=0", "check_val_every_n_epoch=0: must be a whole number >= 1"),
        ("limit_val_batches=1.5", "limit_val_batches=1.5: must be a share"),
        ("profiler=x", "profiler='x': must be one of simple, advanced"),
        ("+barebones=true", "config: barebones: every run"),
        ("precision=32.0", "precision=32.0: must be one of"),
        ("name=${name}", "Recursive interpolation"),
        ("max_epochs=1000000000", "max_epochs=1000000000: must be a whole number >= 1 and <="),
        ("optimizer.kwargs.foo=1", "optimizer.kwargs.foo: sgd has dampening"),
        ("optimizer.kwargs.momentun=1", "did you mean momentum?"),
        ("optimizer.kwargs.lr=1", "optimizer.kwargs.lr: set optimizer.lr"),
        ("optimizer.kwargs={fused: true, foreach: true}", "fused and foreach cannot both"),
        ("scheduler.lr_decay_steps=[-1]", "scheduler.lr_decay_steps=[-1]: must be null, or a"),
        ("scheduler.lr_decay_steps=[[]]", "scheduler.lr_decay_steps=[[]]: must be null, or a list"),
        ("hydra=5", "mine.yaml"),
        ("a={", "mine.yaml"),
        ("=3", "mine.yaml"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(minimal, override, message):
    with pytest.raises(UserError) as error:
        finished(minimal, override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    ["data.fraction=-1", "data.fraction=1.0", "data.fraction=0.01", "gradient_clip_val=null",
     "gradient_clip_val=0.5", "seed=4294967295", "scheduler.warmup_start_lr=0",
     "method_kwargs.temperature_k=0.0001", "limit_train_batches=0.5", "max_steps=-1"],
)  # fmt: skip
def test_values_at_their_limits_are_taken(minimal, override):
    assert finished(minimal, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run_dir=/tmp/dönnées", "quote the value: 'run_dir=\"/tmp/dönnées\"'"),
        ("+name=a#b", "quote the value: '+name=\"a#b\"'"),
        ('name=é"', 'quote the value: \'name="é\\""\''),
        ("run_dir=a=b", "quote the value: 'run_dir=\"a=b\"'"),
        ("optimizer.kwargs={momentum 0.9", "check brackets and quotes"),
        ("seed", "override seed: not in Hydra's grammar"),
    ],
)
def test_what_hydras_grammar_does_not_have_is_to_be_quoted(minimal, override, message):
    with pytest.raises(UserError) as error:
        config.load(minimal, [override])
    assert message in str(error.value) and f"override {override}: " in str(error.value)
    assert "Lexer" not in str(error.value) and "hydra.cc" not in str(error.value)
    if "quote the value: '" in message:
        quoted = message.split("quote the value: '")[1][:-1]
        key, value = override.lstrip("+").split("=", 1)
        assert config.load(minimal, [quoted])[key] == value


@pytest.mark.parametrize("name", ["mine.yml", "mine.txt", "mine"])
def test_a_config_by_another_ending_is_to_be_renamed(tmp_path, name):
    (tmp_path / name).write_text(MINIMAL)
    with pytest.raises(UserError, match=rf"{name}: Hydra reads files that end in \.yaml; rename"):
        config.load(str(tmp_path / name))


def test_missing_files_and_recipes():
    with pytest.raises(UserError, match=r"no such recipe; did you mean cifar/ressl\?"):
        config.load("cifra/ressl")


@pytest.mark.parametrize("text", ["a: [1", "a: !!python/object/apply:os.system ['true']", "- 1"])
def test_a_broken_or_hostile_yaml_is_refused(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        config.finish(config.load(str(tmp_path / "bad.yaml")))


@pytest.mark.parametrize("name", config.recipes())
def test_every_recipe_is_complete(name):
    cfg = finished(name)
    assert name.partition("/")[2].startswith(cfg.method)
    head = config.find(name).read_text().splitlines()[0]
    assert head.startswith("# ")
    assert config.find(name).with_suffix(".sh").is_file()


def test_one_path_is_the_place_of_both_splits(minimal):
    cfg = finished(minimal, "data.path=both.npz")
    assert (cfg.data.train_path, cfg.data.val_path, cfg.data.path) == ("both.npz", "both.npz", None)
    with pytest.raises(UserError, match=r"data\.path=both\.npz and data\.val_path: "):
        finished(minimal, "data.path=both.npz", "data.val_path=other.npz")
    Path(minimal).write_text(MINIMAL.replace("train_path: somewhere", "path: both.npz"))
    with pytest.raises(UserError, match=r"data\.path=both\.npz and data\.val_path: "):
        finished(minimal, "data.val_path=other.npz")
    cfg = finished(minimal, "data.path=null", "data.train_path=other.npz")
    assert cfg.data.train_path == "other.npz"


def test_any_string_can_be_quoted():
    for run in ('a/temperature_k=0.04, seed=1 ("one")/a\\b/best.ckpt', 'a\\"b\\', "a'b\\\\"):
        word = config.quoted("pretrained_feature_extractor", run)
        assert config.load("cifar/ressl", [word], "linear").pretrained_feature_extractor == run


def test_finishing_twice_changes_nothing(minimal):
    once = finished(minimal)
    assert OmegaConf.to_container(config.finish(once)) == OmegaConf.to_container(once)


def test_a_control_character_in_a_key_does_not_break_the_line(minimal):
    cfg = config.load(minimal)
    cfg.dali = {"\r": None}
    with pytest.raises(UserError) as error:
        config.finish(cfg)
    assert len(str(error.value).splitlines()) == 1


def test_wandb_that_is_not_installed_is_named_with_both_ways_out(minimal, tmp_path, monkeypatch):
    """solo-learn's own ressl.yaml enables it."""
    found = importlib.util.find_spec
    absent = lambda name, *more: None if name == "wandb" else found(name, *more)
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    cfg = finished(minimal, "wandb.enabled=true")
    with pytest.raises(UserError) as error:
        pretrain.loggers(cfg, tmp_path)
    assert "wandb.enabled=true (false does without)" in str(error.value)
    assert "pip install 'ressl_plugin[wandb]'" in str(error.value)
    assert len(pretrain.loggers(finished(minimal, "wandb.enabled=false"), tmp_path)) == 2
