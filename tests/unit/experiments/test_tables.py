"""Tables of runs, with the paper's numbers beside them."""

import csv
import io

import pytest
from omegaconf import OmegaConf

from ressl_plugin.data import identity
from ressl_plugin.experiments import grouping, report, tables
from ressl_plugin.experiments.paper_numbers import deviations
from ressl_plugin.experiments.paper_numbers import tables as papers_tables
from ressl_plugin.experiments.paper_table import paper_table
from ressl_plugin.run import results
from ressl_plugin.utils.errors import UserError

WEAK = {"rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
        "horizontal_flip": {"prob": 0.5}, "crop_size": 32, "num_crops": 1}  # fmt: skip
STRONG = {
    **WEAK,
    "color_jitter": {
        "prob": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
    },
    "grayscale": {"prob": 0.2},
    "gaussian_blur": {"prob": 0.5},
}


def make_run(root, name, records, **changes):
    cfg = OmegaConf.create(
        {
            "method": "ressl",
            "seed": 0,
            "name": name,
            "max_epochs": 200,
            "backbone": {"name": "resnet18"},
            "data": {"dataset": "cifar10"},
            "method_kwargs": {"temperature_q": 0.1, "temperature_k": 0.05, "queue_size": 4096},
            "augmentations": [{**STRONG, "role": "student"}, {**WEAK, "role": "teacher"}],
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False)
    run = root / name
    run.mkdir()
    OmegaConf.save(cfg, run / "config.yaml")
    for evaluator, protocol, metric, value in records:
        results.append(
            run,
            {"evaluator": evaluator, "protocol": protocol, "metric": metric, "value": value,
             "data": "voc07" if "VOC07" in protocol else cfg.data.dataset},
        )  # fmt: skip
    return run


def placed(run, table, row, column, metric="top1"):
    """The run, each of its records of this metric in a place of the paper's tables."""
    for record in results.read(run):
        if record["metric"] == metric:
            results.put_in_place(run, record, table, row, column)
    return run


FIRST = (1, "ReSSL", "cifar10")
LINEAR = [("linear", "small", "top1", 89.0), ("linear", "small", "top5", 99.0)]


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_table_sets_the_papers_number_beside_ours(tmp_path):
    run = placed(make_run(tmp_path, "a", LINEAR), *FIRST)
    (row,) = rows_of(tables.table([run], "csv"))
    assert (row["run"], row["method"], row["data"], row["epochs"]) == (
        "a", "ReSSL", "cifar10", "200")  # fmt: skip
    assert (row["ours"], row["paper"], row["diff."]) == ("89.00", "90.20", "-1.20")
    assert "| 89.00 | 90.20 (Table 1) | -1.20 |" in tables.table([run])


@pytest.mark.parametrize(
    "place,paper",
    [
        (FIRST, "90.20 (Table 1)"),
        ((1, "SimSiam", "cifar10"), "88.51 (Table 1)"),
        ((2, "cifar10, 0.1", "0.07"), "88.67 (Table 2)"),
        ((3, "contrastive", "cifar10"), ""),  # the best of many, no single run's
        ((4, "none", "tiny-imagenet"), "31.74 (Table 4)"),
        ((5, "cifar10", "256"), "89.37 (Table 5)"),
        ((5, "stl10", "512"), ""),
        ((6, "ReSSL 1x", "imagenet"), "69.90 (Table 6)"),
        ((7, "ReSSL 5 crops", "imagenet"), "74.70 (Table 7)"),
        ((8, "ReSSL 1x", "imagenet"), "58.10 (Table 8)"),
        ((9, "ReSSL", "full"), "86.31 (Table 9)"),
        ((10, "ReSSL 5 crops", "0.01"), "57.90 (Table 10)"),
        ((11, "ReSSL", "cifar10"), ""),  # of a later version
        (None, ""),
    ],
)
def test_the_papers_number_is_that_of_the_records_place(tmp_path, place, paper):
    run = make_run(tmp_path, "a", LINEAR)
    if place:
        placed(run, *place)
    (row,) = rows_of(tables.table([run], "csv"))
    assert (f"{row['paper']} (Table {row['table']})" if row["paper"] else "") == paper


def test_a_number_without_a_place_is_in_no_table_of_the_paper(tmp_path, caplog):
    run = make_run(tmp_path, "a", LINEAR)
    assert "| 89.00 |" in tables.table([run]), "as of version 0.1.0"
    assert "89.00" not in paper_table(1, [run])
    assert "a has no number of Table 1; `ressl paper table1`" in caplog.text


def test_the_first_of_several_places_is_shown(tmp_path):
    run = make_run(tmp_path, "a", LINEAR)
    placed(placed(run, 3, "weak", "cifar10"), 2, "cifar10, 0.1", "0.05")
    (row,) = rows_of(tables.table([run], "csv"))
    assert (row["paper"], row["table"]) == ("90.20", "2")
    assert "89.00* [90.20, -1.20]" in paper_table(3, [run])


def test_a_number_made_anew_takes_the_place_of_the_one_before(tmp_path):
    run = placed(make_run(tmp_path, "a", LINEAR), *FIRST)
    results.append(run, {"evaluator": "linear", "protocol": "small", "metric": "top1",
                         "value": 88.0, "data": "cifar10"})  # fmt: skip
    assert "88.00 [90.20, -2.20]" in paper_table(1, [run])
    assert "| 88.00 | 90.20 (Table 1) |" in tables.table([run])


def test_seeds_of_one_experiment_are_one_line(tmp_path):
    runs = [
        make_run(tmp_path, f"s{seed}", [("linear", "small", "top1", 88.0 + seed)], seed=seed)
        for seed in range(3)
    ]
    other = make_run(tmp_path, "other", LINEAR, method_kwargs__temperature_k=0.04)
    runs.append(placed(other, 2, "cifar10, 0.1", "0.04"))
    first, other = rows_of(tables.table(runs, "csv"))
    assert (first["run"], first["ours"], first["spread"]) == ("s0 … (3 runs)", "89.00", "1.00")
    assert (other["run"], other["paper"], other["table"]) == ("other", "90.04", "2")


def test_the_content_of_the_data_counts_not_their_place(tmp_path):
    for seed, digest in enumerate("aab"):
        run = make_run(tmp_path, f"s{seed}", LINEAR, seed=seed, data__train_path=f"/node{seed}")
        identity.keep(run, {"images": 6, "classes": 2, "digest": digest})
    runs = [tmp_path / f"s{seed}" for seed in range(3)]
    lines = [line for line in tables.table(runs).splitlines() if "linear: small" in line]
    assert ["(2 runs)" in line for line in lines] == [True, False]


def test_seeds_evaluated_on_copies_of_the_images_are_one_line(tmp_path):
    """What they were evaluated on is in the records, if not by version 0.1.0."""
    runs = [make_run(tmp_path, f"s{n}", [], seed=n, data__val_path=f"/node{n}") for n in range(4)]
    for number, (run, digest) in enumerate(zip(runs, ("a", "a", "b", None))):
        val = {"images": 6, "classes": 2, "digest": digest}
        more = {"data_sets": {"val": val}} if digest else {}
        results.append(run, {"evaluator": "linear", "protocol": "small", "metric": "top1",
                             "value": 80.0 + number, "data": "cifar10", **more})  # fmt: skip
    rows = [(row["run"], row["ours"]) for row in rows_of(tables.table(runs, "csv"))]
    assert [ours for _, ours in rows] == ["80.50", "82.00", "83.00"]
    assert [run for run, _ in rows] == ["s0 … (2 of 3 runs)", "s0 … (1 of 3 runs)", "s3"]


def test_what_is_no_further_seed_is_not_averaged(tmp_path):
    """The run twice, the experiment again, other images a step; but workers do not matter."""
    run = make_run(tmp_path, "a", LINEAR, devices=1)
    again = make_run(tmp_path, "again", [("linear", "small", "top1", 80.0)], devices=1)
    eight = make_run(tmp_path, "eight", [("linear", "small", "top1", 70.0)], devices=8, seed=1)
    other = make_run(tmp_path, "w", [("linear", "small", "top1", 90.0)], devices=1, seed=1,
                     data__num_workers=7)  # fmt: skip
    lines = rows_of(tables.table([run, tmp_path / "again/../a", again, eight, other], "csv"))
    assert [(line["run"], line["ours"]) for line in lines] == [
        ("a … (2 runs)", "89.50"), ("again", "80.00"), ("eight", "70.00")]  # fmt: skip


def test_the_epochs_are_those_that_were_trained(tmp_path):
    run = make_run(tmp_path, "a", [])
    for epochs, value in ((10, 50.0), (None, 60.0)):
        results.append(run, {"evaluator": "linear", "protocol": "small", "metric": "top1",
                             "value": value, "data": "cifar10", "epochs": epochs})  # fmt: skip
    lines = rows_of(tables.table([run], "csv"))
    assert [(line["epochs"], line["ours"]) for line in lines] == [("10", "50.00"), ("", "60.00")]


def test_of_a_knn_sweep_the_default_is_shown(tmp_path):
    records = [
        ("knn", f"k={k} cosine T={t}", "top1", k + t) for k in (1, 20, 200) for t in (0.07, 0.1)
    ]
    run = make_run(tmp_path, "a", [*records, *LINEAR])
    shown = [row["evaluation"] for row in rows_of(tables.table([run], "csv"))]
    assert shown == ["knn: k=20 cosine T=0.07", "linear: small"]


def test_a_paper_table_with_our_cells(tmp_path):
    runs = []
    for name, tau, data in (("a", 0.05, "cifar10"), ("b", 0.01, "cifar10"), ("c", 0.05, "custom")):
        changes = {"method_kwargs__temperature_k": tau, "data__dataset": data}
        run = make_run(tmp_path, name, LINEAR, **changes)
        runs.append(placed(run, 2, f"{data}, 0.1", str(tau)))
    text = paper_table(2, runs)
    line = next(line for line in text.splitlines() if line.startswith("| cifar10, 0.1 "))
    assert "89.00 [89.35, -0.35]" in line and "89.00 [90.20, -1.20]" in line and "[90.09]" in line
    assert "| custom, 0.1 " in text
    cells = {(r["row"], r["column"]): r for r in rows_of(paper_table(2, runs, "csv"))}
    assert cells["cifar10, 0.1", "0.01"]["difference"] == "-0.35"
    assert cells["stl10, 0.2", "0.07"] == {
        "row": "stl10, 0.2", "column": "0.07", "ours": "", "spread": "", "paper": "85.28",
        "difference": "", "note": "",
    }  # fmt: skip
    assert len(cells) == 8 * 7 + 1


@pytest.mark.parametrize("which", range(1, 11))
@pytest.mark.parametrize("format", ["markdown", "latex", "csv"])
def test_every_paper_table_is_printed_without_runs(which, format):
    assert paper_table(which, [], format).count("\n") > 3


def number(run, value, images=10_000, classes=10, digest="a", place=FIRST, **more):
    """A linear record that knows its images, in Table 1."""
    seen = {"images": images, "classes": classes, "digest": digest}
    record = {"evaluator": "linear", "protocol": "small", "metric": "top1", "data": "cifar10"}
    record = {**record, "value": value, "data_sets": {"val": seen}, **more}
    results.put_in_place(run, results.append(run, record), *place)


def test_a_number_of_other_images_or_epochs_says_so(tmp_path):
    short = make_run(tmp_path, "short", [], max_epochs=1)
    number(short, 23.0, images=300, classes=3, epochs=1)
    identity.keep(short, {"images": 600, "classes": 3, "digest": "b"})
    whole = make_run(tmp_path, "whole", [], method="simclr")
    number(whole, 84.0, epochs=200, place=(1, "SimCLR", "cifar10"))
    text = paper_table(1, [short, whole])
    assert "23.00* [90.20, -67.20]" in text and "84.00 [84.92, -0.92]" in text
    assert (
        "* 1 epochs instead of 200; evaluated on 300 images of 3 classes instead of 10000 of 10; "
        "trained on 600 images instead of 50000: ReSSL / cifar10\n"
    ) in text
    (row,) = [r for r in rows_of(paper_table(1, [short], "csv")) if r["ours"]]
    assert row["note"].startswith("1 epochs instead of 200")
    assert "% * 1 epochs" in paper_table(1, [short], "latex")
    first, second = rows_of(tables.table([short, whole], "csv"))
    assert (first["images"], first["epochs"], first["paper"]) == ("300", "1", "")
    assert (second["images"], second["paper"]) == ("10000", "84.92")


def test_supervised_is_trained_on_the_labelled_images_of_stl10():
    record = {"data": "stl10", "epochs": 200, "protocol": "small"}
    for method, row, images in (("supervised", "Supervised", 5_000), ("ressl", "ReSSL", 105_000)):
        cfg = {"method": method, "data": {"dataset": "stl10"}}
        assert deviations(1, row, cfg, record, {"images": images}) == []
        other = deviations(1, row, cfg, record, {"images": 50_000})
        assert other == [f"trained on 50000 images instead of {images}"]


def test_a_number_of_other_images_replaces_none(tmp_path):
    run = make_run(tmp_path, "a", [])
    number(run, 89.0)
    number(run, 99.0, images=50_000, digest="b")
    lines = rows_of(tables.table([run], "csv"))
    assert [(line["ours"], line["images"]) for line in lines] == [
        ("89.00", "10000"), ("99.00", "50000")]  # fmt: skip
    assert "89.00 [90.20, -1.20]" in paper_table(1, [run])
    number(run, 89.5)  # the same images again
    assert [line["ours"] for line in rows_of(tables.table([run], "csv"))] == ["99.00", "89.50"]


def test_a_number_with_other_training_images_has_no_place_of_the_papers(tmp_path):
    run = make_run(tmp_path, "a", [])
    number(run, 89.0)
    (record,) = results.read(run)
    others = {**record["data_sets"], "train": {"images": 9, "classes": 3, "digest": "few"}}
    del record["place"]
    results.append(run, {**record, "value": 50.0, "data_sets": others})
    assert [line["ours"] for line in rows_of(tables.table([run], "csv"))] == ["89.00", "50.00"]
    assert "89.00 [90.20, -1.20]" in paper_table(1, [run])


def test_the_comparison_names_images_that_a_run_was_not_trained_on(tmp_path):
    runs = [make_run(tmp_path, name, LINEAR) for name in "ab"]
    record = results.read(runs[0])[0]
    results.append(runs[0], {**record, "value": 12.0, "data": "cifar100"})
    found = report.comparison(grouping.groups(runs))
    assert found["columns"][4:6] == ["top1 (linear: small)", "top1 (linear: small) on cifar100"]
    assert [[cell[0] for cell in row[4:6]] for row in found["rows"]] == [
        ["89.00", "12.00"], ["89.00", ""]]  # fmt: skip


def test_pixels_and_untrained_weights_have_no_epochs_and_knn_one_name(tmp_path):
    run = make_run(tmp_path, "a", [("knn", "k=20 cosine T=0.07", "top1", 80.0)])
    for name, more in (("ReSSL", {"epochs": 200}), ("untrained backbone", {}), ("raw pixels", {})):
        results.append(
            run,
            {
                "evaluator": "knn",
                "protocol": "kNN, k=20 T=0.07",
                "metric": "top1",
                "value": 80.0,
                "data": "cifar10",
                "representation": name,
                **more,
            },
        )
    number(run, 89.0)
    lines = rows_of(tables.table([run, make_run(tmp_path, "b", [])], "csv"))
    assert [(line["method"], line["epochs"]) for line in lines[-3:]] == [
        ("untrained backbone", ""), ("raw pixels", ""), ("ReSSL", "200")]  # fmt: skip
    knn = [line for line in lines if line["method"] == "ReSSL" and "knn" in line["evaluation"]]
    assert {line["evaluation"] for line in knn} == {"knn: k=20 cosine T=0.07"}


def test_a_folder_has_its_own_name_and_a_run_without_records_a_warning(tmp_path, caplog):
    runs = [
        make_run(tmp_path, name, LINEAR, data={"dataset": "custom", "train_path": path})
        for name, path in (("a", "datasets/digits/train"), ("b", "/data/photos"), ("c", "p/tr.npz"))
    ]
    lines = rows_of(tables.table([*runs, make_run(tmp_path, "empty", [])], "csv"))
    assert [line["data"] for line in lines] == ["digits", "photos", "tr"]
    # another folder than a run of CIFAR-10 was trained on is not CIFAR-10
    theirs = {"dataset": "cifar10", "train_path": "cifar10.npz"}
    assert tables.data_name({"data": theirs}, "custom") == "custom"
    assert "empty: no results" in caplog.text


def test_table_3_shows_the_best_of_the_grid(tmp_path):
    place = (3, "contrastive", "cifar10")
    runs = [
        placed(make_run(tmp_path, f"{tau}", [("linear", "small", "top1", value)],
                        method_kwargs__temperature_k=tau), *place)
        for tau, value in ((0.01, 80.0), (0.02, 86.0), (0.03, 85.0))
    ]  # fmt: skip
    text = paper_table(3, runs)
    assert "86.00* [86.17, -0.17]" in text
    assert "* the best of 3 of 14 pairs of temperatures: contrastive / cifar10" in text
    other = make_run(tmp_path, "x", LINEAR, max_epochs=20, method_kwargs__temperature_k=0.02)
    with pytest.raises(UserError, match="differ in more than the seed"):
        paper_table(3, [*runs, placed(other, *place)])


def test_two_experiments_for_one_cell_are_refused(tmp_path):
    runs = [make_run(tmp_path, "a", LINEAR), make_run(tmp_path, "b", LINEAR, max_epochs=20)]
    with pytest.raises(UserError, match=r"/a and .*/b are both ReSSL / cifar10"):
        paper_table(1, [placed(run, *FIRST) for run in runs])


def test_features_extracted_once_do_not_replace_the_protocol(tmp_path):
    records = [LINEAR[0], ("linear", "small, cached features", "top1", 80.0)]
    table_of = lambda name, records: paper_table(
        1, [placed(make_run(tmp_path, name, records), *FIRST)]
    )
    assert "89.00 [" in table_of("a", records)
    fast = table_of("b", records[1:])
    assert "80.00* [" in fast and "* on features extracted once, not on new crops: ReSSL" in fast
    later = make_run(tmp_path, "c", records[:1])
    results.append(
        later,
        {
            "evaluator": "linear",
            "protocol": "small, cached features",
            "metric": "top1",
            "value": 81.0,
            "data": "cifar10",
            "epochs": 200,
        },
    )
    text = paper_table(1, [placed(later, *FIRST)])
    assert "81.00* [" in text  # the other record is of other weights


def test_rows_of_other_methods_say_whose_they_are(tmp_path):
    run = placed(make_run(tmp_path, "a", LINEAR, method="mocov2plus"), 1, "MoCoV2", "cifar10")
    assert "two-sided mocov2plus" in paper_table(1, [run])
    assert "mocov2plus" not in paper_table(1, [])


def test_the_papers_numbers():
    """Spot checks of each table, and its shape, against the paper."""
    papers = papers_tables()
    shapes = {k: (len(t.values), len(t.columns)) for k, t in papers.items()}
    assert shapes == {1: (6, 4), 2: (8, 7), 3: (2, 4), 4: (13, 1), 5: (4, 7), 6: (16, 1),
                      7: (5, 1), 8: (3, 1), 9: (5, 4), 10: (4, 2)}  # fmt: skip
    tiny = papers[1].get("ReSSL", "tiny-imagenet")
    assert (
        tiny
        == papers[2].get("tiny-imagenet, 0.1", "0.04")
        == papers[3].get("weak", "tiny-imagenet")
    )
    assert tiny == papers[4].get("CF", "tiny-imagenet")
    assert papers[3].get("weak", "cifar10") == papers[2].get("cifar10, 0.1", "0.05")
    assert papers[5].get("tiny-imagenet", "16384") == 46.60
    assert papers[9].get("ReSSL", "full") == 86.31 and papers[10].get("SwAV", "0.1") == 70.2
    assert papers[5].get("cifar10", "32768") is None


def test_runs_without_results_and_broken_ones(tmp_path):
    with pytest.raises(UserError, match="no results in"):
        tables.table([make_run(tmp_path, "a", [])])
    with pytest.raises(UserError, match="no Table 11"):
        paper_table(11)
    (tmp_path / "a" / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: not YAML"):
        tables.table([tmp_path / "a"])
    for text, why in {
        "data: 5": "data=5: not a mapping",
        "backbone: []": r"backbone=\[\]: not a mapping",
        "seed: {}": "seed={}: one value, not several",
        "method: [1]": r"method=\[1\]: one value, not several",
    }.items():
        (tmp_path / "a" / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=rf"config\.yaml: {why}"):
            tables.table([tmp_path / "a"])


def test_of_a_sweep_on_other_sizes_the_default_cell_is_shown_too(tmp_path):
    records = [
        ("knn", f"k={k} cosine T=0.07{more}", "top1", 80.0 + k)
        for more in ("", ", data.image_size=48") for k in (5, 20)
    ]  # fmt: skip
    rows = rows_of(tables.table([make_run(tmp_path, "a", records)], "csv"))
    assert [row["evaluation"] for row in rows] == [
        "knn: k=20 cosine T=0.07", "knn: k=20 cosine T=0.07, data.image_size=48"
    ]  # fmt: skip
