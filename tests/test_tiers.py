"""What `make test` leaves to `make test-full`: combinations, never a scheme or a value."""

import pytest

from helpers import CASES, FEW, QUICK, over
from hf_rope import SCHEMES


def rows_of(mark: pytest.MarkDecorator) -> tuple[list[tuple], list[tuple]]:
    """All rows, and those of `make test`."""
    rows = mark.args[1]
    return [row.values for row in rows], [row.values for row in rows if not row.marks]


def test_every_row_is_run_and_every_scheme_and_value_in_the_quick_tier():
    ways = ["plain", "dense", "recorded"]
    rows, quick = rows_of(over(case=CASES, way=ways, training=[False, True]))
    assert len({*rows}) == len(rows) == len(CASES) * 6
    assert [case for case, _, _ in quick] == QUICK
    assert {*SCHEMES} <= {*QUICK}
    for number, values in ((1, ways), (2, [False, True])):
        counts = [[row[number] for row in quick].count(value) for value in values]
        assert max(counts) - min(counts) <= 2


def test_an_axis_that_is_longer_than_the_schemes_is_held_whole():
    _, quick = rows_of(over(scheme=SCHEMES, number=range(50)))
    assert {number for _, number in quick} == {*range(50)}
    assert len(quick) == 50


def test_what_is_not_there_is_left_out_and_few_schemes_are_those_that_are_asked_for():
    rows, quick = rows_of(over(quick=FEW, scheme=SCHEMES, kind=["a", "b"], where=lambda scheme, kind: kind == "a"))
    assert [scheme for scheme, _ in rows] == [*SCHEMES]
    assert quick == [(scheme, "a") for scheme in SCHEMES if scheme in FEW]
