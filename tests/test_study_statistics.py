"""The statistics of a study, against scipy, a table worked by hand, and what they must not claim."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsd_kernels.study.statistics import Difference, difference, holm, mean_and_spread
from dsd_kernels.study.summary import Metric, Summary, headline, verdict

stats = pytest.importorskip("scipy.stats")

ACCURACY = Metric("accuracy", "points", "test_accuracy", 100.0, 2, higher_is_better=True)
LOSS = Metric("loss", "nats", "test_loss", 1.0, 4, higher_is_better=False)


def test_a_table_worked_by_hand():
    """Differences 1, 2, 3, 4: mean 2.5, s^2 = 5/3, error sqrt(5/12), t(0.975; 3) = 3.182446."""
    found = difference([11.0, 22.0, 33.0, 44.0], [10.0, 20.0, 30.0, 40.0])
    assert found.mean == 2.5
    assert found.spread == pytest.approx(math.sqrt(5 / 3), rel=1e-15)
    half = 3.182446305 * math.sqrt(5 / 12)
    assert (found.low, found.high) == (pytest.approx(2.5 - half, rel=1e-8), pytest.approx(2.5 + half, rel=1e-8))
    assert found.p == pytest.approx(0.0304662, rel=1e-5)  # t = 2.5 / sqrt(5/12) = 3.872983


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=30))
def test_as_scipys_paired_t_test(pairs):
    ours, theirs = zip(*pairs, strict=True)
    found = difference(ours, theirs)
    if found.p is None:
        assert found.spread == 0
        assert min(a - b for a, b in pairs) == pytest.approx(max(a - b for a, b in pairs), rel=1e-12, abs=1e-8)
        return
    expected = stats.ttest_1samp([a - b for a, b in pairs], 0.0)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    scale = abs(found.mean) + found.spread
    assert found.low == pytest.approx(interval.low, rel=1e-6, abs=1e-9 * scale)
    assert found.high == pytest.approx(interval.high, rel=1e-6, abs=1e-9 * scale)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_equal_differences_are_no_proof():
    found = difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high, found.p) == (1.0, 1.0, 1.0, None)
    third = difference([97.5, 96.94444444444444], [97.22222222222223, 96.66666666666667])  # but for rounding
    assert third.p is None
    assert not found.is_distinguishable
    assert "the same difference in every seed" in verdict("dsd", "baseline", found, ACCURACY, 1)


def test_a_training_that_diverged_leaves_no_statement():
    found = difference([math.nan, 1.0, math.nan], [1.0, 1.0, 1.0])
    assert found.p is None
    expected = "`dsd`: no statement about its difference from `baseline`: training diverged in 2 of 3 seeds."
    assert verdict("dsd", "baseline", found, LOSS, 1) == expected


def test_mean_and_spread():
    assert mean_and_spread([1.0, 3.0]) == (2.0, math.sqrt(2))
    assert math.isnan(mean_and_spread([1.0])[1])


@pytest.mark.parametrize(
    ("found", "metric", "sentence"),
    [
        (
            Difference(0.5, 1.0, 0.1, 0.9, 0.004, 0.012),
            ACCURACY,
            "`dsd` is 0.50 points better than `llr`: distinguishable from zero (p = 0.012 after Holm's correction).",
        ),
        (
            Difference(0.5, 1.0, 0.1, 0.9, 0.00004, 0.00012),
            LOSS,
            "`dsd` is 0.5000 nats worse than `llr`: distinguishable from zero (p = 1e-4 after Holm's correction).",
        ),
        (
            Difference(-0.02, 1.0, -0.5, 0.46, 0.9, 0.9),
            LOSS,
            (
                "`dsd` is 0.0200 nats better than `llr`: not distinguishable from zero "
                "(p = 0.900 after Holm's correction)."
            ),
        ),
        (
            Difference(-0.5, 1.0, -0.9, -0.1, 0.03, 0.09),
            ACCURACY,
            (
                "`dsd` is 0.50 points worse than `llr`: not distinguishable from zero "
                "(p = 0.090 after Holm's correction); "
                "its own interval leaves zero out, which among 3 comparisons is not enough."
            ),
        ),
    ],
    ids=["better", "worse", "not", "not after the correction"],
)
def test_words(found, metric, sentence):
    assert verdict("dsd", "llr", found, metric, 3) == sentence


def test_headline_counts_what_is_shown():
    told, not_told = Difference(0.5, 1.0, 0.1, 0.9, 0.004, 0.012), Difference(0.5, 1.0, -0.1, 1.1, 0.1, 0.1)
    summary = Summary(LOSS, (), {"llr": {"dsd": told, "iht": not_told}})
    text = "In test loss, told apart from `llr`: none better; `dsd` worse. 1 of 2 not distinguishable."
    assert headline(summary, "llr") == text
    nothing = Summary(LOSS, (), {"llr": {"iht": not_told}})
    assert headline(nothing, "llr") == "No arm can be told from `llr` in test loss: a gain or loss is not shown."
