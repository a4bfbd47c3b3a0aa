"""What a report says of a study, over numbers made up here: true words, whatever the numbers are."""

import shlex

import pytest
from matplotlib.figure import Figure

from dsd_kernels.study import plot
from dsd_kernels.study.report import StudyReport
from dsd_kernels.study.settings import Settings
from dsd_kernels.study.statistics import Difference
from dsd_kernels.study.summary import ArmSummary, Metric, Summary
from dsd_kernels.tasks.digits import digits
from dsd_kernels.training.config import new_config

PHASES = {
    "baseline": [["dense", 6, 0.0]],
    "llr": [["dense", 2, 0.0]] * 3,
    "dsd": [["dense", 2, 0.0], ["sparse", 2, 0.5], ["redense", 2, 0.0]],
    "gap": [["grow", 1, 0.5]] * 4 + [["final", 2, 0.5]],
}
VERSIONS = {"dsd_kernels": "0.0.1", "torch": "2.0"}


def report_of(seconds=30.0, **options):
    """A report on two seeds of four arms."""
    config = new_config({"dense": 2, "sparse": 2, "redense": 2, **options}, "cpu")
    results = {(arm, seed): result(arm, seed, seconds) for arm in PHASES for seed in (0, 1)}
    return StudyReport(Settings(config, tuple(PHASES), 2, "0" * 64, VERSIONS), digits(), results)


def result(arm, seed, seconds):
    rates = [0.02] * 6 if arm == "baseline" else [0.02] * 4 + [0.002] * 2
    measured = {"test_loss": 0.1 + 0.01 * seed, "test_accuracy": 0.9 + 0.01 * seed, "sparsity_actual": 0.0}
    records = [{"epoch": i + 1, "lr": rate, **measured} for i, rate in enumerate(rates)]
    made = {"machine": "a machine", "commit": "abc", "seconds": seconds}
    return {"arm": arm, "seed": seed, "phases": PHASES[arm], "records": records, **made}


def words_of(report):
    return " ".join(report.markdown("a.png", "b.png").split())


def test_a_difference_from_llr_is_the_methods_not_the_masks_alone():
    """AC/DC and grow-and-prune zero all momentum, and P-GaP puts its workers' models together."""
    words = words_of(report_of())
    assert "mask's alone" not in words
    expected = (
        "its masks, and for `acdc`, `gap` and `pgap` also their momentum restarts, for `pgap` its recombined workers"
    )
    assert f"A difference from `llr` is the method's: {expected}." in words
    assert (
        "## Against `llr`: never pruned, but at the same learning rate in every epoch: the difference is the method's"
        in words
    )


def test_what_intervals_leave_out_is_said():
    words = words_of(report_of())
    assert "Intervals are over seeds on one fixed test set" in words
    assert "learning rates were chosen with seed 0, which is one of the seeds" in words


def test_unpruned_arms_are_shown_with_their_learning_rates_and_pruned_ones_with_their_sparsity():
    words = words_of(report_of())
    assert "at a constant learning rate. Epochs at learning rate: 6 at 0.02." in words
    assert "Epochs at learning rate: 4 at 0.02, 2 at 0.002." in words
    assert "Epochs (sparsity): dense 2, sparse 2 (0.5), redense 2." in words
    assert "Epochs (sparsity): 4 x grow 1 (0.5), final 2 (0.5)." in words


@pytest.mark.parametrize(("seconds", "shown"), [(0.5, "4 seconds"), (14.9, "119 seconds"), (15, "2 minutes")])
def test_short_studies_take_seconds(seconds, shown):
    assert f"Time of all trainings together: {shown}" in report_of(seconds).made_on()


def test_versions_of_the_trainings_are_those_that_the_study_recorded():
    line = report_of().made_on()[-1]
    assert line.startswith(
        "Versions of the trainings: dsd_kernels 0.0.1, torch 2.0; where the report was written also python"
    )
    assert line.count("torch ") == 1


@pytest.mark.parametrize("dataset", ["imagefolder:my images", "imagefolder:it's; rm -r ~"])
def test_the_command_can_be_given_to_a_shell(dataset):
    arguments = shlex.split(report_of(dataset=dataset).command())
    assert arguments[arguments.index("--dataset") + 1] == dataset


def test_an_interval_that_ends_at_0_is_drawn_to_0():
    found = {"llr": Difference(1.0, 1.0, 0.0, 2.0, 0.05, 0.05), "dsd": Difference(-1.0, 1.0, -2.0, 0.0, 0.05, 0.05)}
    metric = Metric("loss", "nats", "test_loss", 1.0, 4, higher_is_better=False)
    arms = tuple(ArmSummary(name, (1.0, 1.0), 1.0, 0.0, 0.0) for name in ("baseline", *found))
    axes = Figure().subplots()
    plot._differences(axes, Summary(metric, arms, {"baseline": found}), "baseline")
    drawn = [tuple(line.get_xdata()) for line in axes.get_lines()]
    assert (0.0, 2.0) in drawn
    assert (-2.0, 0.0) in drawn
