"""Checkpoints of others under our names.

`import_checkpoint` understands, with or without ``module.`` in front of the names:

    the ReSSL reference code    encoder_q.net.*, encoder_q.head.linear1 and .linear2, encoder_k.*,
                                queue (D, K); the same for one crop and for several
    its code for small data     net.net.<number>.*, head_q.linear and .out, encoder_k.net.*,
                                head_k.*, queue (D, K)
    MoCo                        encoder_q.*, encoder_q.fc.*, encoder_k.*, queue (D, K)
    solo-learn main, ours       backbone.*, projector.*, momentum_*, queue (K, D), classifier.*
    solo-learn 1.0.2            encoder.*, momentum_encoder.* in place of backbone.*
    a bare backbone             its own names, as in torchvision, timm and our exports

The other way is exporting.py. Nothing is ever unpickled.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ressl_plugin.method import backbone
from ressl_plugin.run import checkpoint
from ressl_plugin.run.weights import check_finite, difference, shapes
from ressl_plugin.utils.errors import UserError

BARE = "bare backbone"
# the first whose backbone a file has names its origin; (foreign prefix, ours)
ORIGINS = {
    "ReSSL reference code": [
        ("encoder_q.net.", "backbone."),
        ("encoder_q.head.", "projector."),
        ("encoder_k.net.", "momentum_backbone."),
        ("encoder_k.head.", "momentum_projector."),
    ],
    "ReSSL reference code, small data": [
        ("net.net.", "backbone."),
        ("head_q.", "projector."),
        ("encoder_k.net.", "momentum_backbone."),
        ("head_k.", "momentum_projector."),
    ],
    "MoCo": [
        ("encoder_q.fc.", "projector."),
        ("encoder_q.", "backbone."),
        ("encoder_k.fc.", "momentum_projector."),
        ("encoder_k.", "momentum_backbone."),
    ],
    "solo-learn": [
        (p, p)
        for p in ("backbone.", "projector.", "momentum_backbone.", "momentum_projector.",
                  "classifier.", "momentum_classifier.", "predictor.")
    ],
    "solo-learn 1.0.2": [
        ("encoder.", "backbone."),
        ("momentum_encoder.", "momentum_backbone."),
        *((p, p) for p in ("projector.", "momentum_projector.", "classifier.",
                           "momentum_classifier.")),
    ],
    BARE: [("", "backbone.")],
}  # fmt: skip
ENCODERS = {
    origin: theirs
    for origin, names in ORIGINS.items()
    for theirs, ours in names
    if ours == "backbone." and theirs
}
REFERENCE = ("ReSSL reference code", "ReSSL reference code, small data")
FOREIGN_QUEUE = (*REFERENCE, "MoCo")  # D x K, columns are the embeddings
# the reference names the layers of its heads; ours are numbered, the ReLU among them
HEAD = {"linear1": "0", "linear2": "2", "linear": "0", "out": "2"}
# a ResNet as a Sequential of its children: with max pool (ImageNet) everything stands one later
SEQUENTIAL = {"0": "conv1", "1": "bn1", **{str(i + 2): f"layer{i}" for i in range(1, 5)}}
OWN = ("classifier.", "momentum_classifier.", "predictor.")  # sizes that the config does not tell


@dataclass
class Imported:
    """A foreign checkpoint under the names of solo-learn's main branch.

    Attributes:
        state_dict: what was understood; load it with strict=False.
        origin: whose checkpoint it is, a key of ORIGINS.
        missing: our names that the file does not give.
        unexpected: their names that were left out.
        notes: what was left out on purpose, and why.
    """

    state_dict: dict[str, Tensor]
    origin: str
    missing: list[str]
    unexpected: list[str]
    notes: list[str]

    def report(self) -> str:
        """For people: origin, and counts and names by module."""
        lines = [f"{self.origin}: {len(self.state_dict)} tensors taken"]
        for title, names in (("missing", self.missing), ("not taken", self.unexpected)):
            if names:
                lines.append(f"{title}: {', '.join(_by_module(names))}")
        return "\n".join([*lines, *self.notes])


def import_checkpoint(path, cfg) -> Imported:
    """Read another code's checkpoint for the networks that ``cfg`` describes.

    Args:
        path: a checkpoint file (torch, read ``weights_only``, or safetensors) or a run directory.
        cfg: config in main's schema: backbone, data.dataset, method_kwargs.

    Raises:
        UserError: no encoder in it; another architecture, naming the first key that differs;
            weights that are not finite.
    """
    path = Path(path)
    weights = {_bare(k): v for k, v in _weights(path).items()}
    expected = _expected(cfg)
    origin = _origin(path, weights, expected)
    names = {k: _rename(k, origin, weights) for k in weights}
    state = {ours: weights[k] for k, ours in names.items() if ours}
    if "queue" in state and origin in FOREIGN_QUEUE and state["queue"].dim() == 2:
        state["queue"] = state["queue"].T.contiguous()
    _compare(path, state, expected)
    notes = _drop_other_queue(state, expected)
    for ours in [k for k in state if k not in expected and not k.startswith(OWN)]:
        del state[ours]
    check_finite(state, path)
    if origin == BARE:
        notes.append(f"the file does not say what trained it: taken for method={cfg.method}")
    elif why := _of_another_method(origin, weights, cfg):
        notes.append(f"the file is not of ReSSL's training ({why}): taken for method=ressl")
    return Imported(
        state_dict=state,
        origin=origin,
        missing=[k for k in expected if k not in state],
        unexpected=[k for k, ours in names.items() if ours not in state],
        notes=notes,
    )


def _of_another_method(origin, weights, cfg) -> str | None:
    """What tells that the host's weights are not of ReSSL: its teacher, its memory of one view."""
    if not origin.startswith("solo-learn") or cfg.method != "ressl":
        return None
    starts = {name.partition(".")[0] for name in weights}
    queue = weights.get("queue")
    if not starts & {"momentum_backbone", "momentum_encoder"}:
        return "it has no teacher"
    if queue is None or queue.dim() != 2:
        return "it has no memory" if queue is None else "its memory is of several views"
    if "predictor" in starts and not cfg.method_kwargs.get("predictor"):
        return "it has a predictor"
    return None


def _weights(path) -> dict[str, Tensor]:
    """The tensors of a file, wherever it keeps them."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    loaded = checkpoint.load(path)
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    weights = {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}
    for key, value in weights.items():
        if value.layout != torch.strided or value.is_meta or value.is_complex():
            raise UserError(f"{path}: {key} is no plain tensor of numbers")
    return weights


def _origin(path, weights, expected) -> str:
    """Whose names these are, a key of ORIGINS."""
    for origin, prefix in ENCODERS.items():
        if any(k.startswith(prefix) for k in weights):
            return origin
    if any(f"backbone.{k}" in expected for k in weights):
        return BARE
    raise UserError(
        f"{path}: no encoder found; its names begin with {', '.join(_by_module(weights))}, "
        f"known are {', '.join(f'{p}* ({o})' for o, p in ENCODERS.items())}, and the backbone's own"
    )


def _bare(name) -> str:
    """Without the wrappers of DDP and torch.compile."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name).replace("._orig_mod.", ".")


def _rename(name, origin, weights) -> str | None:
    """Our name of a foreign tensor; None if we have none."""
    if name in ("queue", "queue_ptr"):
        return name
    for prefix, ours in ORIGINS[origin]:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            number, _, inner = rest.partition(".")
            if ours.endswith("backbone.") and number.isdecimal():
                pooled = not any(k.startswith(f"{prefix}3.") for k in weights)
                number = str(int(number) - 1) if pooled and int(number) > 2 else number
                if number not in SEQUENTIAL:
                    return None
                rest = f"{SEQUENTIAL[number]}.{inner}"
            elif ours.endswith("projector.") and origin in REFERENCE:
                layer, dot, rest = rest.partition(".")
                rest = HEAD.get(layer, layer) + dot + rest
            return ours + rest
    return None


def _expected(cfg) -> dict[str, torch.Size]:
    """Names and shapes of the student, the teacher and the memory that a config describes."""
    from ressl_plugin.method.ressl import head

    kwargs = cfg.method_kwargs
    with torch.device("meta"):
        encoder = backbone.build(cfg)
        parts = {"backbone": encoder}
        hidden, out = kwargs.get("proj_hidden_dim"), kwargs.get("proj_output_dim")
        if hidden and out:
            norm = bool(kwargs.get("proj_batchnorm"))
            width = encoder.inplanes if hasattr(encoder, "inplanes") else encoder.num_features
            parts["projector"] = head(width, hidden, out, norm)
    expected = {}
    for teacher in ("", "momentum_"):
        for part, module in parts.items():
            expected |= shapes(module, f"{teacher}{part}.")
    if out and kwargs.get("queue_size"):
        expected["queue"] = torch.Size((kwargs.queue_size, out))
        expected["queue_ptr"] = torch.Size((1,))
    return expected


def _compare(path, state, expected):
    """Every part that the file has must be the config's, whole and of the same shapes."""
    present = {k.partition(".")[0] for k in state} - {"queue", "queue_ptr"}
    want = {
        key: shape
        for key, shape in expected.items()
        if key.partition(".")[0] in present
        and (key in state or not key.endswith("num_batches_tracked"))
    }
    have = {key: state[key] for key in want if key in state}
    if differing := difference(have, want):
        hint = (
            "backbone.name and backbone.stem" if "backbone" in differing else "method_kwargs.proj_*"
        )
        raise UserError(f"{path}: another architecture: {differing}; check {hint}")


def _drop_other_queue(state, expected) -> list[str]:
    """A memory of another size starts afresh; the weights are good without it."""
    have, want = state.get("queue"), expected.get("queue")
    if have is None or want is None or have.shape == want:
        return []
    del state["queue"]
    state.pop("queue_ptr", None)
    return [
        f"queue: {tuple(have.shape)} in the file, {tuple(want)} in the config: not taken, "
        "the memory starts with random rows"
    ]


def _by_module(names) -> list[str]:
    """Names folded to their first parts, with counts: backbone.* (120)."""
    counts = Counter(first + (dot and ".*") for first, dot, _ in (n.partition(".") for n in names))
    return [f"{k} ({n})" if k.endswith("*") else k for k, n in list(counts.items())[:12]]
