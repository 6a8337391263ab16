"""Tables as text."""

import pytest

from ressl_plugin.utils.render import number, render

HEADER, ROWS = ["a_b", "c"], [["x|y & 5%", None], ["[1]", "2 ± 3"]]


def test_markdown():
    assert render(HEADER, ROWS).splitlines() == [
        "| a_b       | c     |",
        "|-----------|-------|",
        "| x\\|y & 5% |       |",
        "| [1]       | 2 ± 3 |",
    ]


def test_latex_escapes():
    lines = render(HEADER, ROWS, "latex").splitlines()
    assert lines[0] == r"\begin{tabular}{lr}"
    assert lines[2] == r"a\_b & c \\"
    assert lines[4] == r"x|y \& 5\% &  \\"
    assert lines[5] == r"{}[1] & 2 $\pm$ 3 \\"  # a bare [ would be the argument of \\


def test_csv():
    assert render(["a", "b"], [["x,y", 'q"']], "csv") == 'a,b\n"x,y","q"""\n'


@pytest.mark.parametrize(
    "arguments,text",
    [((None,), ""), ((1.005,), "1.00"),
     ((90.2, 0.456), "90.20 ± 0.46"), ((-1, None, True), "-1.00"),
     ((1, None, True), "+1.00")],
)  # fmt: skip
def test_number(arguments, text):
    assert number(*arguments) == text
