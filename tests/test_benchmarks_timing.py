"""How the benchmark measures: interleaved rounds after a warm-up, ratios round by round, slow ones evenly apart."""

import itertools

import pytest
import torch

from benchmarks import results
from benchmarks.cases import Case
from benchmarks.peers.contender import Contender, Task
from benchmarks.timing import MAX_ROUNDS, Sample, measure, orders, stride
from benchmarks.workloads import make_inputs


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so."""
    now = [0.0]
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: now[0])
    return now


def test_rounds_are_interleaved_after_a_warm_up(clock):
    calls = []

    def task(letter):
        return Task(lambda: calls.append(letter), lambda: calls.append(f"prepare {letter}"))

    def timer(run):
        clock[0] += 0.01
        run()
        return Sample(float(len(calls)))

    samples = measure([task("A"), task("B"), task("C")], timer, seconds=0, min_rounds=4)

    warm_up = [call for letter in "ABC" for call in [f"prepare {letter}", letter] * 2]
    assert calls[:12] == warm_up
    assert [call.removeprefix("prepare ") for call in calls[12::2]] == calls[13::2]
    rounds = ["".join(calls[i : i + 6 : 2]) for i in range(13, 37, 6)]
    assert len(calls) == 36
    assert [sorted(each) for each in rounds] == [["A", "B", "C"]] * 4
    for letter, own in zip("ABC", samples, strict=True):
        assert [sample.elapsed for sample in own] == [
            14 + 6 * i + 2 * each.index(letter) for i, each in enumerate(rounds)
        ]


def test_nobody_always_follows_the_same_one():
    rounds = list(orders(4, 200))
    followed = {pair for each in rounds for pair in itertools.pairwise(each)}
    assert followed == set(itertools.permutations(range(4), 2))
    assert {each[0] for each in rounds} == {0, 1, 2, 3}
    assert rounds == list(orders(4, 200))


@pytest.mark.parametrize(("seconds", "runs"), [(0.0009, 2), (0.0011, 1)])
def test_a_short_task_runs_once_untimed_before(clock, seconds, runs):
    """Whoever ran before it has taken the caches."""
    calls = []

    def run():
        calls.append(len(calls))
        clock[0] += seconds

    def timer(run):
        run()
        return Sample(float(len(calls)))

    [own] = measure([Task(run)], timer, seconds=0, min_rounds=3)
    assert [sample.elapsed for sample in own] == [2 + runs, 2 + 2 * runs, 2 + 3 * runs]


def test_rounds_are_bounded():
    samples = measure([Task(list)], lambda run: Sample(1.0), seconds=1e9, min_rounds=1)
    assert len(samples[0]) == MAX_ROUNDS


def test_slow_contenders_sit_out_some_rounds_evenly(clock):
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
