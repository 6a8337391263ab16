"""Algorithm 1 of the ReSSL paper in plain PyTorch: no framework, nothing of this package.

    python examples/algorithm1.py        # scikit-learn's digits, 15 seconds on one CPU core

M. Zheng et al., "ReSSL: Relational Self-Supervised Learning with Weak Augmentation", NeurIPS 2021.
`ReSSL.step` is the algorithm, line by line; the package is tested against it. Prints what a
5-nearest-neighbour vote gets right of 360 test digits: pixels 95.6, untrained network 94.2, trained
96.7 % (seed 0, torch 2.14, one core of an AMD EPYC).
"""

import copy
import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


class ReSSL:
    """Student, teacher and memory; `student` maps images (N, C, H, W) to embeddings (N, D)."""

    def __init__(self, student, optimizer, dim, size, tau_s=0.1, tau_t=0.04, m=0.99):
        self.student, self.optimizer = student, optimizer
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.queue = F.normalize(torch.randn(size, dim), dim=1)  # Q: (K, D), oldest row first
        self.tau_s, self.tau_t, self.m = tau_s, tau_t, m

    def step(self, contrastive, weak, order=None):
        """One step on two views of N images; `order` (N,) permutes the teacher's batch, which
        matters where batch norm is over groups of it."""
        order = torch.arange(len(weak)) if order is None else order
        z_s = F.normalize(self.student(contrastive), dim=1)
        with torch.no_grad():
            z_t = torch.empty_like(z_s)
            z_t[order] = F.normalize(self.teacher(weak[order]), dim=1)
            target = F.softmax(z_t @ self.queue.T / self.tau_t, dim=1)  # Eq. 3
        relation = F.log_softmax(z_s @ self.queue.T / self.tau_s, dim=1)  # Eq. 4
        loss = -(target * relation).sum(dim=1).mean()  # Eq. 5

        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.student.parameters()):
                t.mul_(self.m).add_(s, alpha=1 - self.m)  # Eq. 6
        self.queue = torch.cat([self.queue, z_t])[-len(self.queue) :]  # the oldest N leave
        return loss.detach()


def crop(images, least, turn=0.0):
    """Random resized crops of area (least, 1), turned by up to `turn` radians."""
    n = len(images)
    side, angle = torch.empty(n).uniform_(least, 1).sqrt(), torch.empty(n).uniform_(-turn, turn)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side * angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = -side * angle.sin(), side * angle.sin()
    theta[:, :, 2] = (1 - side)[:, None] * torch.empty(n, 2).uniform_(-1, 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def contrastive(images):
    """What the student sees: smaller crops, turned, of another contrast, with noise."""
    contrast = torch.empty(len(images), 1, 1, 1).uniform_(0.5, 1.5)
    return crop(images, 0.5, turn=0.4) * contrast + 0.1 * torch.randn_like(images)


def knn(feats, labels, train=1437, k=5):
    """Accuracy in % of the majority among the k nearest by cosine similarity."""
    rows = F.normalize(feats, dim=1)
    near = (rows[train:] @ rows[:train].T).topk(k).indices
    return 100 * (labels[near].mode(dim=1).values == labels[train:]).float().mean().item()


def main(epochs=60, batch=128, lr=0.12):
    """Train on the first 1,437 digits."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)
    x = F.interpolate(x, size=16, mode="bilinear")
    conv = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
    encoder = nn.Sequential(conv(1, 32), conv(32, 64), conv(64, 128), nn.Flatten())
    head = nn.Sequential(nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
    student = nn.Sequential(encoder, head)
    sgd = torch.optim.SGD(student.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    ressl = ReSSL(student, sgd, dim=64, size=512)

    features = lambda: copy.deepcopy(encoder).eval()(x).detach()
    print(f"kNN: pixels {knn(x.flatten(1), y):.1f}, untrained network {knn(features(), y):.1f} %")
    for epoch in range(epochs):
        sgd.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for i in torch.randperm(1437).split(batch)[:-1]:
            loss = ressl.step(contrastive(x[i]), crop(x[i], 0.7))
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d}, loss {loss:.3f}: kNN {knn(features(), y):.1f} %")


if __name__ == "__main__":
    main()
