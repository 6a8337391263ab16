import argparse
import subprocess
import sys

import pytest

from ressl_plugin.cli import arguments, main
from ressl_plugin.experiments import paper, sweep
from ressl_plugin.train import pretrain


@pytest.mark.parametrize(
    "line, rest, overrides",
    [
        ("pretrain x -m seed=1,2", "pretrain x -m", "seed=1,2"),
        ("pretrain a=1 --cfg x +b=2 ~c.d", "pretrain --cfg x", "a=1 +b=2 ~c.d"),
        ("paper table2 --data cifar10 max_epochs=2", "paper table2 --data cifar10", "max_epochs=2"),
        ("knn runs/seed=1 --k 5 data.val_path=/a/b", "knn runs/seed=1 --k 5", "data.val_path=/a/b"),
        ("knn ./seed=1 --out=x", "knn ./seed=1 --out=x", ""),
        ("knn logs/a-32brzx9a-ep=999.ckpt", "knn logs/a-32brzx9a-ep=999.ckpt", ""),
        ("import a-ep=9.ckpt x seed=1", "import a-ep=9.ckpt x", "seed=1"),
        ("pretrain x hydra/job_logging=disabled", "pretrain x", "hydra/job_logging=disabled"),
        ("benchmark x --out runs/lr=1 seed=1", "benchmark x --out runs/lr=1", "seed=1"),
        ("knn --out seed=1 seed=2", "knn --out seed=1", "seed=2"),
        ("paper t --cells r.yaml/lr=0.1 x/a seed=1", "paper t --cells r.yaml/lr=0.1 x/a", "seed=1"),
        ("linear out seed=1 --fast", "linear out --fast", "seed=1"),
        ("table seed=1 seed=2", "table seed=1 seed=2", ""),
        ("", "", ""),
    ],
)
def test_overrides_stand_anywhere(line, rest, overrides):
    assert arguments.split_argv(line.split()) == (rest.split(), overrides.split())


def test_a_run_of_a_sweep_is_no_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1").mkdir()
    assert arguments.split_argv(["knn", "seed=1"]) == (["knn", "seed=1"], [])
    assert arguments.split_argv(["pretrain", "x", "seed=1"]) == (["pretrain", "x"], ["seed=1"])


def test_a_config_in_a_folder_of_a_sweep_is_no_override(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "runs" / "seed=1" / "config.yaml"
    file.parent.mkdir(parents=True)
    assert main.main(["pretrain", "digits/ressl", "--cfg"]) == 0
    file.write_text(capsys.readouterr().out)
    for command in ("pretrain", "views", "benchmark", "linear"):
        for word in ("runs/seed=1/config.yaml", "runs/seed=1/config", str(file)):
            assert arguments.split_argv([command, word, "seed=2"]) == ([command, word], ["seed=2"])
    assert main.main(["pretrain", "runs/seed=1/config.yaml", "--cfg", "seed=2"]) == 0
    assert "seed: 2\n" in capsys.readouterr().out
    (tmp_path / "seed=3").write_text("")
    assert arguments.split_argv(["pretrain", "seed=3"]) == (["pretrain", "seed=3"], [])


def test_an_override_is_not_a_file_only_because_it_is_long():
    words = [f"name={'x' * 5000}", f"name=a/{'x' * 5000}"]
    assert arguments.split_argv(["pretrain", *words]) == (["pretrain"], words)
    assert arguments.split_argv(["knn", "run", *words]) == (["knn", "run"], words)


def test_commands_get_them(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sweep, "multirun", lambda *args: seen.append(args))
    assert main.main(["pretrain", "digits/ressl", "-m", "seed=1,2"]) == 0
    monkeypatch.setattr(paper, "reproduce", lambda *args: seen.append((args[1], args[3])))
    main.main(["paper", "table2", "--data", "cifar10", "max_epochs=2"])
    assert seen == [("digits/ressl", ["seed=1,2"]), (["max_epochs=2"], ["cifar10"])]
    monkeypatch.setattr(pretrain, "pretrain", lambda cfg, **_: seen.append(cfg))
    assert main.main(["pretrain", "digits/ressl", "--cfg", "optimizer.lr=0.125"]) == 0
    assert "lr: 0.125" in capsys.readouterr().out and len(seen) == 2


def test_a_word_too_many_is_named(capsys):
    assert main.main(["pretrain", "digits/ressl", "cifar/ressl"]) == main.USER_MISTAKE
    assert "cifar/ressl" in capsys.readouterr().err


def test_help_texts_name_what_is_wanted_and_the_defaults(capsys):
    (commands,) = (a for a in main.parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, sub in commands.choices.items():
        text = " ".join(sub.format_help().split())
        for action in sub._actions:
            assert action.help or not action.option_strings, f"{name} {action.option_strings}"
            if action.option_strings and action.default not in (None, False, argparse.SUPPRESS):
                many = isinstance(action.default, (list, tuple))
                given = action.default if many else [action.default]
                told = f"default: {' '.join(map(str, given))}"
                assert told in text, f"{name} {action.option_strings}"
    assert "RUN|CONFIG" in commands.choices["linear"].format_help()


def test_help_waits_for_no_heavy_import():
    code = """if True:
        import sys
        from ressl_plugin.cli import main
        assert {"knn", "features"} <= set(main.parser()._actions[-1].choices)
        heavy = {"torch", "lightning", "numpy", "omegaconf", "sklearn", "matplotlib"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)
