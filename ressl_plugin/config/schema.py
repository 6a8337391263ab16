"""Every key that a config may have, with its type and its default.

Names and defaults are those of solo-learn's main branch; a line marked `+` is the plugin's
addition, with a default that changes nothing. Keys of Lightning's `Trainer` may stand at the
top level too, as in the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MISSING = "???"  # OmegaConf's mark for "must be given"
LARGEST_IMAGE = 8192  # pixels a side; beyond, a slip of the finger


@dataclass
class Backbone:
    name: str = MISSING  # resnet18, resnet50, vit_tiny, ... or timm:<model>
    kwargs: dict[str, Any] = field(default_factory=dict)
    # + auto (by the size of the crops; in a run of 0.1.0 the host's choice), paper (3x3 stride 1
    #   padding 1, no pool), solo (padding 2), imagenet (7x7 stride 2 and max pool); resnets only
    stem: str = "auto"


@dataclass
class ReSSLKwargs:
    proj_hidden_dim: int = MISSING
    proj_output_dim: int = MISSING  # D
    temperature_q: float = MISSING  # tau_s, the student's
    temperature_k: float = MISSING  # tau_t, the teacher's: smaller, so that the target is sharper
    queue_size: int = 65536  # K
    proj_batchnorm: bool = False  # + BatchNorm between the head's first linear layer and its ReLU
    predictor: bool = False  # + the journal version's predictor on the student
    pred_hidden_dim: int = 4096  # +
    infonce_epochs: int = 0  # + InfoNCE warm-up: epochs over which the loss goes over to ReSSL's
    infonce_temperature: float = 0.2  # +


@dataclass
class BatchNorm:
    groups: int = 0  # + statistics within this many groups of a batch; 0 or 1: the whole batch
    mode: str = "group"  # + group, shuffle (over ranks, teacher) or sync
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
    train_path: str | None = None
    val_path: str | None = None
    format: str = "image_folder"  # image_folder, dali, h5, + npz
    num_workers: int = 4
    no_labels: bool = False
    fraction: float = -1
    num_classes: int | None = None
    num_large_crops: int | None = None
    num_small_crops: int | None = None
    backend: str = "auto"  # + who draws the views: auto, host, dali, batched
    image_size: int | None = None  # + side of the images kept in memory / evaluated on
    statistics: str = "solo"  # + mean and std where an entry gives none: solo-learn's, or paper
    interpolation: str = "bicubic"  # + of views that name none, of fitting; solo-learn's is bicubic
    # + areas of the crops that a linear classifier is trained on; null: the contrastive view's
    #   (of images of 160 pixels or more always .08 to 1, the paper's)
    linear_area: list[float] | None = None
    download: bool = False  # + let torchvision fetch cifar and stl10
    check: bool = True  # + look for unreadable images before training
    exif: bool = False  # + turn photographs as their EXIF orientation says; the paper's are not


@dataclass
class Crop:
    enabled: bool = True
    crop_min_scale: float = 0.08
    crop_max_scale: float = 1.0
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # +


@dataclass
class Optimizer:
    name: str = MISSING
    batch_size: int = MISSING  # a device
    lr: float = MISSING  # for a batch of 256: multiplied by batch x devices x nodes / 256
    classifier_lr: float = 0.1
    weight_decay: float = 0.0
    exclude_bias_n_norm_wd: bool = False
    token_learner: Any | None = None
    layer_decay: float = 0.0
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Scheduler:
    name: str = "warmup_cosine"
    warmup_epochs: float = 10
    warmup_start_lr: float = 3e-5
    min_lr: float = 0.0
    lr_decay_steps: list[int] | None = None
    interval: str = "step"


@dataclass
class KNN:
    enabled: bool = False
    k: int = 20
    distance_func: str = "euclidean"
    every: int = 1  # + epochs between two online evaluations


@dataclass
class Performance:
    disable_channel_last: bool = False
    compile: bool = False  # + torch.compile student and teacher
    log_every: int = 50  # + steps between two writes of step metrics


@dataclass
class Checkpoint:
    enabled: bool = True
    dir: str = "trained_models"
    frequency: int = 1  # epochs
    every_n_steps: int = 0  # + also every so many steps; 0: only at epochs
    keep_prev: bool = False


@dataclass
class AutoResume:
    enabled: bool = False
    max_hours: float = 36


@dataclass
class Wandb:
    enabled: bool = False
    entity: str | None = None
    project: str = "solo-learn"
    offline: bool = False


@dataclass
class Dali:
    device: str = "gpu"
    encode_indexes_into_labels: bool = False


@dataclass
class AutoUmap:
    enabled: bool = False
    dir: str = "auto_umap"
    frequency: int = 1


@dataclass
class Faults:
    non_finite: str = "stop"  # + stop, or skip the step and count it


@dataclass
class Config:
    name: str = "ressl"
    method: str = "ressl"
    seed: int = 5
    max_epochs: int = MISSING
    devices: Any = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    strategy: str | None = None
    precision: Any = "32-true"
    sync_batchnorm: bool = False
    accumulate_grad_batches: int = 1
    backbone: Backbone = field(default_factory=Backbone)
    method_kwargs: dict[str, Any] = field(default_factory=dict)  # ReSSLKwargs for ressl
    batchnorm: BatchNorm = field(default_factory=BatchNorm)
    momentum: Momentum = field(default_factory=Momentum)
    data: Data = field(default_factory=Data)
    augmentations: list[Any] = field(default_factory=list)  # read by views.recipe
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    knn_eval: KNN = field(default_factory=KNN)
    performance: Performance = field(default_factory=Performance)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    auto_resume: AutoResume = field(default_factory=AutoResume)
    resume_from_checkpoint: str | None = None
    wandb: Wandb = field(default_factory=Wandb)
    dali: Dali = field(default_factory=Dali)
    auto_umap: AutoUmap = field(default_factory=AutoUmap)
    faults: Faults = field(default_factory=Faults)
    debug_augmentations: bool = False
    run_dir: str | None = None  # + default runs/<name>
    resume: Any = False  # + true: continue run_dir; or a path
    resume_force: bool = False  # + continue although the config differs
    profile: bool = False  # + write a table of where the time goes


@dataclass
class LinearConfig:
    """A linear recipe, in the schema of the host's main_linear.py."""

    name: str = "linear"
    pretrained_feature_extractor: str = MISSING  # a run directory or a checkpoint
    pretrain_method: str | None = None  # must be the run's; null takes the run's
    seed: int = 5
    max_epochs: int = 100
    devices: Any = 1
    accelerator: str = "auto"
    strategy: str | None = None
    precision: Any = "32-true"
    sync_batchnorm: bool = False
    accumulate_grad_batches: int = 1
    finetune: bool = False
    backbone: Backbone = field(default_factory=Backbone)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    performance: Performance = field(default_factory=Performance)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    auto_resume: AutoResume = field(default_factory=AutoResume)
    wandb: Wandb = field(default_factory=Wandb)
    auto_augment: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
