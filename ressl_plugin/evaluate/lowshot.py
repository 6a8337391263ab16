"""`ressl lowshot`: low-shot classification with linear SVMs on frozen features (Table 9).

Features are scaled to unit length; each class has a LIBLINEAR SVM (squared hinge, positives
weighted 2:1); few shots are drawn five times. Two protocols fill in the rest:

- `pcl`, the public code of Li et al., "Prototypical Contrastive Learning" (ICLR 2021), whose
  numbers Table 9 takes over and whose protocol it follows: K images of each class, each with all
  its labels; an image that is drawn for two classes counts twice; "difficult" is absent, in
  training and in the test. One cost for all classes: 0.5, or of several the one with the best mean
  mAP over the draws, on the test set.
- `goyal`, the benchmark that PCL's code descends from, Goyal et al., "Scaling and Benchmarking
  Self-Supervised Visual Representation Learning" (ICCV 2019): for each class on its own K positives
  and (classes - 1) K negatives; "difficult" images are left out. 26 costs: few shots take the best
  one on the test set, all labels one a class by 3-fold cross-validation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from ressl_plugin.evaluate import voc as voc07
from ressl_plugin.evaluate.sampling import IGNORE, draw, summary, there_are
from ressl_plugin.evaluate.subject import Splits, append, device_named, with_overrides
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.render import number

COMMAND = {
    "name": "lowshot",
    "help": "linear SVMs on few labels (Table 9)",
    "arguments": {
        "--voc": {"type": "Path", "help": "VOCdevkit folder; default: the run's own data"},
        "--per-class": {"nargs": "+", "help": "labelled images of a class"},
        "--draws": {"type": "int", "help": "draws of the labelled images"},
        "--protocol": {
            "choices": ("pcl", "goyal"),
            "help": "of VOC07: as PCL's code, which the paper follows, or its forerunner's",
        },
    },
}
GOYAL = (*(10.0**n for n in range(-7, 3)), *(0.5**n for n in range(4, 20)))
COSTS = {"pcl": (0.5,), "goyal": GOYAL}
# Of every class: where each chose its own, their scores could not be compared. On the digits within
# 2 points of the best for trained features and for raw pixels, at 1, 4, 16 and all labels a class.
SINGLE_LABEL_COST = 10.0
TITLES = {"pcl": "VOC07 SVM as PCL", "goyal": "VOC07 SVM as Goyal"}  # in records


def evaluate(
    path,
    overrides,
    voc=None,
    per_class=("16", "32", "64", "full"),
    draws=5,
    device="auto",
    protocol="pcl",
) -> None:
    """Linear SVMs on VOC07 (`voc`: its devkit), or on the run's own single-label images.

    Example:
        >>> evaluate("runs/mine", [], voc="VOCdevkit", per_class=["16", "full"])  # doctest: +SKIP
    """
    run = with_overrides(path, overrides)
    place = device_named(device)
    counts = [count_named(word) for word in per_class]
    if draws < 1:
        raise UserError(f"--draws {draws}: at least 1")
    if voc is None and protocol != "pcl":
        raise UserError(f"--protocol {protocol}: of VOC07 alone; give --voc, its VOCdevkit folder")
    if voc is not None:
        parts, data_sets = voc07.extracted(run.backbone(), voc, run.cfg, place)
        how = {"protocol": protocol}
        title, metric, about = TITLES[protocol], "mAP", {"data": voc07.NAME, "data_sets": data_sets}
    else:
        parts = Splits(run, place).of(run.backbone())
        counts = there_are(counts, np.asarray(parts[1]).tolist())
        if not counts:
            raise UserError(f"low-shot: --per-class {' '.join(per_class)}: fewer are wanted")
        how = {"metric": "top1", "costs": [SINGLE_LABEL_COST]}
        title, metric, about = "SVM", "top1", {}
    for count in counts:  # each is kept once it is known: many images take long
        (found,) = low_shot(*parts, [count], draws, **how)
        print(
            f"low-shot, {count} a class: {metric} {number(found['mean'], found['spread'])}",
            flush=True,
        )
        more = {"spread": found["spread"], "seeds": found["seeds"]}
        more["details"] = {"cost": found["cost"]}
        append(run, "lowshot", f"{title}, {count} a class", metric, found["mean"], **about, **more)


def count_named(word: str) -> int | str:
    """K from the command line: a positive number or "full". Raises UserError for other words."""
    if word in ("full", "all"):
        return "full"
    if not word.isdecimal() or int(word) < 1:
        raise UserError(f"labels a class: '{word}'; a positive number or full")
    return int(word)


def one_hot(targets, classes: int | None = None) -> np.ndarray:
    """Single labels (N,) as the 0/1 matrix (N, classes) that this module works on."""
    targets = np.asarray(targets)
    if targets.ndim == 2:
        return targets.astype(np.int8)
    if len(targets) == 0 or targets.min() < 0:
        raise UserError("low-shot: the images have no labels; give a labelled data set")
    return np.eye(classes or int(targets.max()) + 1, dtype=np.int8)[targets]


def low_shot(
    features_train,
    y_train,
    features_test,
    y_test,
    shots: Sequence[int | str],
    draws: int = 5,
    protocol: str = "pcl",
    metric: str = "mAP",
    costs: Sequence[float] | None = None,
) -> list[dict]:
    """mAP or top-1 accuracy (%) for each K, mean and spread over draws ("full": one fit).

    Args:
        features_train: (N, d), y_train: (N,) labels or (N, classes) of 1/0/-1; test likewise.
        protocol: "pcl" or "goyal"; see the module's docstring.
        metric: "mAP", or "top1" (single labels: the SVM of highest score).
        costs: to choose from, in place of the protocol's.

    Returns:
        For each K its `sampling.summary`, "count" (K) and "cost", None where each class has its
        own.

    Raises:
        UserError: labels missing, or too few positives.

    Example:
        >>> low_shot(*features, shots=[16, "full"])[0]["mean"]  # as PCL's code  # doctest: +SKIP
    """
    from sklearn.preprocessing import normalize

    costs = sorted(set(costs or COSTS[protocol]))
    classes = max(one_hot(y).shape[1] for y in (y_train, y_test))
    y_train, y_test = one_hot(y_train, classes), one_hot(y_test, classes)
    if protocol == "pcl":
        y_train, y_test = (np.where(y == IGNORE, 0, y) for y in (y_train, y_test))
    x_train, x_test = (normalize(np.asarray(x, float)) for x in (features_train, features_test))
    score = {"mAP": mean_average_precision, "top1": _top1}[metric]
    found = []
    for k in shots:
        seeds = [0] if k == "full" else list(range(draws))
        by_class = protocol == "goyal" and k == "full"
        tried = [costs] if by_class else [[cost] for cost in costs]
        table = []  # (draws, costs); (1, 1) where every class finds its own cost
        for one in seeds:
            rows, labels = draw(y_train, k, one, "class" if protocol == "goyal" else "image")
            decisions = (_decisions(x_train[rows], labels, x_test, some) for some in tried)
            table.append([100 * score(y_test, scores) for scores in decisions])
        best = int(np.argmax(np.mean(table, axis=0)))
        cost = None if by_class else costs[best]
        found.append({"count": k, **summary([row[best] for row in table], seeds), "cost": cost})
    return found


def average_precision(targets, scores) -> float:
    """Average precision of one class, in [0, 1], as the low-shot benchmark and VOC2010 have it.

    The area under the monotone envelope of precision over recall; scikit-learn's
    `average_precision_score` is the area without it. Targets (N,) are 1 positive, 0 negative, -1
    ignored; equal scores (N,) share a threshold.

    Raises:
        UserError: no positive image.
    """
    from sklearn.metrics import precision_recall_curve

    targets, scores = np.asarray(targets), np.asarray(scores)
    known = targets != IGNORE
    if not (targets == 1).any():
        raise UserError("average precision: the test set has no positive image of a class")
    precision, recall, _ = precision_recall_curve(targets[known], scores[known])
    # recall falls along the curve: the best precision at as much recall or more is that so far
    return float(-np.sum(np.diff(recall) * np.maximum.accumulate(precision)[:-1]))


def mean_average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """Mean over the columns of (N, classes), in [0, 1]."""
    return float(np.mean([average_precision(*column) for column in zip(targets.T, scores.T)]))


def _top1(targets, scores):
    return float(np.mean(targets[np.arange(len(targets)), scores.argmax(1)] == 1))


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


def _svm(cost):
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=0)


def _choose_cost(x, y, costs):
    """The cost of best mean AP over three stratified folds; 1 where there are too few positives."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = min(3, int((y == 1).sum()), int((y == -1).sum()))
    if folds < 2:
        return 1.0
    how = {"cv": StratifiedKFold(folds), "scoring": "average_precision"}
    return max(costs, key=lambda cost: cross_val_score(_svm(cost), x, y, **how).mean())
