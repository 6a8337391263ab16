"""Settings that PyTorch, Lightning and the host's methods read, judged before they are built.

What they would refuse with an exception, some of it at the first step only, is refused here by
name, type and bounds: an exception is then a bug.
"""

from __future__ import annotations

from ressl_plugin.config.kinds import (
    COLDEST,
    FLAG,
    LONGEST_QUEUE,
    NULL,
    WIDTH,
    Kind,
    is_number,
    judged,
    list_of,
    nearest,
    number,
    one_of,
    whole,
)
from ressl_plugin.utils.errors import UserError

TEMPERATURE = number(COLDEST, 2.0**31)

_SGD = {"momentum": number(0), "dampening": number(), "nesterov": FLAG}
_MODES = {"maximize": FLAG, "foreach": FLAG | NULL, "fused": FLAG | NULL}
_BELOW_ONE = Kind("a number >= 0 and below 1", lambda v: is_number(v) and 0 <= v < 1)
_ADAM = {
    **_MODES, "betas": list_of(_BELOW_ONE, 2), "eps": number(0), "amsgrad": FLAG,
    "capturable": FLAG,
}  # fmt: skip
OPTIMIZERS = {
    "sgd": {**_SGD, **_MODES},
    "lars": {
        **_SGD, "eta": number(0), "eps": number(0), "clip_lr": FLAG, "exclude_bias_n_norm": FLAG
    },
    "adam": _ADAM,
    "adamw": _ADAM,
}  # fmt: skip
_ELSEWHERE = {"lr": "optimizer.lr", "weight_decay": "optimizer.weight_decay"}


def check_optimizer(name: str, kwargs: dict) -> None:
    """`optimizer.kwargs` of one of OPTIMIZERS, a plain dict."""
    known = OPTIMIZERS[name]
    for key, value in kwargs.items():
        if key in _ELSEWHERE:
            raise UserError(f"config: optimizer.kwargs.{key}: set {_ELSEWHERE[key]} instead")
        if key not in known:
            raise UserError(
                f"config: optimizer.kwargs.{key}: {name} has {', '.join(sorted(known))}"
                f"{nearest(key, known)}"
            )
        judged(f"optimizer.kwargs.{key}", value, known[key])
    if kwargs.get("nesterov") and (not kwargs.get("momentum", 0.9) or kwargs.get("dampening")):
        raise UserError(
            "config: optimizer.kwargs.nesterov=true: it needs a momentum above 0 and dampening=0"
        )
    if kwargs.get("fused") and kwargs.get("foreach"):
        raise UserError("config: optimizer.kwargs: fused and foreach cannot both be true")


_SHARE = Kind("a share from 0.0 to 1.0", lambda v: isinstance(v, float) and 0 <= v <= 1)
_PART = Kind("a share above 0.0 and up to 1.0", lambda v: isinstance(v, float) and 0 < v <= 1)
_BATCHES = _SHARE | whole(0) | NULL
TRAINER = {
    "benchmark": FLAG | NULL,
    "check_val_every_n_epoch": whole(1),
    "detect_anomaly": FLAG,
    "deterministic": FLAG | one_of("warn") | NULL,
    "enable_autolog_hparams": FLAG,
    "enable_model_summary": FLAG | NULL,
    "enable_progress_bar": FLAG | NULL,
    "fast_dev_run": FLAG | whole(0, 2**31),
    "gradient_clip_algorithm": one_of("norm", "value") | NULL,
    "gradient_clip_val": number(0) | NULL,
    "inference_mode": FLAG,
    "limit_predict_batches": _BATCHES,
    "limit_test_batches": _BATCHES,
    "limit_train_batches": _BATCHES,
    "limit_val_batches": _BATCHES,
    "log_every_n_steps": whole(1) | NULL,
    "min_epochs": whole(0) | NULL,
    "min_steps": whole(0) | NULL,
    "num_sanity_val_steps": whole(-1) | NULL,
    "overfit_batches": _SHARE | whole(0),
    "profiler": one_of("simple", "advanced", "pytorch") | NULL,
    "reload_dataloaders_every_n_epochs": whole(0),
    "val_check_interval": _PART | whole(1) | NULL,
}
# of these: how a run is watched, which reaches no weight
WATCHING = (
    "log_every_n_steps", "enable_progress_bar", "check_val_every_n_epoch", "limit_val_batches",
    "num_sanity_val_steps",
)  # fmt: skip


def check_trainer(given: dict) -> None:
    """Arguments of Lightning's Trainer among the keys of a config, a plain dict."""
    # Lightning would end in mid-epoch by these two, and count it as done
    if given.get("max_time") is not None:
        raise UserError(
            f"config: max_time={given['max_time']}: a signal ends a run in time, saved and to be "
            "resumed: timeout -s USR1 8h ressl pretrain ..."
        )
    if given.get("max_steps") not in (None, -1):
        raise UserError(
            f"config: max_steps={given['max_steps']}: a run ends with an epoch, max_epochs says "
            "with which; limit_train_batches makes them shorter"
        )
    for key, kind in TRAINER.items():
        if key in given:
            judged(key, given[key], kind)


WIDTHS = ("proj_hidden_dim", "proj_output_dim", "pred_hidden_dim")
METHODS = {
    **dict.fromkeys((*WIDTHS, "decoder_embed_dim", "whitening_size"), WIDTH),
    "queue_size": whole(1, LONGEST_QUEUE),
    "num_prototypes": WIDTH | list_of(WIDTH),
    **dict.fromkeys(("decoder_depth", "decoder_num_heads"), whole(1, 256)),
    **dict.fromkeys(("temperature", "temperature_q", "temperature_k", "student_temperature",
                     "teacher_temperature", "warmup_teacher_temperature", "sk_epsilon"),
                    TEMPERATURE),
    **dict.fromkeys(("lamb", "scale_loss", "sim_loss_weight", "var_loss_weight",
                     "cov_loss_weight", "whitening_eps"), number(0)),
    **dict.fromkeys(("sk_iters", "kmeans_iters", "whitening_iters"), whole(1, 10_000)),
    **dict.fromkeys(("epoch_queue_starts", "freeze_prototypes_epochs",
                     "warmup_teacher_temperature_epochs"), whole(0)),
    **dict.fromkeys(("use_bn_in_head", "norm_last_layer", "norm_pix_loss", "iternorm"), FLAG),
    "clip_grad": number(0) | FLAG,
    "freeze_last_layer": whole(0) | FLAG,
    "mask_ratio": _BELOW_ONE,
}  # fmt: skip


def check_method(kwargs: dict, epochs: int) -> None:
    """`method_kwargs` of the host's methods, a plain dict."""
    for key, value in kwargs.items():
        if key in METHODS:
            judged(f"method_kwargs.{key}", value, METHODS[key])
    warmup = kwargs.get("warmup_teacher_temperature_epochs") or 0
    if warmup > epochs:
        raise UserError(
            f"config: method_kwargs.warmup_teacher_temperature_epochs={warmup}: at most "
            f"max_epochs={epochs}"
        )
    heads, width = kwargs.get("decoder_num_heads"), kwargs.get("decoder_embed_dim")
    if heads and width and width % heads:
        raise UserError(
            f"config: method_kwargs.decoder_embed_dim={width}: no multiple of "
            f"decoder_num_heads={heads}"
        )
