"""A terminal that knows ASCII alone."""

import sys

from ranks import on_ranks

from ressl_plugin.cli.main import main
from ressl_plugin.run import results

RECORD = {"evaluator": "few-labels", "protocol": "linear, 1 a class", "data": "digits",
          "metric": "top1", "value": 80.0, "spread": 2.5}  # fmt: skip


def test_a_table_on_an_ascii_terminal(tmp_path):
    results.append(tmp_path / "größe", RECORD)
    out = tmp_path / "out.txt"

    def work():
        # the process's own, as PYTHONIOENCODING=ascii makes it
        sys.stdout = sys.__stdout__ = out.open("w", encoding="ascii")
        try:
            return main(["table", str(tmp_path / "größe")])
        finally:
            sys.stdout.flush()

    assert on_ranks(1, work, tmp_path / "ranks") == [0]
    printed = out.read_bytes()
    assert rb"80.00 \xb1 2.50" in printed and rb"gr\xf6\xdfe" in printed
