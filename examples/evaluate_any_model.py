"""The package's kNN and linear probe on any timm model, whoever has trained it.

    python examples/evaluate_any_model.py resnet18.a1_in1k        # weights from timm's hub
    python examples/evaluate_any_model.py local-dir:FOLDER        # of `ressl export`, or your own

The images are scikit-learn's digits; another folder of class folders with train/ and val/ in it is
the second argument. The images are prepared as the model's own description says.
"""

import sys

import timm
import torch
from torchvision.datasets import ImageFolder

from ressl_plugin.data import make_digits
from ressl_plugin.evaluate import knn, logistic
from ressl_plugin.evaluate.features import extract


def main(name, folder="datasets/digits", device="cpu", pretrained=True):
    """Print and return top-1 accuracies in %, {"kNN", "linear"}."""
    model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    how = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**how, is_training=False)
    found = []
    for split in ("train", "val"):
        images = ImageFolder(f"{folder}/{split}", transform)
        loader = torch.utils.data.DataLoader(images, batch_size=64)
        found += extract(model, loader, device, progress=False)  # features (N, d), labels (N,)
    top1 = {
        "kNN": knn.default_cell(*found)["top1"],  # k = 20, cosine, T = 0.07
        "linear": logistic.probe(*found, device=device)["top1"],  # at its optimum
    }
    numbers = ", ".join(f"{what} {value:.1f} %" for what, value in top1.items())
    print(f"{name}: {found[0].shape[1]} features, {numbers}")
    return top1


if __name__ == "__main__":
    arguments = sys.argv[1:] or ["resnet18.a1_in1k"]
    if len(arguments) < 2:
        make_digits("datasets/digits")
    main(*arguments)
