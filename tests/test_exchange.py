"""Checkpoints of other codes, read into our names and checked against the config."""

import os

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from ressl_plugin import backbone, exchange
from ressl_plugin.errors import UserError

HIDDEN, OUT, ROWS = 24, 8, 40


def config(name="resnet18", stem="paper", **kwargs):
    return OmegaConf.create(
        {
            "method": "ressl",
            "backbone": {"name": name, "kwargs": {}, "stem": stem},
            "data": {"dataset": "cifar10"},
            "method_kwargs": {
                "proj_hidden_dim": HIDDEN,
                "proj_output_dim": OUT,
                "queue_size": ROWS,
                **kwargs,
            },
        }
    )


def resnet(stem="paper", seed=0):
    torch.manual_seed(seed)
    network = torchvision.models.resnet18(num_classes=3)
    network.fc = nn.Identity()
    backbone.set_stem(network, stem)
    return network


def head():
    return nn.Sequential(nn.Linear(512, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(1)
    queue = F.normalize(torch.randn(ROWS, OUT), dim=1)
    return {
        "student": resnet(seed=2).state_dict(),
        "teacher": resnet(seed=3).state_dict(),
        "head": head().state_dict(),
        "teacher_head": head().state_dict(),
        "queue": queue,
        "ptr": torch.tensor([16]),
    }


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def numbered(state, pooled):
    """Names of the same network built as a Sequential of its children."""
    place = {"conv1": 0, "bn1": 1} | {f"layer{i}": i + 2 + pooled for i in range(1, 5)}
    return {f"{place[k.partition('.')[0]]}.{k.partition('.')[2]}": v for k, v in state.items()}


def foreign(parts, kind):
    s, t, h, th = (parts[k] for k in ("student", "teacher", "head", "teacher_head"))
    by_columns = {"queue": parts["queue"].T.contiguous(), "queue_ptr": parts["ptr"]}
    by_rows = {"queue": parts["queue"], "queue_ptr": parts["ptr"]}
    if kind.startswith("reference"):
        if "numbered" in kind:
            s, t = (numbered(x, pooled="pooled" in kind) for x in (s, t))
        return {
            **under("encoder_q.net.", s), **under("encoder_q.head.", h),
            **under("encoder_k.net.", t), **under("encoder_k.head.", th), **by_columns,
        }  # fmt: skip
    if kind == "moco":
        return {
            **under("encoder_q.", s), **under("encoder_q.fc.", h),
            **under("encoder_k.", t), **under("encoder_k.fc.", th), **by_columns,
        }  # fmt: skip
    encoder = "encoder." if kind == "pypi" else "backbone."
    return {
        **under(encoder, s), **under(f"momentum_{encoder}", t),
        **under("projector.", h), **under("momentum_projector.", th), **by_rows,
        "classifier.weight": torch.ones(10, 512), "classifier.bias": torch.zeros(10),
    }  # fmt: skip


KINDS = ["reference", "reference-numbered", "reference-numbered-pooled", "moco", "main", "pypi"]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_import(tmp_path, parts, kind, wrapped):
    path = tmp_path / "theirs.pth"
    state = foreign(parts, kind)
    if wrapped:
        state = under("module.", state)
    torch.save({"epoch": 7, "model" if "ref" in kind else "state_dict": state}, path)
    found = exchange.import_checkpoint(path, config())
    origin = {"reference": "ReSSL reference code", "moco": "MoCo", "main": "solo-learn"}
    assert found.origin == origin.get(kind.partition("-")[0], "solo-learn 1.0.2")
    assert found.missing == [] and found.unexpected == [] and found.notes == []
    assert len(found.mapped) == len(state)
    expected = {
        **under("backbone.", parts["student"]), **under("momentum_backbone.", parts["teacher"]),
        **under("projector.", parts["head"]), **under("momentum_projector.", parts["teacher_head"]),
        "queue": parts["queue"], "queue_ptr": parts["ptr"],
    }  # fmt: skip
    for key, value in expected.items():
        assert torch.equal(found.state_dict[key], value), key
    assert set(found.state_dict) - set(expected) <= {"classifier.weight", "classifier.bias"}
    assert f"{len(state)} tensors taken" in found.report()


def test_what_is_missing_and_what_is_left_out(tmp_path, parts):
    path = tmp_path / "theirs.pth"
    state = {
        **under("module.encoder_q.", parts["student"]),
        "module.encoder_q.fc.weight": torch.ones(OUT, 512),  # MoCo v1's head is one layer
        "module.temperature": torch.ones(1),
    }
    torch.save({"state_dict": state, "arch": "resnet18"}, path)
    with pytest.raises(UserError, match=r"projector\.0\.weight is absent"):
        exchange.import_checkpoint(path, config())
    del state["module.encoder_q.fc.weight"]
    torch.save({"state_dict": state}, path)
    found = exchange.import_checkpoint(path, config())
    assert found.unexpected == ["temperature"]
    assert {k.partition(".")[0] for k in found.missing} == {
        "projector", "momentum_backbone", "momentum_projector", "queue", "queue_ptr",
    }  # fmt: skip
    assert "momentum_backbone.* (120)" in found.report()
    assert "not taken: temperature" in found.report()


def test_a_last_layer_is_left_out(tmp_path, parts):
    state = foreign(parts, "reference") | {"encoder_q.net.fc.weight": torch.ones(10, 512)}
    torch.save({"model": state}, tmp_path / "x.pth")
    found = exchange.import_checkpoint(tmp_path / "x.pth", config())
    assert found.unexpected == ["encoder_q.net.fc.weight"]
    assert "backbone.fc.weight" not in found.state_dict


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (config(stem="imagenet"), r"backbone\.conv1\.weight is of shape \(64, 3, 3, 3\).*7, 7"),
        (config(name="resnet50"), r"backbone\.layer1\.0\.conv1\.weight.*64, 64, 1, 1"),
        (config(proj_output_dim=16), r"projector\.2\.weight is of shape \(8, 24\)"),
        (config(proj_batchnorm=True), r"projector\.1\.weight is absent"),
    ],
)
def test_another_architecture(tmp_path, parts, cfg, message):
    torch.save({"state_dict": foreign(parts, "moco")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as error:
        exchange.import_checkpoint(tmp_path / "x.pth", cfg)
    assert "\n" not in str(error.value)


def test_a_queue_of_another_size_starts_afresh(tmp_path, parts):
    torch.save(foreign(parts, "reference"), tmp_path / "x.pth")
    found = exchange.import_checkpoint(tmp_path / "x.pth", config(queue_size=64))
    assert "queue" not in found.state_dict and "queue" in found.missing
    assert "(40, 8) in the file, (64, 8) in the config" in found.report()


def test_no_encoder(tmp_path):
    torch.save({"state_dict": {"body.0.weight": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"no encoder found.*body"):
        exchange.import_checkpoint(tmp_path / "x.pth", config())


def test_safetensors(tmp_path, parts):
    from safetensors.torch import save_file

    save_file(foreign(parts, "main"), tmp_path / "x.safetensors")
    found = exchange.import_checkpoint(tmp_path / "x.safetensors", config())
    assert torch.equal(found.state_dict["queue"], parts["queue"])
    (tmp_path / "x.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="safetensors"):
        exchange.import_checkpoint(tmp_path / "x.safetensors", config())


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_nothing_is_executed(tmp_path):
    torch.save({"state_dict": {}, "x": Payload(tmp_path / "executed")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="refused"):
        exchange.import_checkpoint(tmp_path / "x.pth", config())
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("groups", [1, 4])
def test_imported_weights_give_the_same_features(tmp_path, parts, groups):
    """The network that wrote the checkpoint and ours agree in what they compute."""
    theirs = resnet()
    theirs.load_state_dict(parts["student"])
    torch.save({"model": foreign(parts, "reference")}, tmp_path / "x.pth")
    found = exchange.import_checkpoint(tmp_path / "x.pth", config())
    ours = backbone.build(config())
    ours.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in found.state_dict.items() if k[0] == "b"}
    )
    images = torch.randn(groups, 3, 16, 16)
    assert torch.equal(theirs.eval()(images), ours.eval()(images))
