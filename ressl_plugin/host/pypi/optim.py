"""The main branch's optimizers and schedules for the models of 1.0.2."""

import math
from functools import partial

from omegaconf import DictConfig, OmegaConf
from solo.utils.lars import LARSWrapper
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, MultiStepLR, ReduceLROnPlateau

from ressl_plugin.host.defaults import choose


class WarmupCosine(LRScheduler):
    """Linear warm-up, then one cosine down to `eta_min`, in closed form.

    Step t of `warmup_epochs` = w and `max_epochs` = T: warmup_start_lr + t (lr - warmup_start_lr)
    / (w - 1) while t < w, then eta_min + (lr - eta_min) (1 + cos(pi (t - w) / (T - w))) / 2.
    The unit of w and T is whatever `step` is called for. The main branch computes the same
    recursively; where w is no whole number its recursion overshoots lr, this does not.
    It reaches lr at step w - 1, as in the host; ReSSL's (method/schedule.py) at w, as its authors'.
    """

    def __init__(self, optimizer, warmup_epochs, max_epochs, warmup_start_lr=0.0, eta_min=0.0):
        self.warmup_epochs = warmup_epochs
        self.max_epochs = max_epochs
        self.warmup_start_lr = warmup_start_lr
        self.eta_min = eta_min
        super().__init__(optimizer)

    def get_lr(self):
        step, warmup = self.last_epoch, self.warmup_epochs
        if step < warmup:
            part = min(1.0, step / max(warmup - 1, 1e-8))
            start = self.warmup_start_lr
            return [start + part * (lr - start) for lr in self.base_lrs]
        part = (step - warmup) / max(self.max_epochs - warmup, 1e-8)
        height = (1 + math.cos(math.pi * part)) / 2
        return [self.eta_min + height * (lr - self.eta_min) for lr in self.base_lrs]


OPTIMIZERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "lars": SGD}


def training_arguments(cfg: DictConfig) -> dict:
    """What every class of 1.0.2 is told about its training, LinearModel too."""
    return {
        "num_classes": cfg.data.num_classes,
        "max_epochs": cfg.max_epochs,
        "batch_size": cfg.optimizer.batch_size,
        "optimizer": cfg.optimizer.name,
        "lars": cfg.optimizer.name == "lars",
        "lr": cfg.optimizer.lr,
        "weight_decay": cfg.optimizer.weight_decay,
        "exclude_bias_n_norm": False,
        "extra_optimizer_args": OmegaConf.to_container(cfg.optimizer.kwargs, resolve=True),
        "scheduler": cfg.scheduler.name,
        "lr_decay_steps": cfg.scheduler.lr_decay_steps,
    }


def without_decay(groups: list[dict]) -> list[dict]:
    """Each group in two: matrices and kernels, then biases and norms with weight decay 0."""
    out = []
    for group in groups:
        parameters = list(group["params"])
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        if matrices:
            out.append({**group, "params": matrices})
        if vectors:
            plain = {**group, "params": vectors, "weight_decay": 0}
            if group.get("name"):
                plain["name"] = group["name"] + "_no_decay"
            out.append(plain)
    return out


def optimizer(model, groups: list[dict]):
    """`model.optimizer` by name over `groups`; "lars" is SGD inside the host's LARSWrapper."""
    cls = choose("optimizer.name", model.optimizer, OPTIMIZERS)
    kwargs = dict(model.extra_optimizer_args)
    lars = {}
    if model.optimizer == "lars":
        names = {"eta": "eta", "clip_lr": "clip", "exclude_bias_n_norm": "exclude_bias_n_norm"}
        lars = {names[key]: kwargs.pop(key) for key in list(kwargs) if key in names}
        lars["eps"] = kwargs.pop("eps", 1e-8)
    made = cls(groups, lr=model.lr, weight_decay=model.weight_decay, **kwargs)
    return LARSWrapper(made, **lars) if model.optimizer == "lars" else made


def warmup_cosine(model, made) -> dict:
    """Warm-up and cosine by the step or by the epoch (`scheduler.interval`)."""
    by_step = choose("scheduler.interval", model.scheduler_interval, {"step": True, "epoch": False})
    length = model.trainer.estimated_stepping_batches if by_step else model.max_epochs
    scheduler = WarmupCosine(
        made,
        warmup_epochs=model.warmup_epochs * length / model.max_epochs,
        max_epochs=length,
        warmup_start_lr=model.warmup_start_lr,
        eta_min=model.min_lr,
    )
    return {"scheduler": scheduler, "interval": model.scheduler_interval, "frequency": 1}


def configure(model, groups: list[dict], linear: bool = False):
    """What `configure_optimizers` returns on the main branch; `linear` allows LinearModel's own.

    Groups with `static_lr` keep the base learning rate throughout.
    """
    if model.exclude_bias_n_norm_wd:
        groups = without_decay(groups)
    static = [i for i, group in enumerate(groups) if group.pop("static_lr", False)]
    made = optimizer(model, groups)

    makers = {
        "none": None,
        "warmup_cosine": lambda: warmup_cosine(model, made),
        "step": lambda: MultiStepLR(made, model.lr_decay_steps, gamma=0.1),
    }
    if linear:
        makers["reduce"] = lambda: ReduceLROnPlateau(made)
        # Sic: the host decays by the weight decay.
        makers["exponential"] = lambda: ExponentialLR(made, model.weight_decay)
    make = choose("scheduler.name", model.scheduler, makers)
    if make is None:
        return made
    scheduler = make()
    if static:
        target = scheduler["scheduler"] if isinstance(scheduler, dict) else scheduler
        target.get_lr = partial(_static, target.get_lr, static, model.lr)
    return [made], [scheduler]


def _static(get_lr, indexes, lr):
    return [lr if i in indexes else value for i, value in enumerate(get_lr())]
