"""A terminal that knows ASCII alone."""

import os
import subprocess
import sys

from ressl_plugin.run import results

RECORD = {"evaluator": "few-labels", "protocol": "linear, 1 a class", "data": "digits",
          "metric": "top1", "value": 80.0, "spread": 2.5}  # fmt: skip


def test_a_table_on_an_ascii_terminal(tmp_path):
    results.append(tmp_path / "größe", RECORD)
    command = [sys.executable, "-m", "ressl_plugin.cli", "table", str(tmp_path / "größe")]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=env, capture_output=True, check=True)
    assert rb"80.00 \xb1 2.50" in done.stdout and rb"gr\xf6\xdfe" in done.stdout
