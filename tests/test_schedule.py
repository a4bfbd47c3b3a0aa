"""Schedule promises: which phase a position belongs to, plain dicts there and back, bad values named."""

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsd_kernels.schedule import MOMENTUM_POLICIES, REGROWN_VALUES, Phase, Schedule

DENSE = Phase("dense", 2)
SPARSE = Phase("sparse", 3, sparsity=0.5, lr_factor=0.5)
REDENSE = Phase("redense", 1, lr_factor=0.1, momentum="zero_regrown")

phases = st.builds(
    Phase,
    name=st.text(min_size=1, max_size=5),
    length=st.integers(0, 6),
    sparsity=st.floats(0, 1, exclude_max=True),
    lr_factor=st.floats(0, 10),
    momentum=st.sampled_from(MOMENTUM_POLICIES),
    regrown=st.sampled_from(REGROWN_VALUES),
    grown=st.none() | st.integers(0, 3),
)
schedules = st.lists(phases, min_size=1, max_size=8).filter(lambda ps: any(p.length for p in ps)).map(Schedule)


def names(schedule: Schedule) -> list[str]:
    return [schedule.at(position)[1].name for position in range(schedule.length + 1)]


def test_a_trace():
    schedule = Schedule([DENSE, SPARSE, REDENSE])
    assert schedule.length == 6
    assert schedule.starts == (0, 2, 5)
    assert [schedule.at(p) for p in range(7)] == [
        (0, DENSE),
        (0, DENSE),
        (1, SPARSE),
        (1, SPARSE),
        (1, SPARSE),
        (2, REDENSE),
        (2, REDENSE),
    ]
    assert list(schedule) == [DENSE, SPARSE, REDENSE]
    assert len(schedule) == 3


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([0, 2, 1], ["b", "b", "c", "c"]),
        ([1, 0, 1], ["a", "c", "c"]),
        ([1, 2, 0], ["a", "b", "b", "c"]),
        ([1, 0, 0], ["a", "c"]),
        ([0, 0, 1], ["c", "c"]),
    ],
)
def test_phases_of_length_0_are_passed_over_except_at_the_end(lengths, expected):
    assert names(Schedule([Phase(name, length) for name, length in zip("abc", lengths, strict=True)])) == expected


@settings(deadline=None)
@given(schedules)
def test_every_phase_holds_for_its_length(schedule):
    indices = [schedule.at(position)[0] for position in range(schedule.length)]
    assert [indices.count(i) for i in range(len(schedule))] == [phase.length for phase in schedule]
    assert indices == sorted(indices)
    assert schedule.at(schedule.length)[0] >= indices[-1]


@settings(deadline=None)
@given(schedules)
def test_plain_dicts_there_and_back(schedule):
    through_json = json.loads(json.dumps(schedule.to_dicts()))
    assert Schedule.from_dicts(through_json) == schedule


def test_numbers_of_numpy_become_plain():
    [phase] = Schedule([Phase("a", np.int64(3), np.float32(0.5), np.float64(2.0))]).to_dicts()
    assert {type(value) for value in phase.values()} == {str, int, float, type(None)}


def test_nothing_can_be_changed():
    with pytest.raises(FrozenInstanceError):
        DENSE.length = 3  # type: ignore[misc]
    source = [DENSE, SPARSE]
    schedule = Schedule(source)
    source.append(REDENSE)
    assert len(schedule) == 2
    assert hash(schedule) == hash(Schedule((DENSE, SPARSE)))


@pytest.mark.parametrize(
    ("field", "value", "error", "expected"),
    [
        ("name", 3, TypeError, "a string"),
        ("name", "", ValueError, "a string that is not empty"),
        ("length", -1, ValueError, "an integer, 0 or more"),
        ("length", 1.0, TypeError, "an integer, 0 or more"),
        ("length", True, TypeError, "an integer, 0 or more"),
        ("length", "3", TypeError, "an integer, 0 or more"),
        ("sparsity", -0.1, ValueError, r"a number in \[0, 1\)"),
        ("sparsity", 1.0, ValueError, r"a number in \[0, 1\)"),
        ("sparsity", float("nan"), ValueError, r"a number in \[0, 1\)"),
        ("sparsity", "half", TypeError, r"a number in \[0, 1\)"),
        ("sparsity", True, TypeError, r"a number in \[0, 1\)"),
        ("sparsity", None, TypeError, r"a number in \[0, 1\)"),
        ("lr_factor", -1, ValueError, "a finite number, 0 or more"),
        ("lr_factor", float("inf"), ValueError, "a finite number, 0 or more"),
        ("lr_factor", float("nan"), ValueError, "a finite number, 0 or more"),
        ("lr_factor", "1", TypeError, "a finite number, 0 or more"),
        ("momentum", "drop", ValueError, "one of keep, zero_regrown, zero_all"),
        ("momentum", None, ValueError, "one of keep, zero_regrown, zero_all"),
        ("regrown", "keep", ValueError, "one of zero, restore"),
        ("grown", -1, ValueError, "an integer, 0 or more"),
        ("grown", 0.0, TypeError, "an integer, 0 or more"),
        ("grown", True, TypeError, "an integer, 0 or more"),
    ],
)
def test_bad_phase(field, value, error, expected):
    with pytest.raises(error, match=f"^{field}: expected {expected}, got "):
        Phase(**{"name": "a", "length": 1, field: value})


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ([], ValueError, "phases: expected a total length above 0"),
        ([Phase("a", 0)], ValueError, "phases: expected a total length above 0"),
        (3, TypeError, "phases: expected a sequence of Phase, got 3"),
        ([DENSE, "sparse"], TypeError, r"phases\[1\]: expected a Phase, got 'sparse'"),
    ],
)
def test_bad_schedule(value, error, text):
    with pytest.raises(error, match=text):
        Schedule(value)


BAD_POSITIONS = [(-1, ValueError), (7, ValueError), (1.0, TypeError), (True, TypeError)]


@pytest.mark.parametrize(("position", "error"), BAD_POSITIONS)
def test_bad_position(position, error):
    with pytest.raises(error, match=r"position: expected an integer in \[0, 6\], got"):
        Schedule([DENSE, SPARSE, REDENSE]).at(position)


@pytest.mark.parametrize("value", [None, [3], [{"name": "a"}], [{**Schedule([DENSE]).to_dicts()[0], "more": 1}]])
def test_bad_dicts(value):
    with pytest.raises((TypeError, ValueError), match=r"^phases(\[0\])?: expected a"):
        Schedule.from_dicts(value)


def test_dicts_of_an_earlier_version_have_the_defaults_of_what_it_did_not_know():
    dicts = [{key: value for key, value in SPARSE.__dict__.items() if key not in ("regrown", "grown")}]
    assert Schedule.from_dicts(dicts) == Schedule([SPARSE])


def test_phases_that_restore_and_grow_say_so():
    phase = Phase("grow", 1, sparsity=0.5, regrown="restore", grown=2)
    assert str(phase) == "grow: length 1, sparsity 0.5, lr factor 1, momentum keep, regrown restore, grown 2"


def test_the_schedule_reads_well():
    assert str(Schedule([DENSE, SPARSE])).splitlines() == [
        "     0  dense: length 2, sparsity 0, lr factor 1, momentum keep",
        "     2  sparse: length 3, sparsity 0.5, lr factor 0.5, momentum keep",
    ]
