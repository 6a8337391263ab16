"""The method against an independent Algorithm 1, the host's own class, and its variants."""

import copy
import math

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from algorithm1 import ReSSL as ReSSLPlain
from helpers import VIEW, make_config, random_batches, ungrouped
from omegaconf import OmegaConf
from torch import nn

from ressl_plugin import host
from ressl_plugin.method import registry
from ressl_plugin.method.ressl import ReSSL
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.sampling import permutation

pytestmark = pytest.mark.timeout(240)


NARROW = {  # a ResNet-18 an eighth as wide
    "backbone__name": "timm:resnet18",
    "backbone__kwargs": {"channels": [8, 16, 32, 64], "zero_init_last": False},
}


class Batches(torch.utils.data.IterableDataset):
    """Fixed batches in a fixed order."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def loader(batches):
    return torch.utils.data.DataLoader(Batches(batches), batch_size=None)


def trainer(**kwargs):
    defaults = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**{**defaults, **kwargs})


class InGroups(nn.Module):
    """Encoder and head; batch norm over each group of the batch, as if it were a batch alone."""

    def __init__(self, backbone, head, groups):
        super().__init__()
        self.backbone = ungrouped(copy.deepcopy(backbone))
        self.head, self.groups = copy.deepcopy(head), max(1, groups)

    def forward(self, x):
        return self.head(torch.cat([self.backbone(part) for part in x.chunk(self.groups)]))


def train_plain(model, batches, epochs, cfg):
    """examples/algorithm1.py from the model's initial weights, with the recipe's rates."""
    opt, kw = cfg.optimizer, cfg.method_kwargs
    student = InGroups(model.backbone, model.projector, cfg.batchnorm.groups)
    sgd = torch.optim.SGD(student.parameters(), opt.lr, 0.9, weight_decay=opt.weight_decay)
    size, taus = (kw.proj_output_dim, kw.queue_size), (kw.temperature_q, kw.temperature_k)
    plain = ReSSLPlain(student, sgd, *size, *taus, cfg.momentum.base_tau)
    plain.queue = model.queue.clone()
    total, warm = epochs * len(batches), cfg.scheduler.warmup_epochs * len(batches)
    for step in range(total):
        sgd.param_groups[0]["lr"] = (
            opt.lr * step / warm
            if step < warm
            else opt.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
        )
        _, (contrastive, weak), _ = batches[step % len(batches)]
        order = None
        if cfg.batchnorm.get("permute"):
            order = permutation(len(weak), cfg.seed, *divmod(step, len(batches)), 0)
        plain.step(contrastive, weak, order)
    return plain


def largest(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters()))


# the authors' code for small data: 8 groups, the teacher's batch permuted, hidden 2048
AUTHORS = {
    "batchnorm__groups": 8,
    "batchnorm__permute": True,
    "method_kwargs__proj_hidden_dim": 2048,
    "method_kwargs__proj_output_dim": 128,
}


@pytest.mark.parametrize(
    ("steps", "batch", "changes"),
    [(20, 8, {}), (20, 12, {}), (10, 32, AUTHORS)],
    ids=["whole batch", "12 do not divide the queue of 40 rows", "authors' small-data step"],
)
def test_two_epochs_equal_plain_algorithm_1(steps, batch, changes):
    # float64 networks: in float32 the two drift apart by ReLUs that flip, whoever is right
    torch.manual_seed(0)
    cfg = make_config(optimizer__lr=0.001, **NARROW, **changes)
    model = ReSSL(cfg).double()
    drawn = random_batches(steps // 2, batch)
    batches = [[i, [v.double() for v in views], y] for i, views, y in drawn]
    plain = train_plain(model, batches, 2, cfg)
    run = trainer(max_epochs=2, precision="64-true")
    run.fit(model, loader(batches))

    assert largest(model.backbone, plain.student.backbone) < 1e-5
    assert largest(model.backbone, model.momentum_backbone) > 1e-5  # something has happened
    assert largest(model.projector, plain.student.head) < 1e-5
    assert largest(model.momentum_backbone, plain.teacher.backbone) < 1e-6
    assert largest(model.momentum_projector, plain.teacher.head) < 1e-6
    oldest_first = model.queue.roll(-int(model.queue_ptr), 0)
    assert (oldest_first - plain.queue).abs().max() < 1e-6
    assert run.optimizers[0].param_groups[0]["lr"] == 0  # at the end of the half-cosine


def test_permuted_teacher_shares_no_group_with_the_student():
    """Embeddings come back in their images' order; every epoch, batch and seed has its own."""
    torch.manual_seed(0)
    permuted = ReSSL(make_config(**NARROW, batchnorm__groups=2, batchnorm__permute=True)).double()
    x = torch.randn(8, 3, 16, 16).double()
    order = permutation(8, permuted.cfg.seed, 0, 3, 0)
    plain = ungrouped(copy.deepcopy(permuted.momentum_backbone))
    apart = [plain(x[half]) for half in order.chunk(2)]
    expected = torch.empty(8, apart[0].shape[1]).double()
    expected[order[:4]], expected[order[4:]] = apart
    found = permuted.momentum_forward(x, batch_idx=3)["feats"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (found - permuted.momentum_forward(x, batch_idx=4)["feats"]).abs().max() > 1e-3
    permuted.eval()  # running statistics: the order does not matter, and none is drawn
    clean = permuted.momentum_forward(x)["feats"]
    torch.testing.assert_close(clean, permuted.momentum_backbone(x), rtol=0, atol=0)


def count_forwards(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def views_config(*views, **changes):
    return make_config(augmentations=[{**copy.deepcopy(VIEW), **v} for v in views], **changes)


def test_one_forward_a_view():
    model = ReSSL(make_config(**NARROW))
    student, teacher = count_forwards(model.backbone), count_forwards(model.momentum_backbone)
    trainer(max_steps=3).fit(model, loader(random_batches(3, 8)))
    assert (len(student), len(teacher)) == (3, 3)


TWO_AND_ONE = [
    {"role": "student", "num_crops": 2},
    {"role": "teacher"},
    {"role": "student", "crop_size": 8},
]


def test_each_crop_is_a_forward_of_its_own_and_all_share_the_target():
    """As in the reference: batch norm never sees two views of an image at a time."""
    torch.manual_seed(0)
    model = ReSSL(views_config(*TWO_AND_ONE, **NARROW)).double()
    assert (model.student_views, model.teacher_view) == ([0, 1, 3], 2)
    plain = nn.Sequential(copy.deepcopy(model.backbone), copy.deepcopy(model.projector))
    student, teacher = count_forwards(model.backbone), count_forwards(model.momentum_backbone)
    crops = [torch.randn(6, 3, s, s).double() for s in (16, 16, 16, 8)]
    z_t = F.normalize(copy.deepcopy(plain)(crops[2]), dim=1).detach()
    queue = model.queue.clone()
    loss = model.training_step([torch.arange(6), crops, torch.full((6,), -1)], 0)
    assert (len(student), len(teacher)) == (3, 1)

    target = (z_t @ queue.T / 0.04).softmax(1)
    z_s = [F.normalize(plain(crop), dim=1) for crop in (crops[0], crops[1], crops[3])]
    each = [-(target * (z @ queue.T / 0.1).log_softmax(1)).sum(1).mean() for z in z_s]
    expected = sum(each) / 3
    # the relation is computed in float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    ours = [*model.backbone.parameters(), *model.projector.parameters()]
    for found, wanted in zip(ours, plain.parameters()):
        assert (found.grad - wanted.grad).norm() <= 1e-6 * wanted.grad.norm()


def test_without_batch_norm_crops_of_one_size_share_a_forward():
    vit = {"backbone__name": "timm:vit_tiny_patch16_224", "backbone__stem": "auto",
           "backbone__kwargs": {"img_size": 16, "patch_size": 8, "depth": 1}}  # fmt: skip
    model = ReSSL(views_config(*TWO_AND_ONE[:2], **vit))
    student = count_forwards(model.backbone)
    crops = [torch.randn(6, 3, 16, 16) for _ in range(2)]
    feats, z = model.student_forward(crops)
    assert len(student) == 1
    model.joins_crops = False
    apart_feats, apart = model.student_forward(crops)
    assert len(student) == 3 and z.shape == apart.shape == (2, 6, 16)
    torch.testing.assert_close(z, apart, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(feats, apart_feats, rtol=1e-5, atol=1e-6)


def test_without_roles_the_hosts_convention_holds():
    cfg = views_config({"num_crops": 2}, {"crop_size": 8, "num_crops": 2}, **NARROW)
    model = ReSSL(cfg)
    assert (model.student_views, model.teacher_view) == ([0, 2, 3], 1)


def test_momentum_follows_the_hosts_schedule():
    model = ReSSL(make_config(**NARROW, momentum__base_tau=0.5, momentum__final_tau=1.0))
    seen = []
    update = model.update_teacher
    model.update_teacher = lambda m: (seen.append(m), update(m))
    trainer(max_epochs=2).fit(model, loader(random_batches(3, 8)))
    expected = [1 - 0.5 * (math.cos(math.pi * s / 6) + 1) / 2 for s in range(6)]
    assert seen == pytest.approx(expected)


def test_gradient_accumulation_updates_the_teacher_once_an_optimizer_step():
    model = ReSSL(make_config(**NARROW))
    seen = []
    model.update_teacher = seen.append
    trainer(max_epochs=1, accumulate_grad_batches=2).fit(model, loader(random_batches(4, 8)))
    assert len(seen) == 2


def test_checkpoint_goes_to_the_host_and_back(tmp_path):
    cfg = make_config(backbone__stem="auto", data__dataset="cifar10")
    ours = ReSSL(cfg)
    registry.register()
    host_cfg = OmegaConf.merge(cfg, {"method": "ressl_host"})
    theirs = host.build_method(host_cfg)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    torch.save(theirs.state_dict(), tmp_path / "host.pt")
    ours.load_state_dict(torch.load(tmp_path / "host.pt", weights_only=True))
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    back = host.build_method(host_cfg)
    back.load_state_dict(ours.state_dict())
    for key, value in back.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], value), key


def test_online_classifier_sees_detached_features():
    model = ReSSL(make_config(**NARROW))
    _, views, targets = random_batches(1, 8)[0]
    feats = model.backbone(views[0])
    loss, _ = model.classify(feats, feats.detach(), targets)
    loss.backward()
    assert model.classifier.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.backbone.parameters())


def test_online_metrics_and_knn():
    model = ReSSL(make_config(**NARROW, knn_eval__enabled=True, knn_eval__k=5))
    batches = random_batches(4, 8)
    val = [[b[1][0], b[2]] for b in batches]
    run = trainer(max_epochs=1)
    run.fit(model, loader(batches), loader(val))
    logged = {k: float(v) for k, v in run.callback_metrics.items()}
    assert {"train_acc1", "train_class_loss", "val_acc1", "val_acc5", "val_loss"} <= set(logged)
    assert 0 <= logged["val_knn_acc1"] <= logged["val_knn_acc5"] <= 100
    assert 0 < logged["target_entropy"] <= 1
    assert all(math.isfinite(v) for v in logged.values())


def test_every_knn_is_of_the_whole_epoch_so_far():
    """val_check_interval=0.5: the last one still knows the classes of the first half."""
    torch.manual_seed(0)
    batches = random_batches(4, 8)
    for step, batch in enumerate(batches):
        batch[2] = batch[2] % 5 + 5 * (step >= 2)
    model = ReSSL(make_config(**NARROW, knn_eval__enabled=True, knn_eval__k=32))  # all vote
    run = trainer(max_epochs=1, val_check_interval=0.5)
    run.fit(model, loader(batches), loader([[b[1][0], b[2]] for b in batches[:2]]))
    assert run.callback_metrics["val_knn_acc5"] > 0
    assert not model.online._bank, "and nothing is held any longer"


class Held(pl.Callback):
    """How many features wait for the kNN before each step."""

    def __init__(self):
        self.counts = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.counts.append(sum(len(feats) for feats, _ in module.online._bank))


@pytest.mark.parametrize(
    ("validation", "settings", "counts"),
    [
        (True, {}, [0, 8, 0, 8]),
        (True, {"check_val_every_n_epoch": 2}, [0, 0, 0, 8]),
        (True, {"limit_val_batches": 0}, [0, 0, 0, 0]),
        (False, {}, [0, 0, 0, 0]),
    ],
)
def test_features_wait_only_for_a_validation(validation, settings, counts, caplog):
    model, held = ReSSL(make_config(**NARROW, knn_eval__enabled=True, knn_eval__k=5)), Held()
    batches = random_batches(2, 8)
    val = loader([[b[1][0], b[2]] for b in batches]) if validation else None
    with caplog.at_level("INFO"):
        trainer(max_epochs=2, callbacks=[held], **settings).fit(model, loader(batches), val)
    assert held.counts == counts
    assert caplog.text.count("no val_knn_acc1") == (not any(counts))


def test_unlabelled_images_train_and_leave_no_nan():
    model = ReSSL(make_config(**NARROW))
    batches = random_batches(2, 8)
    for batch in batches:
        batch[2].fill_(-1)
    run = trainer(max_epochs=1)
    run.fit(model, loader(batches))
    assert all(math.isfinite(float(v)) for v in run.callback_metrics.values())


def test_group_batchnorm_in_student_and_teacher():
    model = ReSSL(make_config(**NARROW, batchnorm__groups=2))
    plain = ReSSL(make_config(**NARROW))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(8, 3, 16, 16)
    both = model.backbone(x)
    apart = torch.cat([copy.deepcopy(plain.backbone)(half) for half in x.chunk(2)])
    torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-5)
    assert set(model.state_dict()) == set(plain.state_dict())


def test_half_precision_ends_at_the_networks():
    """precision=bf16-mixed: the memory, both networks' weights and Eq. 6 stay in float32."""
    torch.manual_seed(0)
    model = ReSSL(make_config(**NARROW, momentum__base_tau=0.999, momentum__final_tau=0.999))
    before = copy.deepcopy(model.momentum_backbone)
    run = trainer(max_epochs=1, precision="bf16-mixed")
    run.fit(model, loader(random_batches(5, 8)))
    assert run.callback_metrics["train_ressl_loss"].dtype == torch.float32
    floating = [t for t in model.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {torch.float32}
    assert not torch.equal(model.queue, model.queue.bfloat16().float())
    moved = largest(before, model.momentum_backbone)
    assert 0 < moved < 2**-9 * max(p.abs().max() for p in before.parameters())  # bfloat16's step


def test_step_under_autocast_keeps_the_loss_in_float32():
    model = ReSSL(make_config())
    _, views, targets = random_batches(1, 8)[0]
    exact = copy.deepcopy(model).training_step([None, views, targets], 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.training_step([None, views, targets], 0)
    assert loss.dtype == torch.float32
    assert abs(float(loss - exact)) < 0.2
    assert model.queue.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"method_kwargs__temperature_k": 0.1}, "temperature_k"),
        ({"method_kwargs__queue_size": 0}, "queue_size"),
        ({"method_kwargs__quue_size": 8}, "queue_size"),
        ({"momentum__base_tau": 1.5}, "base_tau"),
        ({"backbone__stem": "papre"}, "stem"),
        ({"backbone__name": "resnet19"}, "resnet18"),
        ({"batchnorm__groups": 2, "batchnorm__mode": "shuffle"}, "batchnorm.permute=true"),
    ],
)
def test_mistakes_are_named(change, word):
    with pytest.raises(UserError, match=word):
        ReSSL(make_config(**change))


def test_paper_stem_keeps_the_map_and_solo_stem_grows_it():
    shape = lambda stem: (
        ReSSL(make_config(backbone__stem=stem)).backbone.conv1(torch.zeros(1, 3, 32, 32)).shape[-1]
    )
    assert (shape("paper"), shape("solo"), shape("imagenet")) == (32, 34, 16)
