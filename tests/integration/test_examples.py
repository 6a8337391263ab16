"""The examples run, on the digits, in seconds."""

from pathlib import Path

import algorithm1
import torch


def test_algorithm1_learns_the_digits(capsys):
    algorithm1.main(epochs=10)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and float(lines[1].split("kNN")[1].split()[0]) > 90
    source = Path(algorithm1.__file__).read_text()
    assert len(source.splitlines()) <= 100 and "ressl_plugin" not in source


def test_algorithm1_is_algorithm_1():
    """One step by the paper's formulas, in float64, with a linear student."""
    torch.manual_seed(0)
    student = torch.nn.Linear(3, 2).double()
    sgd = torch.optim.SGD(student.parameters(), 0.5)
    plain = algorithm1.ReSSL(student, sgd, 2, 5, tau_s=0.2, tau_t=0.1, m=0.9)
    plain.queue = plain.queue.double()
    contrastive, weak = torch.randn(2, 4, 3).double()
    queue, old = plain.queue.clone(), [p.detach().clone() for p in student.parameters()]
    unit = lambda z: z / z.norm(dim=1, keepdim=True)
    weights = [p.clone().requires_grad_() for p in old]
    z_t = unit(weak @ old[0].T + old[1])
    z_s = unit(contrastive @ weights[0].T + weights[1])
    exps = (z_t @ queue.T / 0.1).exp(), (z_s @ queue.T / 0.2).exp()
    target, relation = (e / e.sum(1, keepdim=True) for e in exps)
    expected = -(target * relation.log()).sum() / 4
    gradients = torch.autograd.grad(expected, weights)

    loss = plain.step(contrastive, weak, order=torch.tensor([2, 0, 3, 1]))
    torch.testing.assert_close(loss, expected.detach())
    new = [w - 0.5 * g for w, g in zip(old, gradients)]
    for o, n, s, t in zip(old, new, student.parameters(), plain.teacher.parameters()):
        torch.testing.assert_close(s, n)
        torch.testing.assert_close(t, 0.9 * o + 0.1 * n)
    torch.testing.assert_close(plain.queue, torch.cat([queue[4:], z_t]))
