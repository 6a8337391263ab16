"""`ressl paper`: what counts as done, and what is checked before anything is trained."""

import copy
import functools
import importlib.util
import re

import pytest
from omegaconf import OmegaConf

from ressl_plugin import config, run
from ressl_plugin.cli import main
from ressl_plugin.evaluate import finetune, linear, logistic, lowshot, subject
from ressl_plugin.evaluate.voc import NAME as VOC
from ressl_plugin.experiments import paper, paper_spec, sweep
from ressl_plugin.run import checkpoint, results
from ressl_plugin.train.settling import settled
from ressl_plugin.utils.errors import RunFault, UserError

# --- evaluations that are there -----------------------------------------------------------------

SETTINGS = {"lowshot": {"per_class": [16, "32", 64, "all"], "draws": 5},
            "finetune": {"labels": [0.01, 0.1], "epochs": 20}}  # fmt: skip


@pytest.fixture
def made(monkeypatch):
    """What the evaluators were asked for, in their own arguments; they do nothing."""
    seen = []
    note = lambda *args, **kwargs: seen.append((args, kwargs))
    for evaluator in (linear, lowshot, finetune):
        monkeypatch.setattr(evaluator, "evaluate", note)
    return seen


@functools.cache
def finished(recipe):
    return config.finish(config.load(recipe))


def cell(folder, recipe="digits/ressl"):
    """A run directory with a checkpoint of no training."""
    cfg = copy.deepcopy(finished(recipe))
    cfg.run_dir = str(folder)
    run.start(cfg, cfg)
    checkpoint.save(folder / "last.ckpt", {"state_dict": {}, "epoch": 0, "global_step": 0})
    return folder


def record(folder, evaluator, protocol, metric="top1", data="custom", **more):
    of_weights = {"checkpoint": "last.ckpt", "epochs": 0}
    results.append(folder, {"evaluator": evaluator, "protocol": protocol, "metric": metric,
                            "data": data, "value": 50.0, **of_weights, **more})  # fmt: skip


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    "there,wanted",
    [
        (["small"], "fast"),
        ([logistic.NAME], "slow"),
        (["small", logistic.NAME], None),
        (["recipe cifar/ressl", "imagenet", "small, cached features"], "both"),
        ([], "both"),
    ],
)
def test_a_linear_classifier_is_done_in_the_way_asked_for(tmp_path, made, there, wanted, fast):
    cell(tmp_path)
    for protocol in there:
        record(tmp_path, "linear", protocol)
    paper.evaluate(tmp_path, "linear", {}, fast)
    due = wanted in ("both", "fast" if fast else "slow")
    protocol = None if fast else "small"
    assert made == [((str(tmp_path), [], protocol, fast, "auto"), {})] * due


def test_the_linear_protocol_is_that_of_the_crop_size(tmp_path, made):
    cell(tmp_path, "imagenet/ressl")
    record(tmp_path, "linear", "small", data="imagenet")
    paper.evaluate(tmp_path, "linear", {})
    assert made == [((str(tmp_path), [], "imagenet", False, "auto"), {})]
    record(tmp_path, "linear", "imagenet", data="imagenet")
    paper.evaluate(tmp_path, "linear", {})
    assert len(made) == 1


@pytest.mark.parametrize(
    "other", [{"epochs": 100}, {"checkpoint": "ep=50.ckpt"}, {"metric": "top5"}, {"data": "stl10"}]
)
def test_numbers_of_something_else_do_not_count(tmp_path, made, other):
    record(cell(tmp_path), "linear", "small", **other)
    paper.evaluate(tmp_path, "linear", {})
    assert len(made) == 1


def test_numbers_that_do_not_say_which_weights_do_not_count(tmp_path, made):
    results.append(cell(tmp_path), {"evaluator": "linear", "protocol": "small", "metric": "top1",
                                    "data": "custom", "value": 50.0})  # fmt: skip
    paper.evaluate(tmp_path, "linear", {})
    assert len(made) == 1


@pytest.mark.parametrize("then, due", [("a", 0), ("b", 1), (None, 0)])
def test_numbers_of_images_that_are_others_now_do_not_count(tmp_path, made, monkeypatch, then, due):
    """(None: a record of version 0.1.0, which does not say.)"""
    images = lambda digest: {s: {"images": 9, "classes": 3, "digest": digest} for s in
                             ("train", "val")}  # fmt: skip
    monkeypatch.setattr(subject, "data_sets_of", lambda run: images("a"))
    cell(tmp_path)
    record(tmp_path, "linear", "small", **({"data_sets": images(then)} if then else {}))
    paper.evaluate(tmp_path, "linear", {})
    assert len(made) == due


def test_a_later_number_of_something_else_does_not_hide_the_one_that_counts(tmp_path, made):
    record(cell(tmp_path), "linear", "small")
    record(tmp_path, "linear", "small", checkpoint="best.ckpt")
    paper.evaluate(tmp_path, "linear", {})
    assert not made


def shots(folder, count, seeds):
    protocol = f"VOC07 SVM as PCL, {count} a class"
    record(folder, "lowshot", protocol, "mAP", VOC, seeds=list(range(seeds)))


def test_only_the_low_shot_numbers_that_are_missing_are_made(tmp_path, made):
    cell(tmp_path)
    asked = lambda: made.pop()[0][3] if made else []
    low_shot = lambda: paper.evaluate(tmp_path, "lowshot", SETTINGS["lowshot"], voc="VOC")
    low_shot()
    assert asked() == ["16", "32", "64", "full"]
    shots(tmp_path, 16, 5)
    shots(tmp_path, 32, 2)
    low_shot()
    assert asked() == ["32", "64", "full"]
    for count, seeds in ((32, 5), (64, 5), ("full", 1)):
        shots(tmp_path, count, seeds)
    low_shot()
    assert asked() == []
    record(tmp_path, "lowshot", "VOC07 SVM as Goyal, 16 a class", "mAP", VOC, seeds=[0])
    low_shot()
    assert asked() == []
    shots(tmp_path, 16, 2)  # which a table would show, being the last
    low_shot()
    assert asked() == ["16"]


def test_a_fine_tuning_of_other_epochs_does_not_count(tmp_path, made):
    cell(tmp_path)
    how = {"epochs": 20, "lr_backbone": finetune.RATES[0][0], "lr_head": finetune.RATES[0][1]}
    record(tmp_path, "finetune", "labels 0.01", details=how)
    record(tmp_path, "finetune", "labels 0.1", details=how)
    record(tmp_path, "finetune", "labels 0.1", details={**how, "epochs": 2})  # a table shows that
    paper.evaluate(tmp_path, "finetune", SETTINGS["finetune"])
    assert [args[2:] for args, _ in made] == [("0.1", 20)]


# --- their places in the paper's tables ---------------------------------------------------------


def test_a_number_that_is_there_gets_its_place_and_one_may_have_two(tmp_path, made):
    """Of a run evaluated by hand, by version 0.1.0, or for another table."""
    record(cell(tmp_path), "linear", "small")
    record(tmp_path, "linear", "small", metric="top5")
    for table, row in ((2, "custom, 0.1"), (3, "weak"), (2, "custom, 0.1")):
        place = lambda labels, table=table, row=row: {"table": table, "row": row, "column": "0.05"}
        paper.evaluate(tmp_path, "linear", {}, False, None, "cpu", place)
    top1, top5 = results.read(tmp_path)
    assert [(p["table"], p["row"]) for p in top1["place"]] == [(2, "custom, 0.1"), (3, "weak")]
    assert "place" not in top5 and not made


def test_the_column_of_a_number_of_few_labels_is_what_was_labelled(tmp_path, made):
    of = lambda labels: {"table": 9, "row": "ReSSL", "column": labels}
    cell(tmp_path)
    for count, seeds in ((16, 5), (32, 5), (64, 5), ("full", 1)):
        shots(tmp_path, count, seeds)
    paper.evaluate(tmp_path, "lowshot", SETTINGS["lowshot"], place=of)
    columns = lambda: [r["place"][0]["column"] for r in results.read(tmp_path)]
    assert columns() == ["16", "32", "64", "full"]
    rates = {"lr_backbone": finetune.RATES[0][0], "lr_head": finetune.RATES[0][1]}
    names = tmp_path / "10percent.txt"
    names.write_text("a.JPEG")
    for labels, share in ((0.01, 0.0101), (names, 0.0997)):
        how = {"epochs": 20, "share": share, **rates}
        named = labels if labels == 0.01 else names.name
        record(tmp_path, "finetune", f"labels {named}", details=how)
    paper.evaluate(tmp_path, "finetune", {"labels": [0.01, str(names)], "epochs": 20}, place=of)
    assert columns()[4:] == ["0.01", "0.1"] and not made
    listed = {**how, "list": finetune.list_digest(names)}
    record(tmp_path, "finetune", f"labels {names.name}", details=listed)
    tuned = lambda: paper.evaluate(tmp_path, "finetune", {"labels": [str(names)], "epochs": 20})
    tuned()
    assert not made
    names.write_text("b.JPEG")  # another list of that name
    tuned()
    assert len(made) == 1


# --- mistakes in the file -----------------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch):
    """Nothing is to be trained."""
    monkeypatch.setattr(sweep, "train", lambda cfg: pytest.fail(f"trained {cfg.run_dir}"))
    monkeypatch.setattr(paper, "evaluate", lambda *args: pytest.fail(f"evaluated {args[0]}"))


def written(folder, text):
    file = folder / "mine.yaml"
    file.write_text(text)
    return str(file)


def spec(evaluate="{linear: {}}", group="{recipe: digits/ressl, methods: [simclr]}", more=""):
    return f"evaluate: {evaluate}\ngroups:\n  - {group}\n{more}"


def group(words):
    return spec(group=f"{{recipe: digits/ressl, {words}}}")


MISTAKES = {
    "evaluate: {linear: {}\ngroups: [": "not YAML: while parsing",
    "evaluate: {}\nevaluate: {}\ngroups: []": "not YAML: .* duplicate key",
    "\0\0": "not YAML",
    "": "evaluate is nothing, it must be there",
    "[1, 2]": "a list, not a mapping",
    spec(more="tabel: 4"): "unknown key tabel; did you mean table",
    spec(more="table: 11"): "table is 11, it must be one of 1, 2, ",
    spec(more="table: '4'"): "table is '4', it must be",
    spec("[linear]"): "evaluate is a list, it must be a mapping",
    spec("{liner: {}}"): "unknown key liner; did you mean linear",
    spec("{linear: {fast: true}}"): "unknown key fast; known: none",
    spec("{lowshot: {}}"): "evaluate.lowshot.per_class is nothing, it must be there",
    spec("{lowshot: {per_class: [4, x], draws: 5}}"): "labels a class: 'x'; a positive number",
    spec("{lowshot: {per_class: 4, draws: 5}}"): "lowshot.per_class is 4, it must be a list",
    spec("{lowshot: {per_class: [4], draws: 0}}"): "lowshot.draws is 0, it must be a whole number",
    spec("{lowshot: {per_class: [4], draws: 5}}"): "evaluate: lowshot .* --voc VOCdevkit",
    spec("{finetune: {labels: [2], epochs: 1}}"): "labels: 2; a fraction",
    spec("{finetune: {labels: [0.1], epochs: true}}"): "finetune.epochs is True, it must be",
    spec(more="operations: [a]"): "operations is a list, it must be a mapping",
    spec(more="operations: {J: 3}"): "operations.J is 3, it must be text",
    "evaluate: {}\ngroups: {recipe: digits/ressl}": "groups is a dict, it must be a list",
    "evaluate: {}\ngroups: []": "groups: at least one",
    spec(group="digits/ressl"): "groups.0 is 'digits/ressl', it must be a mapping",
    spec(group="{methods: [simclr]}"): "groups.0.recipe is nothing, it must be there",
    spec(group="{recipe: digit/ressl, methods: [simclr]}"): "group 1: .*no such recipe",
    spec(group="{recipe: digits/ressl}"): "group 1: no cells: one of sweep, cells, methods",
    group("methods: [simclr], cells: {a: []}"): "group 1: cells and methods: one of",
    group("methods: []"): "group 1: methods: at least one",
    group("methods: simclr"): "groups.0.methods is 'simclr', it must be a list of names",
    group("methods: [1]"): "groups.0.methods is a list, it must be a list of names",
    group("methods: [simclt]"): "group 1: method simclt: .*no method simclt",
    group("words: seed=1, methods: [simclr]"): "groups.0.words is 'seed=1', it must be a list",
    group("row: 3, methods: [simclr]"): "groups.0.row is 3, it must be text",
    group("methods: {simclr: 1}"): "groups.0.methods is a dict, it must be a list of names, or",
    group("words: [{seed: 1}], methods: [simclr]"): "groups.0.words.0 is a dict, it must be text",
    group("words: [sead=1], methods: [simclr]"): "group 1: .*unknown key sead",
    group("word: [seed=1], methods: [simclr]"): "unknown key word; did you mean words",
    group("sweep: [seed]"): "group 1: sweep: override seed: not in Hydra's grammar",
    group("sweep: ['seed=1,[2']"): r"group 1: sweep: override seed=1,\[2",
    group("sweep: ['seed=glob(*)']"): "group 1: sweep: seed=glob",
    group("sweep: seed=1"): "groups.0.sweep is 'seed=1', it must be a list",
    group("cells: [a]"): "groups.0.cells is a list, it must be a mapping",
    group("cells: {no: []}"): "a key of groups.0.cells is False, it must be text",
    group("cells: {../a: []}"): "group 1: cells: ../a: .*no path",
    group("cells: {a: [J]}"): "group 1: cell a: .*override J: not in Hydra's grammar",
    group("cells: {a: ['seed=[']}"): r"group 1: cell a: .*override seed=\[: ",
    group("cells: {a: [], b: [method_kwargs.temperature_k=2]}"): "group 1: cell b: .*temperature_k",
    group("cells: {a: []}") + "  - {recipe: digits/ressl, cells: {a: [seed=6]}}": (
        "group 2: .*digits-ressl/a is the folder of another cell.*seed: 5 -> 6"
    ),
    group("methods: [simclr, random]") + "  - {recipe: mine, methods: [byol]}": (
        "group 2: .*no such recipe"
    ),
}


@pytest.mark.parametrize("text,message", MISTAKES.items(), ids=MISTAKES.values())
def test_a_mistake_is_found_before_anything_is_trained(tmp_path, untrained, capsys, text, message):
    file = written(tmp_path, text)
    argv = ["paper", file, "accelerator=cpu", "devices=1", "--out", str(tmp_path / "out")]
    assert main.main(argv) == main.USER_MISTAKE
    printed = capsys.readouterr()
    (line,) = printed.err.strip().splitlines()
    assert re.search(f"{re.escape(file)}: .*{message}", line), line
    assert printed.out == "" and not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"mine.yaml: not UTF-8"):
        paper_spec.read(str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match="no such table"):
        paper_spec.read(str(tmp_path))


def reproduced(tmp_path, text, words=(), **kwargs):
    words = ["accelerator=cpu", "devices=1", *words]
    return paper.reproduce(written(tmp_path, text), words, tmp_path / "out", **kwargs)


def test_every_cell_must_be_the_same_experiment_before_the_first_is_trained(tmp_path, untrained):
    text = group("cells: {a: [], b: []}")
    (planned,) = paper.cells(
        paper_spec.read(written(tmp_path, group("cells: {b: []}"))),
        ["max_epochs=7"],
        tmp_path / "out",
    )
    (tmp_path / "out" / "digits-ressl" / "b").mkdir(parents=True)
    OmegaConf.save(planned.cfg, tmp_path / "out" / "digits-ressl" / "b" / "config.yaml")
    with pytest.raises(UserError, match=r"mine.yaml: .*/b was made with another config"):
        reproduced(tmp_path, text)


def test_what_the_command_line_gives_is_checked_first(tmp_path, untrained):
    low_shot = spec("{lowshot: {per_class: [4], draws: 2}}")
    with pytest.raises(UserError, match="VOC2007/ImageSets"):
        reproduced(tmp_path, low_shot, voc=tmp_path)
    with pytest.raises(UserError, match=r"--voc: .*mine.yaml has no lowshot; leave it out"):
        reproduced(tmp_path, spec(), voc=tmp_path)
    with pytest.raises(UserError, match=r"--labels: .*mine.yaml has no finetune; leave it out"):
        reproduced(tmp_path, spec(), labels=["0.01"])
    with pytest.raises(UserError, match="--device quantum"):
        reproduced(tmp_path, spec(), device="quantum")
    with pytest.raises(UserError, match=r"mine.yaml: --data stl10: there are custom"):
        reproduced(tmp_path, spec(), only=["custom", "stl10"])
    with pytest.raises(UserError, match="unknown key max_epoch"):
        reproduced(tmp_path, spec(), ["max_epoch=3"])


TWO = group("sweep: ['method_kwargs.temperature_k=0.03,0.04']") + "table: 2"


def test_an_override_that_makes_two_cells_one_is_found_before_training(tmp_path, untrained):
    message = r"temperature_k=0.03 and .*temperature_k=0.04 are both .* of Table 2"
    with pytest.raises(UserError, match=message):
        reproduced(tmp_path, TWO, ["method_kwargs.temperature_k=0.05"])


def test_a_cell_that_lacks_what_the_table_varies_has_no_place(tmp_path, untrained):
    message = "simclr: no place in Table 2: method_kwargs.temperature_q is not set"
    with pytest.raises(UserError, match=message):
        reproduced(tmp_path, group("methods: [simclr]") + "table: 2")


def test_seeds_share_a_place_in_the_table_and_a_cell_named_twice_is_one(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(paper, "train", lambda cell: trained.append(cell.cfg.seed))
    monkeypatch.setattr(paper, "evaluate", lambda *args: None)
    monkeypatch.setattr(sweep, "check_images", lambda *args, **kwargs: None)
    (tmp_path / "out").mkdir()
    again = "  - {recipe: digits/ressl, sweep: ['seed=2,3']}\n"
    text = reproduced(tmp_path, group("sweep: ['seed=1,2']") + again + "table: 1")
    assert trained == [1, 2, 3] and "Table 1" in text


# --- the plan, the images, a cell that fails ----------------------------------------------------


@pytest.fixture
def there(monkeypatch):
    """The images are there."""
    monkeypatch.setattr(sweep, "check_images", lambda *args, **kwargs: None)


def test_the_plan_names_every_cell_its_state_and_its_command(tmp_path, untrained, capsys):
    file, out = written(tmp_path, group("methods: [simclr, byol]")), tmp_path / "out"
    argv = ["paper", file, "accelerator=cpu", "devices=1", "--out", str(out)]
    assert main.main([*argv, "--plan"]) == 0 and not out.exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}/digits-ressl/simclr: to be trained; linear: to be done"
    command = lines[1].split()
    assert command[:2] == ["ressl", "paper"] and command[-2:] == ["--cells", "digits-ressl/simclr"]
    assert len(lines) == 4 and "digits-ressl/byol" in lines[2]
    # a cell that is trained, and then evaluated
    words = ["accelerator=cpu", "devices=1"]
    cfg = paper.cells(paper_spec.read(file), words, out)[0].cfg
    folder = out / "digits-ressl" / "simclr"
    run.start(cfg, cfg)
    done = {"state_dict": {}, "epoch": cfg.max_epochs - 1, "global_step": 0}
    checkpoint.save(folder / "last.ckpt", done)
    assert main.main([*argv, "--plan"]) == 0
    assert "simclr: trained; linear: small to be done" in capsys.readouterr().out
    record(folder, "linear", "small")
    argv += ["--plan", "--device", "cpu", "--cells", "digits-ressl/simclr"]
    assert main.main(argv) == 0
    first, words = capsys.readouterr().out.splitlines()
    assert first.endswith("simclr: trained; linear: done")
    assert words.endswith("--device cpu --cells digits-ressl/simclr")


def test_a_plan_can_be_made_on_a_machine_without_the_gpus(tmp_path, untrained):
    file, out = written(tmp_path, group("methods: [simclr]")), tmp_path / "out"
    (planned,) = paper.cells(paper_spec.read(file), ["accelerator=cpu"], out)
    cfg = settled(planned.cfg)
    cfg.accelerator, cfg.devices, cfg.precision = "auto", 8, "bf16-mixed"  # as there
    folder = run.start(cfg, cfg)
    checkpoint.save(folder / "last.ckpt", {"state_dict": {}, "epoch": 0, "global_step": 0})
    for words in ([], ["accelerator=gpu", "devices=8"]):
        assert "simclr: 0 of " in paper.reproduce(file, words, out, dry=True)
    with pytest.raises(UserError, match="seed: 5 -> 6"):
        paper.reproduce(file, ["seed=6"], out, dry=True)


def test_the_command_of_the_plan_runs_that_cell_alone(tmp_path, monkeypatch, there):
    trained = []
    monkeypatch.setattr(paper, "train", lambda cell: trained.append(cell.cfg.method))
    monkeypatch.setattr(paper, "evaluate", lambda *args: None)
    text = group("methods: [simclr, byol]")
    reproduced(tmp_path, text, chosen=["digits-ressl/byol"])
    assert trained == ["byol"]
    with pytest.raises(UserError, match="--cells byol: there are digits-ressl/simclr, "):
        reproduced(tmp_path, text, chosen=["byol"])


def test_a_figure_is_drawn_once_all_its_cells_are_trained(tmp_path, monkeypatch, there, capsys):
    drawn = []
    monkeypatch.setattr(paper, "figure3", lambda cells, *args: drawn.append(cells) or [])
    monkeypatch.setattr(paper, "evaluate", lambda *args: None)
    text = spec("{}", "{recipe: digits/ressl, methods: [random, simclr]}", "figure: 3")
    one = lambda: reproduced(tmp_path, text, chosen=["digits-ressl/random"])
    one()
    missing = "Figure 3 is not drawn: still to be trained: digits-ressl/simclr\n"
    assert capsys.readouterr().out.endswith(missing)
    other = cell(tmp_path / "out" / "digits-ressl" / "simclr")  # one epoch of it
    one()
    assert capsys.readouterr().out.endswith(missing) and not drawn
    done = {"state_dict": {}, "epoch": 10_000, "global_step": 0}
    checkpoint.save(other / "last.ckpt", done)
    one()
    assert [[cell.cfg.method for cell in cells] for cells in drawn] == [["random", "simclr"]]


def test_published_lists_of_labels_replace_the_shares(tmp_path, monkeypatch, there):
    asked = []
    monkeypatch.setattr(paper, "train", lambda cfg: None)
    monkeypatch.setattr(paper, "evaluate", lambda *args: asked.append(args[2]["labels"]))
    text = spec("{finetune: {labels: [0.01], epochs: 20}}")
    names = str(tmp_path / "1percent.txt")
    with pytest.raises(UserError, match=r"1percent.txt' is no fraction .* and no file"):
        reproduced(tmp_path, text, labels=[names])
    (tmp_path / "1percent.txt").write_text("a.JPEG\n")
    reproduced(tmp_path, text, labels=[names])
    assert asked == [[names]]


def test_matplotlib_is_looked_for_before_anything_is_trained(tmp_path, untrained, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: find(n, *a)
                        if n != "matplotlib" else None)  # fmt: skip
    for figure in ("figure2", "figure3"):
        with pytest.raises(UserError, match="drawing needs matplotlib, which is not installed"):
            paper.reproduce(figure, [], tmp_path)


def test_one_data_set_for_all_cells_makes_several_cells_one(tmp_path, untrained):
    """Of Table 3 a few cells."""
    weak = "recipe: cifar/ressl, row: weak, sweep: ['method_kwargs.temperature_k=0.04,0.05']"
    more = f"  - {{{weak}, words: [data.dataset=cifar100]}}\ntable: 3"
    with pytest.raises(UserError, match="are both weak / npz of Table 3: cells must differ"):
        reproduced(tmp_path, spec(group=f"{{{weak}}}", more=more), ["data.dataset=npz"])


def test_missing_images_are_found_before_anything_is_trained(tmp_path, untrained):
    text = group("methods: [simclr]")
    with pytest.raises(UserError, match=r"data.train_path=.*/absent: no such file"):
        reproduced(tmp_path, text, [f"data.train_path={tmp_path}/absent"])


def test_a_cell_that_fails_does_not_keep_the_others_from_being_run(
    tmp_path, monkeypatch, there, caplog
):
    trained = []

    def train(cell):
        trained.append(cell.cfg.seed)
        if cell.cfg.seed == 1:
            raise RunFault("the loss is not finite at step 3")

    monkeypatch.setattr(paper, "train", train)
    monkeypatch.setattr(paper, "evaluate", lambda *args: None)
    text = group("sweep: ['seed=1,2']")
    with pytest.raises(RunFault, match=r"1 of 2 cells failed: .*seed=1; "):
        reproduced(tmp_path, text)
    assert trained == [1, 2] and "seed=1: the loss is not finite at step 3" in caplog.text
