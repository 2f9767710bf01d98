"""docs/certificates/operators.md says what the code does."""

import pytest

from operator_types import PAGE, columns, knows, networks
from sampling import first

ROWS = {
    cells[0].strip(): [c.strip() for c in cells[1:]]
    for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    for cells in [line.strip("| \n").split("|")]
}  # fmt: skip
FIRST = ["max pool", "residual", "softmax", "gru cell"]


def test_the_page_has_a_row_for_every_network_and_a_column_for_every_bound():
    assert list(ROWS) == ["operation", *networks()]
    assert ROWS["operation"] == list(columns())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", first(len(FIRST), sorted(networks(), key=lambda name: name not in FIRST)))
def test_a_row_is_what_the_bounds_do(name):
    assert ROWS[name] == ["yes" if knows(name, bound) else "no" for bound in columns()]
