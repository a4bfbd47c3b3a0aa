"""The compatibility table: the committed file is what the markers say, and only a complete run can write it."""

import compatibility
import pytest
from compatibility import NEEDS_GPU, TABLE, Recorder, Row, declared_rows, differences, read_table, render

ROWS = [
    Row("Arguments", "momentum", "supported", ("test_a.py::test_x", "test_b.py::test_y")),
    Row("Arguments", "a rate that is no number", "refused", ("test_a.py::test_z",)),
    Row("Layouts", "views of one buffer", "supported", ("test_a.py::test_x",)),
]

PROVEN = """
import pytest

@pytest.mark.feature("Layouts", "views")
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.feature("Dtypes", "halves"))])
def test_views(n): pass

@pytest.mark.feature("Arguments", "graphs", answer="refused")
@pytest.mark.skipif(True, reason="needs a GPU")
def test_graphs(): pass

@pytest.mark.feature("Layouts", "views")
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.skip("little memory"))])
def test_more_views(n): pass

def test_unmarked(): assert False
"""


def test_the_committed_table_is_what_the_markers_say(request):
    if request.config.getoption("--write-compatibility"):
        pytest.skip("this run writes it")
    stale = differences(read_table(TABLE.read_text(encoding="utf-8")), declared_rows())
    assert stale == [], "write it anew: python -m pytest --write-compatibility"


def test_the_table_is_grouped_by_area_and_can_be_read_back():
    text = render(ROWS, "torch 1.0")
    assert "Versions: torch 1.0." in text
    assert text.count("## ") == 2
    assert "| momentum | supported | `test_a.py::test_x`<br>`test_b.py::test_y` |" in text
    assert read_table(text) == ROWS


def with_row(index, **changes):
    return [*ROWS[:index], Row(**{**vars(ROWS[index]), **changes}), *ROWS[index + 1 :]]


STALE = {
    "a feature left out": (ROWS[:2], 1),
    "a feature too many": ([*ROWS, Row("Layouts", "more", "supported", ("test_a.py::test_x",))], 1),
    "another area": (with_row(2, area="Dtypes"), 2),
    "another test": (with_row(0, tests=("test_a.py::test_x",)), 2),
    "another answer": (with_row(1, answer="supported"), 2),
    "another order": ([ROWS[1], ROWS[0], ROWS[2]], 1),
    "only waiting for a GPU": (with_row(0, answer=NEEDS_GPU), 0),
}


@pytest.mark.parametrize("case", STALE)
def test_every_difference_to_the_markers_is_found(case):
    committed, n_differences = STALE[case]
    assert len(differences(committed, ROWS)) == n_differences


def run(pytester, *options, **files):
    """A run of the plugin over test files of its own; returns the recorder and the result."""
    pytester.makepyfile(**files)
    recorder = Recorder(pytester.path, pytester.path / "table.md")
    return recorder, pytester.inline_run("--strict-markers", *options, plugins=[compatibility, recorder])


def test_a_complete_run_writes_what_came_out(pytester):
    recorder, _ = run(pytester, test_a=PROVEN)
    text = recorder.table.read_text(encoding="utf-8")
    assert f"torch {compatibility.importlib.metadata.version('torch')}" in text
    assert read_table(text) == [
        Row("Arguments", "graphs", NEEDS_GPU, ("test_a.py::test_graphs",)),
        Row("Layouts", "views", "supported", ("test_a.py::test_views", "test_a.py::test_more_views")),
        Row("Dtypes", "halves", "supported", ("test_a.py::test_views",)),
    ]


MARKED = 'import pytest\n@pytest.mark.feature("State", "copies")\ndef test_copies():'
INCOMPLETE = {
    "a marked test fails": ([], f"{MARKED} assert False", "test_b.py::test_copies: failed"),
    "a marked test is expected to fail": ([], f"{MARKED} pytest.xfail('some day')", "test_copies: expected to fail"),
    "a framework is missing": (
        [],
        f"{MARKED} pytest.importorskip('no_such')",
        "Skipped: could not import",
    ),
    "too little memory": ([], f"{MARKED} pytest.skip('little memory')", "test_copies: Skipped: little memory"),
    "a whole file is skipped": ([], f"import pytest\npytest.importorskip('no_such')\n{MARKED} pass", "did not run"),
    "a file is not collected": (["test_a.py"], f"{MARKED} pass", "test_b.py::test_copies: did not run"),
    "tests are deselected": (["-k", "not unmarked"], f"{MARKED} pass", "1 tests were deselected"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_a_run_that_proves_less_writes_nothing(pytester, case):
    options, source, text = INCOMPLETE[case]
    recorder, result = run(pytester, *options, test_a=PROVEN, test_b=source)
    assert not recorder.table.exists()
    assert text in recorder.message
    assert result.ret == pytest.ExitCode.TESTS_FAILED


BAD_MARKERS = {
    "a whole module": 'pytestmark = pytest.mark.feature("State", "copies")',
    "an unknown area": '@pytest.mark.feature("Elsewhere", "copies")',
    "an unknown answer": '@pytest.mark.feature("State", "copies", answer="perhaps")',
}


@pytest.mark.parametrize("case", BAD_MARKERS)
def test_a_marker_that_the_table_cannot_show_stops_the_run(pytester, case):
    pytester.makepyfile(f"import pytest\n{BAD_MARKERS[case]}\ndef test_copies(): pass")
    result = pytester.runpytest_inprocess(plugins=[compatibility])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*::test_copies: feature: expected *"])


def test_two_answers_for_one_feature_are_an_error(pytester):
    refused = MARKED.replace('")', '", answer="refused")')
    pytester.makepyfile(test_a=f"{MARKED} pass", test_b=f"{refused} pass")
    with pytest.raises(pytest.UsageError, match=r"'copies' is supported in .*, refused in"):
        declared_rows(pytester.path)
