"""The core stands alone: PyTorch is enough for the losses, the memory and the batch norm."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ressl_plugin.method import loss

ROOT = Path(__file__).parents[3]
METHOD = Path(loss.__file__).parent
CORE = (
    "loss", "attention", "infonce", "nt_xent", "queue", "batchnorm", "batchnorm_kernels", "metrics",
)  # fmt: skip
OUTSIDE = ("torch", "triton")  # which comes with PyTorch, and is for a GPU
# of ours; precision (full float32 products), which the views need as well; gathered keys
LEAVES = ("errors", "precision", "distributed")
WITHOUT = ("solo", "lightning", "pytorch_lightning", "hydra", "omegaconf", "timm", "torchvision")


def imports(file):
    """Modules and packages that a file names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "ressl_plugin.utils":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("name", [*CORE, *LEAVES])
def test_imports_are_torchs_and_the_cores(name):
    folder = METHOD.parent / "utils" if name in LEAVES else METHOD
    ours = {f"ressl_plugin.method.{core}" for core in CORE}
    allowed = set() if name in LEAVES else ours | {f"ressl_plugin.utils.{leaf}" for leaf in LEAVES}
    for module in imports(folder / f"{name}.py"):
        first = module.split(".")[0]
        assert first in OUTSIDE or first in sys.stdlib_module_names or module in allowed, module


def run_without(*words):
    """What Python code prints with nothing of WITHOUT to be imported, in a process of its own."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({WITHOUT}))"
    code = "\n".join([blocked, *words])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_loss_and_a_memory_in_anybodys_loop():
    out = run_without(
        "import torch",
        "from torch.nn.functional import normalize",
        "from ressl_plugin import GroupBatchNorm1d, info_nce, to_groups",
        "from ressl_plugin import FeatureQueue, RelationalLoss",
        "queue, criterion = FeatureQueue(64, 8), RelationalLoss(0.1, 0.04)",
        "head = to_groups(torch.nn.Sequential(GroupBatchNorm1d(8, groups=2)), 4)",
        "z_s = normalize(head(torch.randn(8, 8, requires_grad=True)), dim=1)",
        "z_t = normalize(torch.randn(8, 8), dim=1)",
        "found = criterion(z_s, z_t, queue.rows)",
        "(found.loss + info_nce(z_s, z_t, queue.rows, 0.2)).backward()",
        "queue.enqueue(z_t)",
        "assert torch.equal(queue.rows[:8], z_t) and int(queue.ptr) == 8",
        "print(float(found.loss))",
    )
    assert 0 < float(out) < 20


def test_what_they_cost_beside_torch():
    """Nothing is imported that torch has not imported: milliseconds."""
    out = run_without(
        "import torch, sys",
        "before = set(sys.modules)",
        "from ressl_plugin import FeatureQueue, RelationalLoss, info_nce, to_groups",
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})",
    )
    assert {name for name in out.split() if name not in sys.stdlib_module_names} == {"ressl_plugin"}


def test_the_packages_top_has_them():
    """README's example, with PyTorch alone."""
    readme = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"```python\n([^`]*?RelationalLoss.*?)```", readme, re.DOTALL)
    given = (
        "import torch",
        "student = torch.nn.Linear(8, 128)",
        "teacher = torch.nn.Linear(8, 128)",
        "strong = weak = torch.randn(6, 8)",
    )
    run_without(*given, example, "assert int(queue.ptr) == 6 and student.weight.grad is not None")


def test_what_the_top_lacks_is_said():
    import ressl_plugin

    with pytest.raises(AttributeError, match="no attribute 'relational_los'"):
        ressl_plugin.relational_los  # noqa: B018
