"""Every key that a config may have, with its type and its default; without one it is required.

Names and defaults are those of solo-learn's main branch; a line marked `+` is the plugin's
addition, whose default changes nothing, but for the four that are `auto`: `precision` and
`performance.capture` go by the machine, `backbone.stem` and `data.backend` by the images. Keys of
Lightning's `Trainer` may stand at the top level too, as in the host.

A key's bounds stand beside its default. An upper one is often no limit of the method: beyond, a
number is a slip of the finger, which would cost the machine its memory without a word.
"""

# ruff: noqa: RUF009 (key() is dataclasses.field)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from ressl_plugin.config.kinds import (
    COLDEST,
    LONGEST_QUEUE,
    NULL,
    WIDTH,
    Kind,
    is_number,
    number,
    one_of,
    whole,
)

MISSING = "???"  # OmegaConf's mark for "must be given"
LARGEST_IMAGE = 8192  # pixels a side
MAX_PIXELS = 178_956_970  # of a file: beyond, Pillow takes it for an attack (decoded it is 0.5 GB)


def key(default=MISSING, kind: Kind | None = None, trains: bool = True, instead: str = ""):
    """A key of a config.

    Args:
        default: the value, or what makes it (a class).
        kind: what it may be, where its type is not enough.
        trains: whether it reaches a weight; where not, a resumed run may have another value.
        instead: of a key of the host's that nothing here reads: what does the same.
    """
    made = {"default_factory": default} if callable(default) else {"default": default}
    return field(**made, metadata={"kind": kind, "trains": trains, "instead": instead})


def walk(cls, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """(dotted key, field) of every key of a section, sections themselves among them."""
    for f in fields(cls):
        yield prefix + f.name, f
        section = globals().get(f.type)  # annotations are strings
        if is_dataclass(section):
            yield from walk(section, f"{prefix}{f.name}.")


_COUNT, _NATURAL, _NOT_NEGATIVE = whole(1), whole(0), number(0)
_SEED = whole(0, 2**32 - 1)  # as numpy's generator takes it
PRECISIONS = (
    "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true",
    "32", "16", "bf16", "64", 32, 16, 64,
)  # fmt: skip
_FRACTION = Kind(
    "a share above 0 and up to 1, or -1 for all the data",
    lambda v: is_number(v) and (v == -1 or 0 < v <= 1),
)
_AREA = Kind(
    "[least, most] with 0 < least <= most <= 1", lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1
)
_EPOCHS = Kind("a list of epochs, from 0 on", lambda v: all(type(e) is int and e >= 0 for e in v))
# a shell's variable that is not set would be the current directory
_PATH = Kind("a path, which is not empty", lambda v: v != "")
_RESUME = Kind(
    "true, false, or the path of a run", lambda v: isinstance(v, (bool, str, Path)) and v != ""
)
_SCHEDULERS = ("warmup_cosine", "step", "none")


@dataclass
class Backbone:
    name: str = MISSING  # resnet18, resnet50, vit_tiny, ... or timm:<model>
    kwargs: dict[str, Any] = key(dict)
    # + auto (by the size of the crops; in a run of 0.1.0 the host's choice), paper (3x3 stride 1
    #   padding 1, no pool), solo (padding 2), imagenet (7x7 stride 2 and max pool); resnets only
    stem: str = key("auto", one_of("auto", "paper", "solo", "imagenet"))


@dataclass
class ReSSLKwargs:
    proj_hidden_dim: int = key(kind=WIDTH)
    proj_output_dim: int = key(kind=WIDTH)  # D
    temperature_q: float = key(kind=number(COLDEST))  # tau_s, the student's
    # tau_t, the teacher's: smaller, so that the target is sharper
    temperature_k: float = key(kind=number(COLDEST))
    queue_size: int = key(65536, whole(1, LONGEST_QUEUE))  # K
    proj_batchnorm: bool = False  # + BatchNorm between the head's first linear layer and its ReLU
    predictor: bool = False  # + the journal version's predictor on the student
    pred_hidden_dim: int = key(4096, WIDTH)  # +
    # + InfoNCE warm-up: epochs over which the loss goes over to ReSSL's
    infonce_epochs: int = key(0, _NATURAL)
    infonce_temperature: float = key(0.2, number(COLDEST))  # + of NT-Xent, too
    # + weight, beside that loss, of SimCLR's between the contrastive views
    nt_xent_weight: float = key(0.0, number(0))


@dataclass
class BatchNorm:
    # + statistics within this many groups of a batch; 0 or 1: the whole batch
    groups: int = key(0, _NATURAL)
    mode: str = key("group", one_of("group", "shuffle", "sync"))  # + shuffle: over ranks, teacher
    # + with groups: the teacher's batch is in another order, so that an image's two views are not
    #   normalised with the same others (the reference's shuffled batch norm on one device)
    permute: bool = False


@dataclass
class Momentum:
    base_tau: float = 0.99  # m of Eq. 6; constant when base_tau == final_tau
    final_tau: float = 1.0
    classifier: bool | None = False


@dataclass
class Data:
    dataset: str = MISSING
    # a run that goes on compares what its data are, not where they lie
    # + one place that holds both: sets the next two
    path: str | None = key(None, _PATH | NULL, trains=False)
    train_path: str | None = key(None, _PATH | NULL, trains=False)
    val_path: str | None = key(None, _PATH | NULL, trains=False)
    format: str = key("image_folder", one_of("image_folder", "dali", "h5", "npz"))  # + npz
    num_workers: int = key(4, whole(0, 1024), trains=False)
    no_labels: bool = False
    fraction: float = key(-1, _FRACTION)
    num_classes: int | None = None
    num_large_crops: int | None = None
    num_small_crops: int | None = None
    # + who draws the views
    backend: str = key("auto", one_of("auto", "host", "dali", "batched"))
    # + side of the images kept in memory / evaluated on
    image_size: int | None = key(None, whole(1, LARGEST_IMAGE) | NULL)
    # + mean and std where an entry gives none: solo-learn's, or the paper's
    statistics: str = key("solo", one_of("solo", "paper"))
    # + of views that name none, of fitting; solo-learn's is bicubic
    interpolation: str = key("bicubic", one_of("bicubic", "bilinear"))
    # + areas of the crops that a linear classifier is trained on; null: the contrastive view's
    #   (of images of 160 pixels or more always .08 to 1, the paper's)
    linear_area: list[float] | None = key(None, NULL | _AREA, trains=False)
    download: bool = key(False, trains=False)  # + let torchvision fetch cifar and stl10
    check: bool = key(True, trains=False)  # + look for unreadable images before training
    max_pixels: int = key(MAX_PIXELS, whole(1, MAX_PIXELS), trains=False)  # + of an image file
    exif: bool = False  # + turn photographs as their EXIF orientation says; the paper's are not


@dataclass
class Optimizer:
    name: str = key(kind=one_of("sgd", "lars", "adam", "adamw"))
    batch_size: int = key(kind=_COUNT)  # a device
    # for 256 images: multiplied by batch x devices x nodes x accumulated batches / 256
    lr: float = key(kind=_NOT_NEGATIVE)
    classifier_lr: float = key(0.1, _NOT_NEGATIVE)
    weight_decay: float = key(0.0, _NOT_NEGATIVE)
    exclude_bias_n_norm_wd: bool = False
    token_learner: Any | None = key(None, instead="leave it out")
    layer_decay: float = key(0.0, instead="leave it out; pre-training has one rate for all layers")
    kwargs: dict[str, Any] = key(dict)


@dataclass
class Scheduler:
    name: str = key("warmup_cosine", one_of(*_SCHEDULERS))
    warmup_epochs: float = key(10, _NOT_NEGATIVE)
    warmup_start_lr: float = key(3e-5, _NOT_NEGATIVE)
    min_lr: float = key(0.0, _NOT_NEGATIVE)
    lr_decay_steps: list[int] | None = key(None, NULL | _EPOCHS)
    interval: str = key("step", one_of("step", "epoch"))


@dataclass
class LinearScheduler(Scheduler):
    name: str = key("warmup_cosine", one_of(*_SCHEDULERS, "reduce", "exponential"))


@dataclass
class KNN:
    enabled: bool = False
    k: int = key(20, _COUNT)
    distance_func: str = key("euclidean", one_of("cosine", "euclidean"))
    every: int = key(1, _COUNT)  # + epochs between two online evaluations


@dataclass
class Quality:  # +
    # RankMe, alpha-ReQ, uniformity and alignment, without labels; of ReSSL
    enabled: bool = False
    every: int = key(1, _COUNT)  # epochs between two evaluations


@dataclass
class Performance:
    disable_channel_last: bool = False
    compile: bool = False  # + torch.compile student and teacher
    # + the whole step, views to teacher, as one CUDA graph; auto: on a GPU, where it can be. A run
    # may go on with or without
    capture: Any = key("auto", one_of("auto", True, False), trains=False)
    # + steps between two writes of step metrics
    log_every: int = key(50, _COUNT, trains=False)


@dataclass
class Checkpoint:
    enabled: bool = True
    dir: str = key("trained_models", instead="run_dir=… is where a run goes")
    frequency: int = key(1, _COUNT)  # epochs
    every_n_steps: int = key(0, _NATURAL)  # + also every so many steps; 0: only at epochs
    keep_prev: bool = key(False, instead="the last checkpoint and the one before are kept")
    # + also keep the epoch that is best by this online metric, as best.ckpt
    best: str | None = key(
        None, NULL | one_of("knn", "linear", "rankme", "alpha_req", "uniformity")
    )


@dataclass
class AutoResume:
    enabled: bool = key(False, instead="resume=true continues a run")
    max_hours: float = 36


@dataclass
class Wandb:
    enabled: bool = False
    entity: str | None = None
    project: str = "solo-learn"
    offline: bool = False


@dataclass
class Dali:
    device: str = key("gpu", one_of("gpu", "cpu"))
    encode_indexes_into_labels: bool = key(False, instead="every batch has its images' indexes")


@dataclass
class AutoUmap:
    enabled: bool = key(False, instead="`ressl figures RUN` draws the features")
    dir: str = "auto_umap"
    frequency: int = 1


@dataclass
class Faults:
    non_finite: str = key("stop", one_of("stop", "skip"))  # + stop, or skip the step and count it
    timeout: float = key(30.0, _NOT_NEGATIVE)  # + minutes that a step may take; 0: any number


@dataclass
class Config:
    name: str = key("ressl", trains=False)
    method: str = "ressl"
    seed: int = key(5, _SEED)
    max_epochs: int = key(kind=whole(1, 10**7))
    devices: Any = 1
    num_nodes: int = key(1, _COUNT)
    accelerator: str = "auto"
    strategy: str | None = None
    # as Lightning; null is 32-true. + auto: bf16-mixed where the machine multiplies bfloat16
    #   itself, else 32-true; said and stored when a run begins
    precision: Any = key("auto", one_of("auto", *PRECISIONS) | NULL)
    sync_batchnorm: bool = False
    accumulate_grad_batches: int = key(1, _COUNT)
    backbone: Backbone = key(Backbone)
    method_kwargs: dict[str, Any] = key(dict)  # ReSSLKwargs for ressl
    batchnorm: BatchNorm = key(BatchNorm)
    momentum: Momentum = key(Momentum)
    data: Data = key(Data)
    augmentations: list[Any] = key(list)  # read by views.recipe
    optimizer: Optimizer = key(Optimizer)
    scheduler: Scheduler = key(Scheduler)
    knn_eval: KNN = key(KNN, trains=False)
    quality_eval: Quality = key(Quality, trains=False)
    performance: Performance = key(Performance)
    checkpoint: Checkpoint = key(Checkpoint, trains=False)
    auto_resume: AutoResume = key(AutoResume, trains=False)
    resume_from_checkpoint: str | None = key(None, _PATH | NULL, trains=False)
    wandb: Wandb = key(Wandb, trains=False)
    dali: Dali = key(Dali)
    auto_umap: AutoUmap = key(AutoUmap)
    faults: Faults = key(Faults, trains=False)
    debug_augmentations: bool = key(False, instead="`ressl views CONFIG` draws the views")
    run_dir: str | None = key(None, _PATH | NULL, trains=False)  # + default runs/<name>
    resume: Any = key(False, _RESUME | NULL, trains=False)  # + true: continue run_dir; or a path
    resume_force: bool = key(False, trains=False)  # + continue although the config differs
    profile: bool = key(False, trains=False)  # + write a table of where the time goes


@dataclass
class ReSSLConfig(Config):
    method_kwargs: ReSSLKwargs = key(ReSSLKwargs)


@dataclass
class MethodConfig:
    """What ReSSL itself reads, beside what the host's classes do."""

    method_kwargs: ReSSLKwargs = key(ReSSLKwargs)
    backbone: Backbone = key(Backbone)
    batchnorm: BatchNorm = key(BatchNorm)
    momentum: Momentum = key(Momentum)
    knn_eval: KNN = key(KNN)
    quality_eval: Quality = key(Quality)
    performance: Performance = key(Performance)
    faults: Faults = key(Faults)


@dataclass
class LinearConfig:
    """A linear recipe, in the schema of the host's main_linear.py."""

    name: str = "linear"
    pretrained_feature_extractor: str = MISSING  # a run directory or a checkpoint
    pretrain_method: str | None = None  # must be the run's; null takes the run's
    seed: int = key(5, _SEED)
    max_epochs: int = key(100, whole(1, 10**7))
    devices: Any = 1
    accelerator: str = "auto"
    strategy: str | None = None
    precision: Any = key("32-true", one_of(*PRECISIONS) | NULL)  # as Lightning; null is 32-true
    sync_batchnorm: bool = False
    accumulate_grad_batches: int = key(1, _COUNT)
    finetune: bool = False
    backbone: Backbone = key(Backbone)
    data: Data = key(Data)
    optimizer: Optimizer = key(Optimizer)
    scheduler: LinearScheduler = key(LinearScheduler)
    performance: Performance = key(Performance)
    checkpoint: Checkpoint = key(Checkpoint, trains=False)
    auto_resume: AutoResume = key(AutoResume, trains=False)
    wandb: Wandb = key(Wandb, trains=False)
    auto_augment: bool = False
    label_smoothing: float = key(0.0, number(0, 1))
    mixup: float = 0.0
    cutmix: float = 0.0
