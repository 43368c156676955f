"""No CSV that budgetlab writes holds a formula."""

import csv

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from budgetlab.store import write_csv

FORMULA = ("=", "+", "-", "@")


def is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True


@given(st.text(st.sampled_from("=+-@\t\ra1. '\""), min_size=1, max_size=6))
def test_no_text_begins_a_formula(tmp_path_factory, cell):
    path = write_csv(tmp_path_factory.getbasetemp() / "t.csv", pd.DataFrame({"x": [cell, "b"], cell + "h": [1, -2.5]}))
    with path.open(newline="", encoding="utf-8") as file:
        head, first, second = csv.reader(file)
    if not is_number(cell):
        plain = cell.replace("\r", "\n")
        assert not first[0].lstrip().startswith(FORMULA) and first[0] in (plain, f"'{plain}")
    assert not head[1].startswith(FORMULA)
    assert [float(first[1]), float(second[1])] == [1, -2.5]  # numbers stay numbers


def test_numbers_written_as_text_stay_as_they_are(tmp_path):
    path = write_csv(tmp_path / "t.csv", pd.DataFrame({"x": ["-1e5", "=1+1", None], "y": [True, False, True]}))
    assert path.read_text().splitlines() == ["x,y", "-1e5,True", "'=1+1,False", ",True"]
