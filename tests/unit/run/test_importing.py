"""Checkpoints of other codes, read into our names and checked against the config."""

import os
import re

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from ressl_plugin.method import backbone
from ressl_plugin.run import importing
from ressl_plugin.utils.errors import UserError

HIDDEN, OUT, ROWS = 24, 8, 40
NARROW, FEATURES = "timm:resnet18", 8  # with torchvision's names, and as few weights as can be


def config(name=NARROW, stem="paper", **kwargs):
    channels = {"channels": [64, 8, 8, FEATURES]} if name == NARROW else {}
    return OmegaConf.create(
        {
            "method": "ressl",
            "backbone": {"name": name, "kwargs": channels, "stem": stem},
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


def narrow(seed):
    torch.manual_seed(seed)
    return backbone.build(config())


def head(features=FEATURES):
    return nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(1)
    queue = F.normalize(torch.randn(ROWS, OUT), dim=1)
    return {
        "student": narrow(seed=2).state_dict(),
        "teacher": narrow(seed=3).state_dict(),
        "head": head().state_dict(),
        "teacher_head": head().state_dict(),
        "queue": queue,
        "ptr": torch.tensor([16]),
    }


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def part_of(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


class ReferenceHead(nn.Module):
    """The two linear layers of the authors' heads, by the names that they have there."""

    def __init__(self, first, second):
        super().__init__()
        self.names = first, second
        self.add_module(first, nn.Linear(512, HIDDEN))
        self.add_module(second, nn.Linear(HIDDEN, OUT))

    def forward(self, x):
        first, second = (getattr(self, name) for name in self.names)
        return second(F.relu(first(x)))


class ReferenceEncoder(nn.Module):
    def __init__(self, net, head=None):
        super().__init__()
        self.net = net
        if head is not None:
            self.head = head


class Reference(nn.Module):
    """The authors' module: names, and queue (D, K), as in their checkpoints.

    `layout`: imagenet, for one crop as for several; small, whose encoders are Sequentials of a
    ResNet's children; pooled, the same with the max pooling that images of other sizes have.
    """

    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        nets = [resnet("paper" if layout == "small" else "imagenet", seed) for seed in (2, 3)]
        if layout == "imagenet":
            heads = [ReferenceHead("linear1", "linear2") for _ in nets]
            self.encoder_q, self.encoder_k = map(ReferenceEncoder, nets, heads)
        else:
            nets = [self.sequential(net) for net in nets]
            self.net, self.encoder_k = map(ReferenceEncoder, nets)
            self.head_q, self.head_k = (ReferenceHead("linear", "out") for _ in nets)
        self.register_buffer("queue", F.normalize(torch.randn(OUT, ROWS), dim=0))
        self.register_buffer("queue_ptr", torch.tensor([16]))

    @staticmethod
    def sequential(net):
        """Without a place for what a 3x3 stem leaves out."""
        children = [m for m in list(net.children())[:-1] if not isinstance(m, nn.Identity)]
        return nn.Sequential(*children, nn.Flatten(1))

    def embed(self, x):
        """Features and embeddings of the student, then of the teacher."""
        if self.layout == "imagenet":
            parts = [(e.net, e.head) for e in (self.encoder_q, self.encoder_k)]
        else:
            parts = [(self.net.net, self.head_q), (self.encoder_k.net, self.head_k)]
        return [(net(x), part(net(x))) for net, part in parts]


def with_statistics(module):
    """Batch norm that is not a fresh one's."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize(
    ("layout", "wrapped"), [("imagenet", False), ("small", False), ("pooled", True)]
)
def test_the_authors_checkpoints(tmp_path, layout, wrapped):
    """Features and embeddings equal those of the module that wrote the file, bit for bit."""
    torch.manual_seed(0)
    theirs = with_statistics(Reference(layout))
    state = theirs.state_dict()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.06, momentum=0.9).state_dict()
    if wrapped:
        state = under("module.", state)
    file = tmp_path / "theirs.pth"
    torch.save({"model": state, "optimizer": optimizer, "epoch": 200}, file)
    cfg = config("resnet18", stem="paper" if layout == "small" else "imagenet")
    found = importing.import_checkpoint(file, cfg)
    small = "" if layout == "imagenet" else ", small data"
    assert found.origin == f"ReSSL reference code{small}"
    assert found.missing == [] and found.unexpected == [] and found.notes == []
    assert len(found.state_dict) == len(state) and f"{len(state)} tensors taken" in found.report()
    assert torch.equal(found.state_dict["queue"], theirs.queue.T)
    assert found.state_dict["queue_ptr"] == 16

    images = torch.randn(2, 3, 32, 32)
    for place, (features, embeddings) in zip(("", "momentum_"), theirs.embed(images)):
        encoder, projector = backbone.build(cfg), head(512)
        encoder.load_state_dict(part_of(found.state_dict, f"{place}backbone."))
        projector.load_state_dict(part_of(found.state_dict, f"{place}projector."))
        assert torch.equal(encoder.eval()(images), features)
        assert torch.equal(projector(features), embeddings)


def foreign(parts, kind):
    s, t, h, th = (parts[k] for k in ("student", "teacher", "head", "teacher_head"))
    by_columns = {"queue": parts["queue"].T.contiguous(), "queue_ptr": parts["ptr"]}
    by_rows = {"queue": parts["queue"], "queue_ptr": parts["ptr"]}
    if kind == "moco":
        return {
            **under("encoder_q.", s), **under("encoder_q.fc.", h),
            **under("encoder_k.", t), **under("encoder_k.fc.", th), **by_columns,
        }  # fmt: skip
    encoder = "encoder." if kind == "pypi" else "backbone."
    return {
        **under(encoder, s), **under(f"momentum_{encoder}", t),
        **under("projector.", h), **under("momentum_projector.", th), **by_rows,
        "classifier.weight": torch.ones(10, FEATURES), "classifier.bias": torch.zeros(10),
    }  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["moco", "main", "pypi"])
def test_import(tmp_path, parts, kind, wrapped):
    path = tmp_path / "theirs.pth"
    state = foreign(parts, kind)
    if wrapped:
        state = under("module.", state)
    torch.save({"epoch": 7, "state_dict": state}, path)
    found = importing.import_checkpoint(path, config())
    origin = {"moco": "MoCo", "main": "solo-learn", "pypi": "solo-learn 1.0.2"}
    assert found.origin == origin[kind]
    assert found.missing == [] and found.unexpected == [] and found.notes == []
    assert len(found.state_dict) == len(state)
    expected = {
        **under("backbone.", parts["student"]), **under("momentum_backbone.", parts["teacher"]),
        **under("projector.", parts["head"]), **under("momentum_projector.", parts["teacher_head"]),
        "queue": parts["queue"], "queue_ptr": parts["ptr"],
    }  # fmt: skip
    for key, value in expected.items():
        assert torch.equal(found.state_dict[key], value), key
    assert set(found.state_dict) - set(expected) <= {"classifier.weight", "classifier.bias"}
    assert f"{len(state)} tensors taken" in found.report()


@pytest.mark.parametrize("kind", ["main", "pypi"])
@pytest.mark.parametrize(
    ("method", "change", "why"),
    [
        ("simclr", lambda s: {k: v for k, v in s.items() if "momentum" not in k}, "no teacher"),
        ("byol", lambda s: {k: v for k, v in s.items() if "queue" not in k}, "no memory"),
        ("moco", lambda s: {**s, "queue": torch.zeros(2, OUT, ROWS)}, "memory is of several views"),
        ("nnbyol", lambda s: {**s, "predictor.0.weight": torch.zeros(OUT, OUT)}, "a predictor"),
    ],
)
def test_weights_of_the_hosts_other_methods(tmp_path, parts, kind, method, change, why):
    torch.save({"state_dict": change(foreign(parts, kind))}, tmp_path / "last.ckpt")
    said = lambda cfg: importing.import_checkpoint(tmp_path / "last.ckpt", cfg).report()
    line = rf"\nthe file is not of ReSSL's training \(it.* {why}\): taken for method=ressl"
    assert re.search(line, said(config()))
    assert "taken for" not in said(OmegaConf.merge(config(), {"method": method}))


def test_what_is_missing_and_what_is_left_out(tmp_path, parts):
    path = tmp_path / "theirs.pth"
    state = {
        **under("module.encoder_q.", parts["student"]),
        "module.encoder_q.fc.weight": torch.ones(OUT, FEATURES),  # MoCo v1's head is one layer
        "module.temperature": torch.ones(1),
    }
    torch.save({"state_dict": state, "arch": "resnet18"}, path)
    with pytest.raises(UserError, match=r"projector\.0\.weight is absent"):
        importing.import_checkpoint(path, config())
    del state["module.encoder_q.fc.weight"]
    torch.save({"state_dict": state}, path)
    found = importing.import_checkpoint(path, config())
    assert found.unexpected == ["temperature"]
    assert {k.partition(".")[0] for k in found.missing} == {
        "projector", "momentum_backbone", "momentum_projector", "queue", "queue_ptr",
    }  # fmt: skip
    assert "momentum_backbone.* (120)" in found.report()
    assert "not taken: temperature" in found.report()


def test_a_last_layer_is_left_out(tmp_path, parts):
    state = under("encoder_q.net.", parts["student"])
    state["encoder_q.net.fc.weight"] = torch.ones(10, FEATURES)
    torch.save({"model": state}, tmp_path / "x.pth")
    found = importing.import_checkpoint(tmp_path / "x.pth", config())
    assert found.unexpected == ["encoder_q.net.fc.weight"]
    assert "backbone.fc.weight" not in found.state_dict


def test_a_bare_backbone(tmp_path):
    """As torchvision's own weights are, last layer and all."""
    network = torchvision.models.resnet18(num_classes=7)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    cfg = config("resnet18", stem="imagenet")
    found = importing.import_checkpoint(tmp_path / "resnet18.pth", cfg)
    assert found.origin == "bare backbone"
    assert set(found.state_dict) == {
        f"backbone.{k}" for k in network.state_dict() if not k.startswith("fc.")
    }
    assert torch.equal(found.state_dict["backbone.conv1.weight"], network.conv1.weight)
    assert "not taken: fc.* (2)" in found.report()
    assert "does not say what trained it: taken for method=ressl" in found.report()
    with pytest.raises(UserError, match=r"another architecture: backbone\.conv1\.weight"):
        importing.import_checkpoint(tmp_path / "resnet18.pth", config("resnet18"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300])
@pytest.mark.parametrize("key", ["momentum_backbone.layer4.1.bn2.running_var", "queue"])
def test_weights_of_a_run_that_diverged(tmp_path, parts, key, value):
    state = foreign(parts, "main")
    state[key] = state[key].double()
    state[key].view(-1)[-1] = value
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"{key} is not finite"):
        importing.import_checkpoint(tmp_path / "x.pth", config())


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (config(stem="imagenet"), r"backbone\.conv1\.weight is \(64, 3, 3, 3\).*7, 7"),
        (config(name="resnet50"), r"backbone\.layer1\.0\.conv1\.weight.*64, 64, 1, 1"),
        (config(proj_output_dim=16), r"projector\.2\.weight is \(8, 24\)"),
        (config(proj_batchnorm=True), r"projector\.1\.weight is absent"),
    ],
)
def test_another_architecture(tmp_path, parts, cfg, message):
    torch.save({"state_dict": foreign(parts, "moco")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as error:
        importing.import_checkpoint(tmp_path / "x.pth", cfg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "²", "0a.weight", "99.weight", "9" * 30 + ".weight"])
def test_odd_names_are_left_out(tmp_path, parts, name):
    name = f"encoder_q.net.{name}"
    torch.save({**under("encoder_q.net.", parts["student"]), name: torch.ones(1)}, tmp_path / "x")
    found = importing.import_checkpoint(tmp_path / "x", config())
    assert found.unexpected == [name] and len(found.state_dict) == len(parts["student"])


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    "value",
    [torch.eye(OUT).to_sparse(), torch.empty(OUT, device="meta"), torch.ones(OUT, 9) * 1j],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_that_no_network_has(tmp_path, parts, value):
    torch.save(foreign(parts, "moco") | {"queue": value}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="queue is no plain tensor"):
        importing.import_checkpoint(tmp_path / "x.pth", config())


def test_a_queue_of_another_size_starts_afresh(tmp_path, parts):
    torch.save(foreign(parts, "moco"), tmp_path / "x.pth")
    found = importing.import_checkpoint(tmp_path / "x.pth", config(queue_size=64))
    assert "queue" not in found.state_dict and "queue" in found.missing
    assert "(40, 8) in the file, (64, 8) in the config" in found.report()


def test_no_encoder(tmp_path):
    torch.save({"state_dict": {"body.0.weight": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"no encoder found.*body"):
        importing.import_checkpoint(tmp_path / "x.pth", config())


def test_safetensors(tmp_path, parts):
    from safetensors.torch import save_file

    save_file(foreign(parts, "main"), tmp_path / "x.safetensors")
    found = importing.import_checkpoint(tmp_path / "x.safetensors", config())
    assert torch.equal(found.state_dict["queue"], parts["queue"])
    (tmp_path / "x.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="safetensors"):
        importing.import_checkpoint(tmp_path / "x.safetensors", config())


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_nothing_is_executed(tmp_path):
    torch.save({"state_dict": {}, "x": Payload(tmp_path / "executed")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="refused"):
        importing.import_checkpoint(tmp_path / "x.pth", config())
    assert not (tmp_path / "executed").exists()
