"""The examples run, on the digits, in seconds."""

import ast
import re
from pathlib import Path

import algorithm1
import evaluate_any_model
import nbformat
import own_data_set
import own_loop
import pytest
import timm
import torch
from nbclient import NotebookClient

from ressl_plugin import open_run
from ressl_plugin.data import make_digits
from ressl_plugin.run import results


def test_algorithm1_learns_the_digits(capsys):
    algorithm1.main(epochs=10)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and float(lines[1].split("kNN")[1].split()[0]) > 90
    source = Path(algorithm1.__file__).read_text()
    assert len(source.splitlines()) <= 100 and "ressl_plugin" not in source


def test_algorithm1_is_algorithm_1():
    """One step by the paper's formulas, in float64, with a linear student."""
    torch.manual_seed(0)
    student = torch.nn.Linear(3, 2).double()
    sgd = torch.optim.SGD(student.parameters(), 0.5)
    plain = algorithm1.ReSSL(student, sgd, 2, 5, tau_s=0.2, tau_t=0.1, m=0.9)
    plain.queue = plain.queue.double()
    contrastive, weak = torch.randn(2, 4, 3).double()
    queue, old = plain.queue.clone(), [p.detach().clone() for p in student.parameters()]
    unit = lambda z: z / z.norm(dim=1, keepdim=True)
    weights = [p.clone().requires_grad_() for p in old]
    z_t = unit(weak @ old[0].T + old[1])
    z_s = unit(contrastive @ weights[0].T + weights[1])
    exps = (z_t @ queue.T / 0.1).exp(), (z_s @ queue.T / 0.2).exp()
    target, relation = (e / e.sum(1, keepdim=True) for e in exps)
    expected = -(target * relation.log()).sum() / 4
    gradients = torch.autograd.grad(expected, weights)

    loss = plain.step(contrastive, weak, order=torch.tensor([2, 0, 3, 1]))
    torch.testing.assert_close(loss, expected.detach())
    new = [w - 0.5 * g for w, g in zip(old, gradients)]
    for o, n, s, t in zip(old, new, student.parameters(), plain.teacher.parameters()):
        torch.testing.assert_close(s, n)
        torch.testing.assert_close(t, 0.9 * o + 0.1 * n)
    torch.testing.assert_close(plain.queue, torch.cat([queue[4:], z_t]))


def short(example):
    lines = Path(example.__file__).read_text().splitlines()
    assert len(lines) < 80 and max(map(len, lines)) <= 100
    return example


def accuracies(text):
    return [float(found) for found in re.findall(r"kNN ([\d.]+) %", text)]


def test_own_loop(capsys):
    short(own_loop).main(epochs=5)
    before, after = accuracies(capsys.readouterr().out)
    assert before > 85 and after > 90


def test_own_data_set(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    own_data_set.make_folder(photos)
    more = {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False}
    files, alike = short(own_data_set).main(photos, tmp_path / "run", **more)
    assert len(files) == 300 and "000.png: " in capsys.readouterr().out
    labels = own_loop.digits()[1][[int(file.stem) for file in files]]
    assert (labels[alike] == labels[:, None]).float().mean() > 0.5, "chance is 0.1"


def test_evaluate_any_model(tmp_path, capsys):
    """A network that nobody has trained, as a folder of timm's own making."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=3, channels=(8, 16, 32, 64))
    about = {"input_size": (3, 32, 32), "num_classes": 3, "classifier": "fc"}
    config = {"model_args": {"channels": (8, 16, 32, 64)}, "pretrained_cfg": about}
    timm.models.save_for_hf(network, tmp_path / "net", config, safe_serialization=True)
    make_digits(tmp_path / "digits")
    name = f"local-dir:{tmp_path / 'net'}"
    top1 = short(evaluate_any_model).main(name, tmp_path / "digits")
    assert f"{name}: 64 features, kNN {top1['kNN']:.1f} %" in capsys.readouterr().out
    assert min(top1.values()) > 30, "chance is 10"


@pytest.fixture(scope="module")
def with_lightly():
    pytest.importorskip("lightly", reason="pip install lightly")
    import with_lightly

    return short(with_lightly)


@pytest.mark.slow
def test_with_lightly(with_lightly, capsys):
    with_lightly.main(epochs=3)
    found = accuracies(capsys.readouterr().out)
    assert len(found) == 4 and found[-1] > found[0] + 5


def changed_lines():
    """Of docs/lightly.md: (lightly's line or "", ours)."""
    text = (Path(__file__).parents[2] / "docs" / "lightly.md").read_text()
    return re.findall(r"^\| (?:`(.*?)` )?\| `(.*)` \|$", text, re.M)


@pytest.mark.slow
def test_what_a_user_of_lightly_changes(with_lightly, capsys):
    """With the lines of docs/lightly.md taken back the program is lightly's MoCo, and runs."""
    rows, text = changed_lines(), Path(with_lightly.__file__).read_text()
    assert len(rows) == 10
    for theirs, ours in rows:
        line = re.compile(rf"^( *){re.escape(ours)}\n", re.M)
        assert len(line.findall(text)) == 1, ours
        text = line.sub(lambda m, theirs=theirs: f"{m[1]}{theirs}\n" if theirs else "", text)
    code = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert not code & {"FeatureQueue", "RelationalLoss", "queue", "normalize"}
    program = {"__name__": "moco"}
    exec(compile(text, "moco", "exec"), program)
    program["main"](epochs=1)
    assert len(accuracies(capsys.readouterr().out)) == 2


SMALL = {
    "max_epochs": 1,
    "backbone": {"name": "timm:resnet10t", "stem": "auto", "kwargs": {"channels": [8, 8, 16, 16]}},
    "method_kwargs": {"queue_size": 64, "proj_hidden_dim": 32, "proj_output_dim": 16},
    "accelerator": "cpu",
}
FEW = """
for file in digits.glob("*/*/*.png"):
    if int(file.stem) % 7:
        file.unlink()
"""


def test_the_notebook(tmp_path):
    """Every cell as it stands, with a smaller network, on one in seven of the digits."""
    notebook = nbformat.read(Path(__file__).parents[2] / "examples" / "quickstart.ipynb", 4)
    code = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert not [cell.id for cell in code.values() if cell.outputs or cell.execution_count]
    code["settings"].source += f"\nsettings = {SMALL}"
    code["digits"].source += FEW
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()

    shown = {name: [o.output_type for o in cell.outputs] for name, cell in code.items()}
    assert "display_data" in shown["curves"] and "display_data" in shown["neighbours"]
    table = "".join(output.text for output in code["compare"].outputs if "text" in output)
    assert "untrained backbone" in table and "raw pixels" in table
    run = open_run(tmp_path / "runs" / "notebook")
    assert run.epochs == 1
    assert {"knn", "linear"} < {record["evaluator"] for record in results.read(run.dir)}
