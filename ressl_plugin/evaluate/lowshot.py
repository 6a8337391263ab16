"""`ressl lowshot`: low-shot classification with linear SVMs on frozen features (Table 9).

Features are scaled to unit length; each class has a LIBLINEAR SVM (squared hinge, positives
weighted 2:1); few shots are drawn five times. Two protocols fill in the rest:

- `pcl`, the public code of Li et al., "Prototypical Contrastive Learning" (ICLR 2021), whose
  numbers Table 9 takes over and whose protocol it follows: K images of each class, each with all
  its labels; an image that is drawn for two classes counts twice; "difficult" is absent, in
  training and in the test. One cost for all classes: of those given the one with the best mean mAP
  over the draws, on the test set, for few shots and for all labels. Only 0.5 is given by default.
- `goyal`, the benchmark that PCL's code descends from, Goyal et al., "Scaling and Benchmarking
  Self-Supervised Visual Representation Learning" (ICCV 2019): for each class on its own K positives
  and (classes - 1) K negatives; "difficult" images are left out. 26 costs: few shots take the best
  one on the test set (`cost="protocol"`), all labels one a class by 3-fold cross-validation.

`cost` may also be "test" (as PCL's), "cv" (cross-validation, for few shots, too) or a number.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from ressl_plugin.evaluate import voc as voc07
from ressl_plugin.evaluate.average_precision import IGNORE, average_precision
from ressl_plugin.evaluate.sampling import draw
from ressl_plugin.evaluate.subject import (
    Splits,
    append,
    data_sets_of,
    device_named,
    with_overrides,
)
from ressl_plugin.utils.errors import UserError

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
SHOTS = (1, 2, 4, 8, 16, 32, 64, "full")
COSTS = (*(10.0**n for n in range(-7, 3)), *(0.5**n for n in range(4, 20)))  # Goyal et al.'s
PROTOCOLS = {
    "pcl": {"sampling": "image", "difficult": "absent", "costs": (0.5,), "cost": "test"},
    "goyal": {"sampling": "class", "difficult": "left out", "costs": COSTS, "cost": "protocol"},
}
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
    if voc is not None:
        cached, data_sets = voc07.extracted(run.backbone(), voc, run.cfg, place)
        found = low_shot(*cached, counts, draws, protocol=protocol)
        title, metric, name = TITLES[protocol], "mAP", voc07.NAME
    else:
        found = single_label(*Splits(run, place).of(run.backbone()), counts, draws)
        title, metric, name = "SVM", "top1", run.cfg.data.dataset
        data_sets = data_sets_of(run)
    for cell in found:
        spread = "" if cell["spread"] is None else f" ± {cell['spread']:.2f}"
        print(f"low-shot, {cell['count']} a class: {metric} {cell['mean']:.2f}{spread}", flush=True)
    for cell in found:
        append(
            run,
            "lowshot",
            f"{title}, {cell['count']} a class",
            metric,
            cell["mean"],
            spread=cell["spread"],
            seeds=cell["seeds"],
            data=name,
            details={key: cell[key] for key in ("cost", "ap", "sampling", "difficult")},
            data_sets=data_sets,
        )


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
    shots: Sequence[int | str] = SHOTS,
    draws: int = 5,
    seed: int = 0,
    protocol: str = "pcl",
    metric: str = "mAP",
    ap: str = "voc",
    **other,
) -> list[dict]:
    """mAP or top-1 accuracy (%) for each K, mean and spread over draws ("full": one fit).

    Args:
        features_train: (N, d), y_train: (N,) labels or (N, classes) of 1/0/-1; test likewise.
        protocol: "pcl" or "goyal"; see the module's docstring.
        metric: "mAP", or "top1" (single labels: the SVM of highest score).
        ap: kind of average precision, see `ap.average_precision`.
        other: in place of the protocol's own `sampling`, `difficult`, `costs`, `cost`.

    Returns:
        One {"count" (K), "mean", "spread" (ddof 1, None for one draw), "values", "seeds", "cost",
        "metric", "ap", "sampling", "difficult"} for each K. `cost` is None where each class has its
        own.

    Raises:
        UserError: labels missing, too few positives, features and labels that do not match.

    Example:
        >>> low_shot(*features, shots=[16, "full"])[0]["mean"]  # as PCL's code  # doctest: +SKIP
        >>> low_shot(*features, shots=[16], protocol="goyal")  # doctest: +SKIP
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"low-shot: protocol '{protocol}' unknown; {' or '.join(PROTOCOLS)}")
    how = {**PROTOCOLS[protocol], **other}
    y_train, y_test = one_hot(y_train), one_hot(y_test)
    classes = max(y_train.shape[1], y_test.shape[1])
    y_train, y_test = (np.pad(y, ((0, 0), (0, classes - y.shape[1]))) for y in (y_train, y_test))
    if how["difficult"] == "absent":
        y_train, y_test = (np.where(y == IGNORE, 0, y) for y in (y_train, y_test))
    x_train, x_test = _unit_rows(features_train), _unit_rows(features_test)
    if len(x_train) != len(y_train) or len(x_test) != len(y_test):
        raise UserError("low-shot: features and labels differ in number; extract them again")
    cost = how["cost"]
    if isinstance(cost, str) and cost not in ("test", "protocol", "cv"):
        raise UserError(f"low-shot: cost '{cost}' unknown; test, protocol, cv or a number")
    costs = sorted(set(how["costs"])) if isinstance(cost, str) else [float(cost)]
    found = []
    for k in shots:
        seeds = [seed] if k == "full" else [seed + i for i in range(draws)]
        by_cv = len(costs) > 1 and (cost == "cv" or (cost == "protocol" and k == "full"))
        tried = [costs] if by_cv else [[c] for c in costs]
        table = []  # (draws, costs); (draws, 1) where every class finds its own cost
        for one in seeds:
            rows, labels = draw(y_train, k, one, how["sampling"])
            x = x_train[rows]
            table.append(
                [_score(y_test, _decisions(x, labels, x_test, c), metric, ap) for c in tried]
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
                "sampling": how["sampling"],
                "difficult": how["difficult"],
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
    return low_shot(*data, counts, draws, seed, metric="top1", cost=cost)


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
