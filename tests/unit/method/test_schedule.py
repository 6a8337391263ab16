"""The learning rate, step by step, against the reference code's formula."""

import math

import pytest
import torch

from ressl_plugin.method.schedule import WarmupCosine, warmup_cosine


def test_every_step_of_the_reference_code():
    base, per_epoch, epochs, warm = 0.06, 7, 20, 5
    for step in range(per_epoch * epochs):
        if step < warm * per_epoch:
            expected = base * step / (warm * per_epoch)
        else:
            done = (step - warm * per_epoch) / ((epochs - warm) * per_epoch)
            expected = 0.5 * base * (1 + math.cos(math.pi * done))
        got = warmup_cosine(step, base, per_epoch * epochs, warm * per_epoch)
        assert got == pytest.approx(expected, abs=1e-12)


def test_groups_keep_their_own_rates_and_a_resume_goes_on():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups)
    plan = WarmupCosine(optimizer, steps=10, warmup=2, start=0.0, final=0.01)
    seen = []
    for _ in range(10):
        seen.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        plan.step()
    assert seen[0] == [0.0, 0.0]
    assert seen[2] == [1.0, 0.1]
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.01, 0.01])

    again = torch.optim.SGD([{**g, "params": [torch.nn.Parameter(torch.zeros(1))]} for g in groups])
    resumed = WarmupCosine(again, steps=10, warmup=2, start=0.0, final=0.01)
    resumed.load_state_dict({**plan.state_dict(), "last_epoch": 4})
    assert resumed.get_lr() == pytest.approx(seen[4])


def test_a_checkpoint_says_where_the_schedule_stands_and_nothing_else():
    """Earlier ones hold the plan and the base rates, which must not undo a new config's."""
    make = lambda lr: torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    plan = WarmupCosine(make(1.0), steps=10, warmup=2)
    assert plan.state_dict() == {"last_epoch": 0}
    earlier = {"plan": plan.plan, "base_lrs": [1.0], "last_epoch": 10, "_step_count": 11}
    longer = WarmupCosine(make(0.5), steps=20, warmup=2)
    longer.load_state_dict({**earlier, "_last_lr": [0.0], "_is_initial": False})
    assert longer.get_lr() == [warmup_cosine(10, 0.5, 20, 2)]
    assert longer.state_dict() == {"last_epoch": 10}


def test_no_warmup_starts_at_the_top():
    assert warmup_cosine(0, 1.0, 10, 0) == 1.0
