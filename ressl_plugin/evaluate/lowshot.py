"""Low-shot classification with linear SVMs on frozen features (Table 9).

The protocol is that of Goyal et al., "Scaling and Benchmarking Self-Supervised Visual
Representation Learning" (ICCV 2019): features scaled to unit length, one LIBLINEAR SVM a class
(squared hinge, positives weighted 2:1), K positives and (classes - 1) K negatives a class, five
draws. Costs: for the full set by 3-fold cross-validation; for low-shot the one with the best mean
mAP over the draws on the test set, as published numbers are made (`cost="protocol"`), or without a
look at the test set by cross-validation (`cost="cv"`), or a number, the same for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from ressl_plugin.errors import UserError
from ressl_plugin.evaluate.ap import IGNORE, average_precision

SHOTS = (1, 2, 4, 8, 16, 32, 64, "full")
COSTS = (*(10.0**n for n in range(-7, 3)), *(0.5**n for n in range(4, 20)))  # the benchmark's


def one_hot(targets, classes: int | None = None) -> np.ndarray:
    """Single labels (N,) as the 0/1 matrix (N, classes) that this module works on."""
    targets = np.asarray(targets)
    if targets.ndim == 2:
        return targets.astype(np.int8)
    if len(targets) == 0 or targets.min() < 0:
        raise UserError("low-shot: the images have no labels; give a labelled data set")
    return np.eye(classes or int(targets.max()) + 1, dtype=np.int8)[targets]


def draw(targets, shots: int | str, seed: int, sampling: str = "class") -> np.ndarray:
    """Training labels of one low-shot draw: (N, classes) with 1, 0, and -1 where not used.

    Args:
        targets: (N, classes) with 1, 0, -1.
        shots: K, or "full" (the labels as they are).
        sampling: "class": K positives and (classes - 1) K negatives, drawn for each class on its
            own (the benchmark's); "image": K images of each class, with all the labels they have
            (as PCL's code, whose Table 9 rows the paper compares with).

    Raises:
        UserError: a class has fewer than K positives.
    """
    targets = np.asarray(targets)
    if shots == "full":
        return targets
    generator = np.random.default_rng(seed)
    classes = targets.shape[1]
    chosen = np.full_like(targets, IGNORE)
    for c in range(classes):
        positive, negative = (np.flatnonzero(targets[:, c] == value) for value in (1, 0))
        if len(positive) < shots:
            raise UserError(
                f"low-shot: class {c} has {len(positive)} positive images, K = {shots}; lower K"
            )
        rows = generator.choice(positive, shots, replace=False)
        if sampling == "image":
            chosen[rows] = targets[rows]
        elif sampling == "class":
            wanted = min(len(negative), max(1, classes - 1) * shots)
            chosen[rows, c] = 1
            chosen[generator.choice(negative, wanted, replace=False), c] = 0
        else:
            raise UserError(f"low-shot: sampling '{sampling}' unknown; class or image")
    return chosen


def low_shot(
    features_train,
    y_train,
    features_test,
    y_test,
    shots: Sequence[int | str] = SHOTS,
    draws: int = 5,
    seed: int = 0,
    costs: Sequence[float] = COSTS,
    cost: str | float = "protocol",
    metric: str = "mAP",
    ap: str = "voc",
    sampling: str = "class",
) -> list[dict]:
    """mAP or top-1 accuracy (%) for each K, mean and spread over draws ("full": one fit).

    Args:
        features_train: (N, d), y_train: (N,) labels or (N, classes) of 1/0/-1; test likewise.
        cost: "protocol", "cv" or a number; see the module's docstring.
        metric: "mAP", or "top1" (single labels: the SVM of highest score).
        ap: kind of average precision, see `ap.average_precision`.

    Returns:
        One {"count" (K), "mean", "spread" (ddof 1, None for one draw), "values", "seeds", "cost",
        "metric", "ap", "sampling"} for each K. `cost` is None where each class has its own.

    Raises:
        UserError: labels missing, too few positives, features and labels that do not match.
    """
    y_train, y_test = one_hot(y_train), one_hot(y_test)
    classes = max(y_train.shape[1], y_test.shape[1])
    y_train, y_test = (np.pad(y, ((0, 0), (0, classes - y.shape[1]))) for y in (y_train, y_test))
    x_train, x_test = _unit_rows(features_train), _unit_rows(features_test)
    if len(x_train) != len(y_train) or len(x_test) != len(y_test):
        raise UserError("low-shot: features and labels differ in number; extract them again")
    if isinstance(cost, str) and cost not in ("protocol", "cv"):
        raise UserError(f"low-shot: cost '{cost}' unknown; protocol, cv or a number")
    costs = sorted(set(costs)) if isinstance(cost, str) else [float(cost)]
    found = []
    for k in shots:
        seeds = [seed] if k == "full" else [seed + i for i in range(draws)]
        by_cv = len(costs) > 1 and (cost == "cv" or k == "full")
        table = []  # (draws, costs); (draws, 1) where every class finds its own cost
        for one in seeds:
            labels = draw(y_train, k, one, sampling)
            tried = [costs] if by_cv else [[c] for c in costs]
            table.append(
                [_score(y_test, _decisions(x_train, labels, x_test, c), metric, ap) for c in tried]
            )
        best = int(np.argmax(np.mean(table, axis=0)))
        values = [100 * float(row[best]) for row in table]
        found.append(
            {
                "count": k,
                "mean": float(np.mean(values)),
                "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "values": values,
                "seeds": seeds,
                "cost": None if by_cv else costs[best],
                "metric": metric,
                "ap": ap,
                "sampling": sampling,
            }
        )
    return found


def single_label(
    features_train,
    y_train,
    features_test,
    y_test,
    counts=SHOTS,
    draws: int = 5,
    seed: int = 0,
    cost: float = 10.0,
) -> list[dict]:
    """`low_shot` for a single-label data set: K images a class, top-1 accuracy, one cost for all.

    Classes that each chose their own cost would have scores that cannot be compared, and with a few
    positives a choice is mostly noise. On the digits, 10 is within 2 points of the best cost for
    trained features and for raw pixels, at 1, 4, 16 and all labels a class.
    """
    data = (features_train, y_train, features_test, y_test)
    return low_shot(*data, counts, draws, seed, cost=cost, metric="top1", sampling="image")


def voc(backbone, root, cfg, counts=SHOTS, draws: int = 5, device="cpu", **options) -> list[dict]:
    """`low_shot` on VOC07: trained on trainval, tested on test (Table 9).

    Args:
        backbone: images (N, 3, S, S) -> (N, d), S the run's evaluation size.
        root: the VOCdevkit as it is unpacked.
        cfg: the run's config; its evaluation transform is used (shorter side 256, crop 224).
        options: more arguments for `low_shot`.

    Raises:
        UserError: the devkit is incomplete.
    """
    from torch.utils.data import DataLoader

    from ressl_plugin import data
    from ressl_plugin.evaluate.features import extract
    from ressl_plugin.evaluate.voc import VOC

    splits = [
        VOC(root, split, data.evaluation_transform(cfg, any_size=True))
        for split in ("trainval", "test")
    ]
    only = sorted(set(splits[0].classes) ^ set(splits[1].classes))
    if only:
        raise UserError(
            f"{root}: trainval and test have other classes, only one of them has "
            f"{', '.join(only)}; unpack the devkit again"
        )
    cached = []
    for images in splits:
        cached += extract(
            backbone, DataLoader(images, 64, num_workers=cfg.data.num_workers), device
        )
    return low_shot(*cached, counts, draws, **options)


def count_named(word: str) -> int | str:
    """K from the command line: a positive number or "full". Raises UserError for other words."""
    if word in ("full", "all"):
        return "full"
    if not word.isdecimal() or int(word) < 1:
        raise UserError(f"labels a class: '{word}'; a positive number or full")
    return int(word)


def _decisions(x_train, labels, x_test, costs):
    """Scores (M, classes); with several costs each class takes its own by cross-validation."""
    from joblib import Parallel, delayed

    def one(c):
        used = labels[:, c] != IGNORE
        x, y = x_train[used], np.where(labels[used, c] > 0, 1, -1)
        if len(np.unique(y)) < 2:
            raise UserError(f"low-shot: class {c} has only one kind of label in the training set")
        best = costs[0] if len(costs) == 1 else _choose_cost(x, y, costs)
        return _svm(best).fit(x, y).decision_function(x_test)

    with warnings.catch_warnings():
        # the protocol stops LIBLINEAR after 2000 iterations, converged (small costs) or not
        warnings.simplefilter("ignore")
        # LIBLINEAR lets go of the interpreter lock
        columns = Parallel(n_jobs=-1, prefer="threads")(map(delayed(one), range(labels.shape[1])))
    return np.stack(columns, axis=1)


def _score(y_test, scores, metric, ap):
    if metric == "mAP":
        return np.mean([average_precision(y, s, ap) for y, s in zip(y_test.T, scores.T)])
    if metric == "top1":
        return np.mean(y_test[np.arange(len(y_test)), scores.argmax(1)] == 1)
    raise UserError(f"low-shot: metric '{metric}' unknown; mAP or top1")


def _svm(cost):
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=0)


def _choose_cost(x, y, costs, folds: int = 3):
    """The cost of best mean AP over stratified folds; 1 where there are too few positives."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(folds, int((y == 1).sum()), int((y == -1).sum()))
    if folds < 2:
        return 1.0
    splits = list(StratifiedKFold(folds).split(x, y))

    def mean_ap(cost):
        fitted = ((_svm(cost).fit(x[a], y[a]), b) for a, b in splits)
        return np.mean(
            [average_precision(y[b] > 0, svm.decision_function(x[b])) for svm, b in fitted]
        )

    return max(costs, key=mean_ap)


def _unit_rows(features):
    x = np.asarray(features, dtype=np.float64)
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5)  # the benchmark's epsilon
