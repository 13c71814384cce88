"""What pilots chose: of rates in one world, and of settings of survival over worlds."""

import pytest

from pipeline.study.pilot_choices import Pilots, survival_means

A, B = "srpo-survival-weight", "srpo-survival-hand-over"


@pytest.mark.parametrize(
    ("late", "chosen"),
    [
        ({"1e-5": 0.3, "1e-4": 0.5}, "1e-4"),
        ({"1e-5": 0.49, "1e-4": 0.5}, "1e-5"),  # exactly a point
        ({"1e-5": 0.489, "1e-4": 0.5}, "1e-4"),
        ({"1e-4": 0.5, "3e-5": 0.5}, "3e-5"),  # in whatever order the plan has them
        ({"1e-5": 0.49, "3e-5": 0.495, "1e-4": 0.5}, "1e-5"),
        ({"1e-5": 0.3, "1e-4": None}, None),
    ],
)
def test_the_lowest_rate_within_a_point_of_the_best(
    late: dict[str, float | None], chosen: str | None
) -> None:
    found = Pilots("srpo", late)
    assert found.chosen == chosen
    assert found.best == (None if chosen is None else late[chosen])


def test_survival_is_judged_by_its_mean_over_worlds() -> None:
    """Each at its own rate in each world: (0.4 + 0.6) / 2."""
    one = [Pilots("srpo", {"1e-4": 0.9}), Pilots(A, {"1e-4": 0.4, "1e-3": 0.3})]
    other = [Pilots(A, {"1e-4": 0.1, "1e-3": 0.6}), Pilots(B, {"1e-4": 0.7, "1e-3": None})]
    assert survival_means([one, other, []]) == {A: pytest.approx(0.5), B: None}
