"""Registration: the registry, main's own scripts through Hydra, and the wrapper."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import image_folder

import ressl_plugin
from ressl_plugin import host
from ressl_plugin.method.ressl import ReSSL


def test_the_registry_is_changed_in_place_and_the_hosts_own_stays():
    registry = host.METHODS
    ressl_plugin.register()
    theirs = registry["ressl_host"]
    ressl_plugin.register()
    assert registry is host.METHODS
    assert registry["ressl"] is ReSSL
    assert registry["ressl_host"] is theirs is not ReSSL
    assert theirs.__module__.startswith("solo.")


def run(*words, cwd):
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=240
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_the_hosts_configs_run_without_a_gpu():
    """`devices: [0]` and `sync_batchnorm: true`, as its ressl.yaml has them. In a process of its
    own: Lightning is changed for the whole of it."""
    done = run("-c", """
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from ressl_plugin.method.registry import register_for_host_scripts

class Model(BoringModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(32, 2), torch.nn.BatchNorm1d(2))
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(8, 32), batch_size=4)

quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
for devices in ([0], 1, "1"):
    for _ in range(2):
        register_for_host_scripts()
    trainer = Trainer(accelerator="cpu", devices=devices, sync_batchnorm=True, strategy="ddp",
                      max_epochs=1, limit_val_batches=0, **quiet)
    assert trainer.world_size == 1, devices
trainer.fit(Model())
assert Trainer(accelerator="cpu", precision="auto", **quiet).precision in ("32-true", "bf16-mixed")
print("trained", trainer.global_step)
""", cwd=Path.cwd())  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "trained 2" in done.stdout and "sync_batchnorm=true: needs GPUs" in done.stderr


@pytest.mark.skipif(host.GENERATION != "main", reason="needs the main-branch host's scripts")
def test_mains_own_script_finds_the_plugin_and_its_recipes(tmp_path):
    checkout = Path(os.environ["SOLO_LEARN"])
    data = image_folder(tmp_path / "data", per_class=8)
    done = run(
        checkout / "main_pretrain.py", "--config-path", "pkg://ressl_plugin.recipes.pretrain.digits",
        "--config-name", "ressl", f"data.train_path={data}/train", f"data.val_path={data}/val",
        "max_epochs=1", "optimizer.batch_size=8", "method_kwargs.queue_size=24",
        "accelerator=cpu", f"+checkpoint.dir={tmp_path}/out", "+enable_progress_bar=false",
        "knn_eval.enabled=false",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "METHODS['ressl'] is the plugin's" in done.stderr + done.stdout
    folder = next((tmp_path / "out" / "ressl").iterdir())
    assert list(folder.glob("*.ckpt")) and (folder / "args.json").is_file()


def test_the_wrapper_registers_and_runs_a_script_unchanged(tmp_path):
    script = tmp_path / "theirs.py"
    script.write_text(
        "import sys\nfrom solo.methods import METHODS\n"
        "print(METHODS['ressl'].__module__, sys.argv[1:], __name__)\n"
    )
    done = run("-m", "ressl_plugin", script, "--flag", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ressl_plugin.method.ressl ['--flag', '1'] __main__" in done.stdout


def test_the_wrapper_names_a_missing_script(tmp_path):
    done = run("-m", "ressl_plugin", "nothing.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing.py: no such script" in done.stderr
    assert "Traceback" not in done.stderr
