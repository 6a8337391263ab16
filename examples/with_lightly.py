"""ReSSL in lightly: its transforms, backbone, head and training loop, our loss and memory.

    python examples/with_lightly.py      # pip install lightly; digits, a minute on one CPU core

A training of lightly's MoCo v2 with ten lines changed, which docs/lightly.md shows side by side.
Prints the kNN accuracy on 360 test digits: 75 % untrained, 92 % after ten epochs.
"""

import copy

import torch
from lightly.models import ResNetGenerator
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from lightly.transforms.simclr_transform import SimCLRViewTransform
from own_loop import digits
from PIL import Image
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from ressl_plugin import FeatureQueue, RelationalLoss
from ressl_plugin.evaluate import knn

SEEN = {"input_size": 16, "hf_prob": 0.0, "normalize": {"mean": [0.31] * 3, "std": [0.38] * 3}}


class MoCo(nn.Module):
    def __init__(self):
        super().__init__()
        resnet = ResNetGenerator("resnet-9", width=0.125)
        self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
        self.projection_head = MoCoProjectionHead(64, 256, 64, batch_norm=True)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x).flatten(1)).detach()


def main(epochs=10, batch_size=64):
    torch.manual_seed(0)
    arrays, labels = digits()
    images = [Image.fromarray(array.numpy()) for array in arrays]
    transform = MoCoV2Transform(**SEEN, min_scale=0.5, random_gray_scale=0.0)
    transform.transforms[1] = SimCLRViewTransform(**SEEN, min_scale=0.7, cj_prob=0, gaussian_blur=0)
    plain = MoCoV2Transform(**SEEN, min_scale=1.0, cj_prob=0, gaussian_blur=0).transforms[0]
    clean = torch.stack([plain(image) for image in images])
    collate = lambda batch: [torch.stack(views) for views in zip(*map(transform, batch))]
    loader = DataLoader(images[:1437], batch_size, True, drop_last=True, collate_fn=collate)
    model = MoCo()
    criterion = RelationalLoss(tau_s=0.1, tau_t=0.04)
    queue = FeatureQueue(512, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs + 1):
        with torch.no_grad():
            x = copy.deepcopy(model.backbone).eval()(clean).flatten(1)
        found = knn.default_cell(x[:1437], labels[:1437], x[1437:], labels[1437:])["top1"]
        print(f"after {epoch} epochs: kNN {found:.1f} %")
        for x_query, x_key in loader if epoch < epochs else ():
            update_momentum(model.backbone, model.backbone_momentum, m=0.99)
            update_momentum(model.projection_head, model.projection_head_momentum, m=0.99)
            query = normalize(model(x_query), dim=1)
            key = normalize(model.forward_momentum(x_key), dim=1)
            loss, _ = criterion(query, key, queue.rows)
            queue.enqueue(key)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    main()
