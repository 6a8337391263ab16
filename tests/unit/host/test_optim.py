"""Learning rates, their schedules, LARS and the momentum schedule, the same on both hosts."""

import copy
import math

import lightning.pytorch as pl
import pytest
import torch

from ressl_plugin import host


def closed_form(t, warmup, length, start, lr, end):
    if t < warmup:
        return start + t * (lr - start) / (warmup - 1)
    return end + (lr - end) * (1 + math.cos(math.pi * (t - warmup) / (length - warmup))) / 2


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_schedule_in_closed_form(interval, config, trained, tiny, toy):
    cfg = config("ressl", backbone=tiny, max_epochs=6, momentum={"classifier": True})
    cfg.scheduler = {
        "name": "warmup_cosine",
        "warmup_epochs": 2,
        "warmup_start_lr": 1e-3,
        "min_lr": 1e-4,
        "interval": interval,
    }
    model = toy(cfg)
    trained(model, epochs=6, val=False)
    assert len(model.seen) == 12
    a = 2 if interval == "step" else 1
    for step, rates in enumerate(model.seen):
        t = step if interval == "step" else step // 2
        for rate, lr in zip(rates, (0.01, 0.05, 0.05)):
            assert rate == pytest.approx(closed_form(t, 2 * a, 6 * a, 1e-3, lr, 1e-4), rel=1e-5)


def test_step_schedule_static_rate_and_no_decay_of_vectors(config, trained, tiny, toy):
    class Static(toy):
        @property
        def learnable_params(self):
            groups = super().learnable_params
            return [groups[0], {**groups[1], "static_lr": True}]

    cfg = config("ressl", backbone=tiny, max_epochs=2)
    cfg.optimizer.exclude_bias_n_norm_wd = True
    cfg.optimizer.weight_decay = 0.1
    cfg.scheduler = {"name": "step", "lr_decay_steps": [1]}
    model = Static(cfg)
    runner = trained(model, epochs=2, val=False)
    groups = runner.optimizers[0].param_groups
    assert [group["name"] for group in groups] == [
        "backbone",
        "backbone_no_decay",
        "classifier",
        "classifier_no_decay",
    ]
    assert [group["weight_decay"] for group in groups] == [0.1, 0, 0, 0]
    for group in groups:
        vectors = [p.ndim <= 1 for p in group["params"]]
        assert all(vectors) if group["name"].endswith("_no_decay") else not any(vectors)
    assert model.seen[0][0] == 0.01 and model.seen[-1][0] == pytest.approx(0.001)
    # The groups with static_lr are held at the base rate once the schedule sets them.
    assert model.seen[-1][2] == model.seen[-1][3] == 0.01


def test_accumulation_multiplies_the_rate(config, tiny):
    model = host.build_method(config("simclr", backbone=tiny, accumulate_grad_batches=4))
    assert model.lr == pytest.approx(0.04) and model.classifier_lr == pytest.approx(0.2)


def test_batch_size_and_devices_do_not_scale_the_rate(config, tiny):
    model = host.build_method(
        config("simclr", backbone=tiny, optimizer__batch_size=512, devices="auto")
    )
    assert model.lr == 0.01


def lars_step(parameters, gradients, lr, eta, decay):
    """One step of LARS without momentum, by its definition."""
    out = []
    for p, g in zip(parameters, gradients):
        trust = eta * p.norm() / (g.norm() + decay * p.norm() + 1e-8)
        out.append(p - lr * trust * (g + decay * p) if p.ndim > 1 else p - lr * g)
    return out


def test_lars_scales_the_gradient_of_the_closure(config, trained, tiny, toy):
    cfg = config("ressl", backbone=tiny, scheduler={"name": "none"})
    cfg.optimizer.name = "lars"
    cfg.optimizer.weight_decay = 0.01
    cfg.optimizer.kwargs = {"momentum": 0.0, "eta": 0.02, "exclude_bias_n_norm": True}
    torch.manual_seed(0)
    model = toy(cfg)
    seen = {}

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            if "parameters" not in seen:
                ps = [p for p in module.backbone.parameters() if p.grad is not None]
                seen["parameters"] = [p.detach().clone() for p in ps]
                seen["gradients"] = [p.grad.clone() for p in ps]

        def on_train_batch_end(self, trainer, module, *_):
            seen.setdefault("after", [p.detach().clone() for p in module.backbone.parameters()])

    trained(model, val=False, callbacks=[Watch()])
    expected = lars_step(seen["parameters"], seen["gradients"], 0.01, 0.02, 0.01)
    for after, reference in zip(seen["after"], expected, strict=True):
        torch.testing.assert_close(after, reference, rtol=1e-5, atol=1e-7)


def test_resumed_run_goes_on_with_its_tau(config, trained, tmp_path, tiny):
    momentum = {"base_tau": 0.5, "final_tau": 1.0}
    taus = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            taus.append(module.momentum_updater.cur_tau)  # of this step's update

        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def run(**options):
        model = host.build_method(config("byol", backbone=tiny, max_epochs=4, momentum=momentum))
        trained(model, epochs=4, val=False, callbacks=[Watch()], **options)

    run()
    run(ckpt_path=tmp_path / "half.ckpt")
    cosine = [1 - 0.25 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert taus == pytest.approx([*cosine, *cosine[4:]])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_teacher_moves_as_the_hosts_own_hook_moved_it(accumulate, config, trained, tiny):
    """After each optimizer step, by the tau that the steps before it give."""
    cfg = config(
        "byol", backbone=tiny, max_epochs=6, accumulate_grad_batches=accumulate,
        momentum={"base_tau": 0.5, "final_tau": 1.0},
    )  # fmt: skip
    torch.manual_seed(0)
    model = host.build_method(cfg)
    pairs = [(student, copy.deepcopy(teacher)) for student, teacher in model.momentum_pairs]
    updater = type(model.momentum_updater)(0.5, 1.0)
    seen = []

    class HostsOwn(pl.Callback):
        last_step = 0

        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step > self.last_step:
                for student, teacher in pairs:
                    updater.update(student, teacher)
                seen.append(updater.cur_tau)
                updater.update_tau(
                    cur_step=trainer.global_step, max_steps=trainer.estimated_stepping_batches
                )
            self.last_step = trainer.global_step
            for (_, ours), (_, theirs) in zip(module.momentum_pairs, pairs, strict=True):
                for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                    assert torch.equal(a, b)

    runner = trained(
        model, epochs=6 // (2 // accumulate), val=False, callbacks=[HostsOwn()],
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    assert runner.global_step == len(seen) == 6
    assert runner.callback_metrics["tau"] == pytest.approx(seen[-1])
