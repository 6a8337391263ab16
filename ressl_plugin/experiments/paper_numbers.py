"""The numbers of the ReSSL paper (NeurIPS 2021, arXiv 2107.09282), Tables 1 to 10, in %.

Rows and columns carry the names that runs are matched by: data-set names of the configs (cifar10,
cifar100, stl10, tiny-imagenet, imagenet), method names as the paper prints them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ressl_plugin.data.catalogue import DATASETS


@dataclass(frozen=True)
class PaperTable:
    """One table: `values[row][column]`, and what the numbers are."""

    number: int
    title: str
    metric: str
    columns: tuple
    values: dict

    def get(self, row, column) -> float | None:
        """The paper's number, or None where it has none."""
        return self.values.get(row, {}).get(column)


# images and classes that the paper evaluates on, and images that it pre-trains on
_OF_THE_PAPER = {name: row for name, row in DATASETS.items() if row.images}
TEST_SETS = {
    **{name: (row.images[1], row.classes) for name, row in _OF_THE_PAPER.items()},
    "voc07": (4_952, 20),
}
TRAINING_SETS = {name: row.images[0] for name, row in _OF_THE_PAPER.items()}
EPOCHS = 200
SUPERVISED_EPOCHS = {6: 120, 9: 90}  # of the row in these tables
GRID = 14  # pairs of temperatures in Table 2, of which Table 3 takes the best

SMALL = ("cifar10", "cifar100", "stl10", "tiny-imagenet")
LINEAR = "linear top-1"


def _table(number, title, metric, columns, rows):
    values = {name: dict(zip(columns, numbers)) for name, numbers in rows.items()}
    return PaperTable(number, title, metric, tuple(columns), values)


TAU_T = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07)
KS_SMALL = (256, 512, 1024, 4096, 8192, 16384)
KS_MEDIUM = (256, 1024, 4096, 8192, 16384, 32768)
TEACHER_OPS = {
    "none": 31.74, "C": 46.00, "F": 30.98, "J": 29.46, "G": 29.68, "B": 30.10, "CF": 46.60,
    "CJ": 44.44, "CG": 42.28, "CB": 44.88, "CFJ": 43.70, "CFG": 42.28, "CFB": 44.52,
}  # fmt: skip

_QUEUE = {
    **{
        name: dict(zip(KS_SMALL, row))
        for name, row in {
            "cifar10": (89.37, 89.53, 89.83, 90.04, 90.15, 90.35),
            "cifar100": (61.17, 62.47, 63.20, 63.79, 63.84, 64.06),
        }.items()
    },
    **{
        name: dict(zip(KS_MEDIUM, row))
        for name, row in {
            "stl10": (85.88, 87.23, 87.72, 87.42, 87.32, 87.47),
            "tiny-imagenet": (43.08, 45.32, 45.78, 45.42, 46.60, 46.48),
        }.items()
    },
}

TABLES = {
    1: _table(
        1,
        "ResNet-18, 200 epochs",
        LINEAR,
        SMALL,
        {
            "Supervised": (94.22, 74.66, 82.55, 59.26),
            "SimCLR": (84.92, 59.28, 85.48, 44.38),
            "BYOL": (85.82, 57.75, 87.45, 42.70),
            "SimSiam": (88.51, 60.00, 87.47, 37.04),
            "MoCoV2": (86.18, 59.51, 85.88, 43.36),
            "ReSSL": (90.20, 63.79, 88.25, 46.60),
        },
    ),
    2: _table(
        2,
        "temperatures (rows: data set, tau_s; columns: tau_t)",
        LINEAR,
        TAU_T,
        {
            ("cifar10", 0.1): (89.35, 89.74, 90.09, 90.04, 90.20, 90.18, 88.67),
            ("cifar10", 0.2): (89.52, 89.67, 89.24, 89.50, 89.22, 89.40, 89.50),
            ("cifar100", 0.1): (62.34, 62.79, 62.71, 63.79, 63.46, 63.20, 61.31),
            ("cifar100", 0.2): (60.37, 60.05, 60.24, 60.09, 59.09, 59.12, 59.76),
            ("stl10", 0.1): (86.65, 86.96, 87.16, 87.32, 88.25, 87.83, 87.08),
            ("stl10", 0.2): (85.17, 86.12, 85.01, 85.67, 85.21, 85.51, 85.28),
            ("tiny-imagenet", 0.1): (45.20, 45.40, 46.30, 46.60, 45.08, 45.24, 44.18),
            ("tiny-imagenet", 0.2): (43.28, 42.98, 43.58, 42.12, 42.70, 42.76, 42.60),
        },
    ),
    3: _table(
        3,
        "teacher's augmentation (the student's is contrastive)",
        LINEAR,
        SMALL,
        {"contrastive": (86.17, 57.60, 84.71, 40.38), "weak": (90.20, 63.79, 88.25, 46.60)},
    ),
    4: _table(
        4,
        "teacher's augmentation by operation (C crop, F flip, J jitter, G grayscale, B blur)",
        LINEAR,
        ("tiny-imagenet",),
        {ops: (value,) for ops, value in TEACHER_OPS.items()},
    ),
    5: PaperTable(5, "queue size K", LINEAR, tuple(sorted({*KS_SMALL, *KS_MEDIUM})), _QUEUE),
    6: _table(
        6,
        "ImageNet, ResNet-50, 200 epochs",
        LINEAR,
        ("imagenet",),
        {
            "Supervised": (76.5,),
            "InstDisc": (58.5,),
            "LocalAgg": (58.8,),
            "MoCo v2": (67.5,),
            "MoCHi": (68.0,),
            "CPC v2": (63.8,),
            "PCL v2": (67.6,),
            "AdCo": (68.6,),
            "CLSA-Single": (69.4,),
            "ReSSL 1x": (69.9,),
            "SimCLR": (66.8,),
            "SwAV": (69.1,),
            "SimSiam": (70.0,),
            "BYOL": (70.6,),
            "WCL": (70.3,),
            "ReSSL 2x": (71.4,),
        },
    ),
    7: _table(
        7,
        "ImageNet, ResNet-50, multi-crop, 200 epochs",
        LINEAR,
        ("imagenet",),
        {
            "SwAV": (72.7,),
            "AdCo": (73.2,),
            "CLSA-Multi": (73.3,),
            "ReSSL 4 crops": (73.8,),
            "ReSSL 5 crops": (74.7,),
        },
    ),
    8: _table(
        8,
        "ImageNet, ResNet-18, 200 epochs",
        LINEAR,
        ("imagenet",),
        {"MoCo v2": (52.2,), "SEED": (57.6,), "ReSSL 1x": (58.1,)},
    ),
    9: _table(
        9,
        "PASCAL VOC07 low-shot, linear SVM (columns: K positives a class)",
        "mAP",
        (16, 32, 64, "full"),
        {
            "Random": (10.10, 11.34, 11.96, 12.42),
            "Supervised": (82.26, 84.00, 85.13, 87.27),
            "MoCo v2": (76.14, 79.16, 81.52, 84.60),
            "PCL v2": (78.34, 80.72, 82.67, 85.43),
            "ReSSL": (79.17, 81.96, 83.81, 86.31),
        },
    ),
    10: _table(
        10,
        "ImageNet, semi-supervised (columns: fraction of the labels)",
        "top-1",
        (0.01, 0.1),
        {
            "SimCLR": (48.3, 65.6),
            "BYOL": (53.2, 68.6),
            "SwAV": (53.9, 70.2),
            "ReSSL 5 crops": (57.9, 70.4),
        },
    ),
}
