"""What only a CUDA device can show: kernels, half precision, no waiting, resuming on the device."""

import copy
import io
import math
from contextlib import contextmanager

import lightning.pytorch as pl
import pytest
import torch
from helpers import Interrupted, Stop, image_folder, make_config, random_batches
from torch.nn import functional as F

from ressl_plugin import config
from ressl_plugin.data import BatchedLoader
from ressl_plugin.method import batchnorm
from ressl_plugin.method.batchnorm import GroupBatchNorm2d
from ressl_plugin.method.loss import relational_loss
from ressl_plugin.method.ressl import ReSSL
from ressl_plugin.run import metrics
from ressl_plugin.train import pretrain
from ressl_plugin.views import batched, recipe

pytestmark = pytest.mark.gpu
AUGMENTATIONS = [{"preset": "contrastive", "crop_size": 32}, {"preset": "weak", "crop_size": 32}]


def unit(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)


def on_cuda(batch):
    indexes, views, targets = batch
    return [indexes.cuda(), [view.cuda() for view in views], targets.cuda()]


@contextmanager
def no_waiting():
    """Any synchronisation with the device is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("size", [(64, 4096, 128), (256, 65536, 256), (32, 131072, 512)])
@pytest.mark.parametrize("views", [1, 3])
def test_loss_is_float64s_to_float32(size, views):
    n, k, d = size
    student = torch.stack([unit(n, d, i) for i in range(views)]).requires_grad_()
    teacher, queue = unit(n, d, 8), unit(k, d, 9)
    log_relation = F.log_softmax(student @ queue.T / 0.1, dim=-1)
    target = F.softmax(teacher @ queue.T / 0.04, dim=-1)
    expected = -(target * log_relation).sum(-1).mean()
    (gradient,) = torch.autograd.grad(expected, student)

    ours = student.detach().float().cuda().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        loss, _ = relational_loss(ours, teacher.float().cuda(), queue.float().cuda(), 0.1, 0.04)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    error = (ours.grad.cpu().double() - gradient).norm() / gradient.norm()
    assert error < 1e-4


@pytest.mark.usefixtures("products_as_in_a_run")
def test_views_are_those_of_the_cpu():
    images = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8)
    read = recipe.read(AUGMENTATIONS)
    here, there = (
        batched.draw(images.to(device), read, torch.Generator().manual_seed(3))
        for device in ("cpu", "cuda")
    )
    for cpu, cuda in zip(here, there):
        levels = (cpu - cuda.cpu()).abs() * 255 * 0.229  # normalised by at most this deviation
        # rounding to 8-bit steps may fall to either side, in hue and blur above all
        assert levels.quantile(0.99) < 1 and levels.mean() < 0.1


def test_a_bfloat16_step_is_finite_and_close_to_float32():
    torch.manual_seed(0)
    model = ReSSL(make_config(backbone__name="resnet18", batchnorm__groups=2)).cuda()
    batch = on_cuda(random_batches(1, 32)[0])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    losses, gradients = [], []
    for half in (False, True):
        model.load_state_dict(state)
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = model.training_step(batch, 0)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.projector.parameters()]))
    assert all(map(math.isfinite, losses)) and gradients[1].isfinite().all()
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert F.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.9


def loader(cfg, images=64, **options):
    read = recipe.read(AUGMENTATIONS)
    data = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8).cuda()
    draw = lambda batch, generator: batched.draw(batch, read, generator, channels_last=True)
    targets = torch.full((images,), -1)
    return BatchedLoader(data, targets, draw, cfg.optimizer.batch_size, **options)


def test_no_step_waits_for_the_device():
    """Views, forward, loss, backward, optimizer, schedule, EMA, queue and means."""
    cfg = make_config(optimizer__batch_size=16, batchnorm__groups=2, data__num_classes=10)
    model = ReSSL(cfg).cuda()
    model.knn_eval = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    batches = iter(loader(cfg))

    def step(i):
        indexes, views, _ = next(batches)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.training_step([indexes, views, indexes % 10], i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_teacher(0.99)

    step(0)  # constants are moved to the device once
    with no_waiting():
        step(1)
        step(2)


@pytest.mark.usefixtures("products_as_in_a_run")
def test_compiled_networks_and_views_agree_with_eager():
    torch.manual_seed(0)
    batch = on_cuda(random_batches(1, 16, size=32)[0])
    model = ReSSL(make_config(batchnorm__groups=2)).cuda()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    eager = model.training_step(batch, 0).item()
    model.load_state_dict(state)
    for network in model.networks:
        network.compile(fullgraph=True)
    assert model.training_step(batch, 0).item() == pytest.approx(eager, rel=1e-3)

    images = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8).cuda()
    read = recipe.read(AUGMENTATIONS)
    plain, compiled = (
        batched.draw(images, read, torch.Generator().manual_seed(0), core=core)
        for core in (None, torch.compile(batched.apply_dense, fullgraph=True))
    )
    for a, b in zip(plain, compiled):
        assert ((a - b).abs() * 255 * 0.229).quantile(0.99) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(256, 64, 32, 32), (66, 512, 4, 4), (66, 2048, 7, 7)])
def test_group_batch_norm_is_float64s(dtype, layout, shape):
    assert batchnorm._gpu_takes_kernels()
    layer = GroupBatchNorm2d(shape[1], groups=8)
    torch.nn.init.uniform_(layer.weight)
    x = (3 * torch.randn(shape) + 2).to(dtype).to(memory_format=layout)
    slope = torch.randn(shape).to(dtype).to(memory_format=layout)
    results = []
    for one, images in ((copy.deepcopy(layer).cuda(), x.cuda()), (layer.double(), x.double())):
        y = one(images.requires_grad_())
        y.backward(slope.to(y))
        results.append([y, images.grad, one.weight.grad, one.bias.grad, *one.buffers()])
    assert results[0][0].is_contiguous(memory_format=layout)
    for i, (found, wanted) in enumerate(zip(*results)):
        wanted = wanted.double()
        # of bfloat16 y and the gradient by x are rounded; sums are float32, over 2**18 products
        bound = 2 * torch.finfo(dtype).eps if dtype == torch.bfloat16 and i < 2 else 1e-5
        assert (found.cpu() - wanted).abs().max() <= bound * wanted.abs().max()


def run(root, folder, callbacks=(), **changes):
    cfg = make_config(
        data__train_path=str(root / "train"), data__backend="batched", run_dir=str(folder),
        accelerator="gpu", enable_progress_bar=False, checkpoint={"every_n_steps": 1},
        **{"precision": "bf16-mixed", **changes},
    )  # fmt: skip
    for key in ("num_classes", "num_large_crops", "num_small_crops"):
        del cfg.data[key]
    pretrain.pretrain(config.finish(cfg), callbacks)
    return torch.load(io.BytesIO((folder / "last.ckpt").read_bytes()), weights_only=True)


def test_a_run_goes_on_where_it_was_stopped(tmp_path):
    """Close, not equal: CUDA's backward convolutions add in any order."""
    root = image_folder(tmp_path / "images", splits=("train",))
    how = {"max_epochs": 2, "performance__capture": False}
    whole = run(root, tmp_path / "whole", **how)
    with pytest.raises(Interrupted):
        run(root, tmp_path / "parts", [Stop(4)], **how)
    resumed = run(root, tmp_path / "parts", resume=True, **how)
    assert resumed["global_step"] == whole["global_step"]
    assert torch.equal(resumed["state_dict"]["queue_ptr"], whole["state_dict"]["queue_ptr"])
    for name in ("queue", "backbone.conv1.weight"):
        a, b = (state["state_dict"][name].float() for state in (resumed, whole))
        assert (a - b).norm() < 0.05 * b.norm()


def test_dali_decodes_on_the_device(tmp_path):
    pytest.importorskip("nvidia.dali", reason="the extra `dali` is not installed")
    from ressl_plugin import data
    from ressl_plugin.data import dali

    root = image_folder(tmp_path, splits=("train",))
    cfg = make_config(
        data__train_path=str(root / "train"), dali={"device": "gpu"}, optimizer__batch_size=8
    )
    del cfg.data["num_classes"]
    cfg = config.finish(cfg)
    read = recipe.read(cfg.augmentations)
    batches = dali.DaliLoader(
        cfg, read, data.build_dataset(cfg, "pretrain"), device=torch.device("cuda")
    )
    seen = []
    for indexes, views, targets in batches:
        assert all(view.is_cuda and view.shape == (8, 3, 16, 16) for view in views)
        assert all(view.isfinite().all() for view in views) and targets.is_cuda
        seen += indexes.tolist()
    assert sorted(seen) == list(range(24))


def assert_close(ours, theirs):
    assert ours["global_step"] == theirs["global_step"]
    assert torch.equal(ours["state_dict"]["queue_ptr"], theirs["state_dict"]["queue_ptr"])
    for name, value in theirs["state_dict"].items():
        difference = (ours["state_dict"][name].float() - value.float()).norm()
        # a bias begins at zero, and is still the sum of a few rounded gradients
        assert difference <= 0.1 * value.float().norm() + 1e-6, name


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "32-true"},
        {"batchnorm__groups": 2, "batchnorm__permute": True},
        {"momentum__final_tau": 1.0, "momentum__classifier": True},
        {"method_kwargs__infonce_epochs": 2, "method_kwargs__predictor": True},
    ],
)
def test_a_captured_run_is_the_plain_run(tmp_path, changes):
    """Close, not equal: CUDA's kernels add in any order, and a captured rate is a float32."""
    root = image_folder(tmp_path / "images", splits=("train",))
    plain, captured = (
        run(root, tmp_path / str(way), max_epochs=4, performance__capture=way, **changes)
        for way in (False, True)
    )
    assert_close(captured, plain)
    losses = [
        metrics.read_metrics(tmp_path / way)["train_ressl_loss"][1] for way in ("False", "True")
    ]
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_captured_run_goes_on_where_it_was_stopped(tmp_path):
    root = image_folder(tmp_path / "images", splits=("train",))
    more = {"max_epochs": 4, "performance__capture": True}
    whole = run(root, tmp_path / "whole", **more)
    with pytest.raises(Interrupted):
        run(root, tmp_path / "parts", [Stop(7)], **more)
    assert_close(run(root, tmp_path / "parts", resume=True, **more), whole)


class Replays(pl.Callback):
    """Which steps are replayed; any of these that waits for the device is an error."""

    def __init__(self):
        self.found = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.found.append(module._graph is not None)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if self.found[-1] else "default")

    def on_before_backward(self, *_):  # behind all of the step
        torch.cuda.set_sync_debug_mode("default")


def test_a_replayed_step_waits_for_nothing(tmp_path):
    root, seen = image_folder(tmp_path / "images", splits=("train",)), Replays()
    try:
        run(root, tmp_path / "run", [seen], max_epochs=3, performance__capture=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen.found == [False] * 4 + [True] * 5
