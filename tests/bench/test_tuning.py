"""How values are chosen for the rows of a comparison."""

from dataclasses import dataclass

import pytest

from dslth.bench.tuning import effort, search


@dataclass(frozen=True)
class Outcome:
    values: dict[str, float]
    accuracy_personal: float


def found(peak, grid, first):
    """Search where accuracy falls with each value's distance from its peak; return the best, and what was tried."""
    tried = []

    def attempt(values):
        tried.append(values)
        return Outcome(values, -sum(abs(value - peak[name]) / (1 + value) for name, value in values.items()))

    return search(first, grid, attempt).values, tried


def test_each_value_is_tried_once_beside_the_best_of_those_before_it():
    grid = {"lr": (0.1, 1.0, 10.0), "pull": (0.5, 1.0, 2.0)}
    best, tried = found({"lr": 1, "pull": 2}, grid, {"lr": 1.0, "pull": 1.0})
    assert best == {"lr": 1, "pull": 2}
    assert tried[:3] == [{"lr": rate, "pull": 1} for rate in grid["lr"]]
    assert tried[3:] == [{"lr": 1, "pull": pull} for pull in (0.5, 2)]  # not beyond 2: no rate
    assert len(tried) == effort({"lr": 1.0, "pull": 1.0}, grid)


@pytest.mark.parametrize(
    ("peak", "beyond"), [(300, [30, 100, 300, 1000]), (0.02, [0.1, 0.03, 0.01]), (1, []), (1e-9, None)]
)
def test_a_rate_that_is_best_at_an_end_is_tried_further_until_it_is_not(peak, beyond):
    best, tried = found({"lr": peak}, {"lr": (0.3, 1.0, 3.0, 10.0)}, {"lr": 1.0})
    rates = [values["lr"] for values in tried]
    assert rates[:4] == [0.3, 1, 3, 10]
    assert beyond is None or rates[4:] == beyond
    assert min(rates) < best["lr"] < max(rates)
    assert abs(best["lr"] - peak) <= min(abs(rate - peak) for rate in rates) + 1e-12


def test_like_accuracies_end_the_search_with_the_first():
    assert search({"lr": 1.0}, {"lr": (1.0, 3.0)}, lambda values: Outcome(values, 0.5)).values == {"lr": 1}


def test_without_a_grid_there_is_one_run():
    assert found({"lr": 1}, {}, {"lr": 2.0}) == ({"lr": 2}, [{"lr": 2}])
