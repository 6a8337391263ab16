"""ReSSL in a loop of one's own: the package's views, loss and memory, and PyTorch.

    python examples/own_loop.py          # scikit-learn's digits, half a minute on one CPU core

Nothing here knows solo-learn or Lightning. Prints the 20-nearest-neighbour accuracy on 360 test
digits before and after training.
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from ressl_plugin import FeatureQueue, RelationalLoss, Views
from ressl_plugin.evaluate import knn

MEAN_STD = (0.31,) * 3, (0.38,) * 3
LEVELS = {"prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.0, "hue": 0.0}
VIEWS = [  # no flips, which would turn digits into others
    {"role": "student", "crop_size": 16, "rrc": {"crop_min_scale": 0.5}, "color_jitter": LEVELS},
    {"role": "teacher", "crop_size": 16, "rrc": {"crop_min_scale": 0.7}},
]


def digits():
    """All images, uint8 (1797, 8, 8, 3), and their labels (1797,)."""
    found = load_digits()
    levels = torch.tensor(found.images * 255 / 16).round().byte()
    return levels[..., None].expand(-1, -1, -1, 3), torch.tensor(found.target)


def accuracy(encoder, images, labels, train=1437):
    """kNN on features of the clean images, in %."""
    (mean, *_), (std, *_) = MEAN_STD
    clean = F.interpolate(images.permute(0, 3, 1, 2) / 255, size=16, mode="bilinear")
    with torch.no_grad():
        x = copy.deepcopy(encoder).eval()((clean - mean) / std)
    return knn.default_cell(x[:train], labels[:train], x[train:], labels[train:])["top1"]


def main(epochs=20, batch=128, lr=0.12, m=0.99):
    """Train on the first 1,437 digits."""
    torch.manual_seed(0)
    images, labels = digits()
    conv = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
    encoder = nn.Sequential(conv(3, 32), conv(32, 64), conv(64, 128), nn.Flatten())
    head = nn.Sequential(nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))
    student = nn.Sequential(encoder, head)
    teacher = copy.deepcopy(student).requires_grad_(False)
    views = Views(VIEWS, MEAN_STD)
    criterion, queue = RelationalLoss(tau_s=0.1, tau_t=0.04), FeatureQueue(512, 64)
    sgd = torch.optim.SGD(student.parameters(), lr, momentum=0.9, weight_decay=5e-4)

    print(f"untrained: kNN {accuracy(encoder, images, labels):.1f} %")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, epochs)
    for epoch in range(epochs):
        for i in torch.randperm(1437).split(batch)[:-1]:
            (contrastive,), weak = views(images[i])
            z_t = F.normalize(teacher(weak), dim=1)
            loss, entropy = criterion(F.normalize(student(contrastive), dim=1), z_t, queue.rows)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            queue.enqueue(z_t)
            with torch.no_grad():  # Eq. 6
                for t, s in zip(teacher.parameters(), student.parameters()):
                    t.lerp_(s, 1 - m)
        schedule.step()
        if epoch % 5 == 4 or epoch + 1 == epochs:
            found = accuracy(encoder, images, labels)
            print(f"epoch {epoch + 1}: loss {loss:.2f}, entropy {entropy:.2f}, kNN {found:.1f} %")


if __name__ == "__main__":
    main()
