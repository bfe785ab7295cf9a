"""Scores of a classifier."""

import pytest

from eval.classification import score


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ([1, 1, 0, 0], 1.0),
        ([0, 0, 1, 1], -1.0),
        ([1, 0, 1, 0], 0.0),
        ([1, 1, 1, 0], 0.5773502691896258),
        ([1] * 4, 0.0),
    ],
)
def test_matthews_correlation_also_of_a_single_class(predicted, expected):
    assert score("matthews_correlation", [1, 1, 0, 0], predicted) == pytest.approx(expected)
