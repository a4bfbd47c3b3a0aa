"""How the benchmark measures: interleaved rounds after a warm-up, ratios round by round, slow ones evenly apart."""

import pytest
import torch

from benchmarks import results
from benchmarks.cases import Case
from benchmarks.peers.contender import Contender, Task
from benchmarks.timing import MAX_ROUNDS, Sample, measure, stride
from benchmarks.workloads import make_inputs


def test_rounds_are_interleaved_after_a_warm_up():
    calls = []

    def task(letter):
        return Task(lambda: calls.append(letter), lambda: calls.append(f"prepare {letter}"))

    def timer(run):
        run()
        return Sample(float(len(calls)))

    samples = measure([task("A"), task("B"), task("C")], timer, seconds=0, min_rounds=4)

    warm_up = [call for letter in "ABC" for call in [f"prepare {letter}", letter] * 2]
    assert calls == warm_up + ["prepare A", "A", "prepare B", "B", "prepare C", "C"] * 4
    assert [[sample.elapsed for sample in own][:2] for own in samples] == [[14, 20], [16, 22], [18, 24]]


def test_rounds_are_bounded():
    samples = measure([Task(list)], lambda run: Sample(1.0), seconds=1e9, min_rounds=1)
    assert len(samples[0]) == MAX_ROUNDS


def test_slow_contenders_sit_out_some_rounds_evenly(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: clock[0])

    def task(seconds):
        return Task(lambda: clock.__setitem__(0, clock[0] + seconds))

    def timer(run):
        run()
        return Sample(1.0)

    seen = []
    tasks = [task(0.1), task(2.0), task(0.25)]
    samples = measure(tasks, timer, 6.0, 5, on_round=lambda *done: seen.append(done))

    took_part = [[i for i, sample in enumerate(own) if sample] for own in samples]
    assert took_part[0] == list(range(20))  # its third of the time, in runs
    assert took_part[1] == [0, 8, 16]  # the fewest that have quartiles
    assert took_part[2] == list(range(0, 20, 2))
    assert seen == [(i + 1, 20) for i in range(20)]


def test_ours_and_the_floor_sit_out_none(monkeypatch):
    seen = []

    def measured(tasks, timer, seconds, min_rounds, steady, on_round):
        seen.append((len(tasks), steady))
        return [[Sample(float(i + 1))] * 3 for i in range(len(tasks))]

    monkeypatch.setattr(results, "measure", measured)
    found = results.run_case(Case("step", "tiny"), "cpu", None, 1.0, 5)
    assert seen == [(10, 3)]
    assert [row["us"]["median"] for row in [*found["rows"][:3], found["floor"]]] == [1e6, 2e6, 4e6, 3e6]


def test_inputs_beyond_the_caches_are_not_read_before_each_run():
    inputs, task = make_inputs([(8, 8)], "cpu"), Task(list)
    assert results.settled(task, inputs) is not task
    inputs.params[0].data = torch.empty(1).expand(10**9)  # as if it had as many
    assert results.settled(task, inputs) is task


@pytest.mark.parametrize("total", [5, 11, 200])
@pytest.mark.parametrize("counts", [(3, 5), (4, 7), (3, 200), (11, 9)])
def test_any_two_contenders_meet_in_as_many_rounds_as_the_slower_takes(total, counts):
    rounds = [set(range(0, total, stride(count, total))) for count in counts]
    assert all(len(own) >= min(count, total) for own, count in zip(rounds, counts, strict=True))
    assert len(rounds[0] & rounds[1]) == min(map(len, rounds)) >= 3


def test_ratios_are_taken_round_by_round():
    """A machine that slows down for everyone changes no ratio."""
    ours = [Sample(seconds) for seconds in (1.0, 2.0, 4.0)]
    theirs = [Sample(3 * sample.elapsed) for sample in ours]
    row = results.make_row("theirs", 20, theirs, ours, n_weights=3_000_000)
    assert row["ratio"] == {"median": 3.0, "q1": 3.0, "q3": 3.0}
    assert row["us"] == {"median": 6e6, "q1": 4.5e6, "q3": 9e6}
    assert row["gb_per_s"] == pytest.approx(0.01)


def test_a_round_that_one_sat_out_is_in_no_ratio():
    ours = [Sample(1.0), Sample(100.0), Sample(2.0), Sample(4.0)]
    theirs = [Sample(2.0), None, Sample(4.0), Sample(8.0)]
    row = results.make_row("theirs", None, theirs, ours, n_weights=1)
    assert (row["ratio"]["median"], row["rounds"]) == (2.0, 3)


def test_a_masks_cost_is_over_the_same_implementation_without_it():
    case = Case("step", "tiny")
    entrants = [Contender("ours", None, unmasked="ours, no mask"), Contender("ours, no mask", None)]
    samples = {"ours": [Sample(3.0), Sample(6.0)], "ours, no mask": [Sample(2.0), Sample(4.0)]}
    rows = results.rows_of(case, entrants, samples, None)
    assert [row["mask_cost"] and row["mask_cost"]["median"] for row in rows] == [0.5, None]
