"""docs/compatibility.md, made by the tests: one that proves something about a feature says so with a marker.

    @pytest.mark.feature("Layouts", "expanded gradients")                            it is supported
    @pytest.mark.feature("Layouts", "parameters that overlap", answer="refused")     it raises a clear error

The markers are read from the source: the table can be checked when few tests are collected, and without the frameworks
that some of them need. `python -m pytest --write-compatibility` runs the tests and writes what came out.
"""

import ast
import importlib.metadata
import platform
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TABLE = TESTS.parent / "docs" / "compatibility.md"
AREAS = (
    "Arguments",
    "Layouts",
    "Dtypes",
    "Mixed precision",
    "State",
    "torch.compile and CUDA graphs",
    "Autograd",
    "Optimizer in backward",
    "Frameworks",
    "Ranks and shards",
)
ANSWERS = ("supported", "refused")
NEEDS_GPU = "not yet run on a GPU"
EXPECTED_TO_FAIL = "expected to fail"
PACKAGES = ("torch", "triton", "lightning", "transformers", "accelerate", "safetensors")
HEADER = """# Compatibility

What MaskedSGD does with what a training program may ask of it. Each row is proven by the tests it names, in `tests/`.

- supported: it works as in `torch.optim.SGD`, with masks too; without masks, to the bit in float32 and float64.
- refused: a clear error instead of silently wrong numbers; a call that raises it has changed nothing.
- not yet run on a GPU: its tests need a GPU, and there was none when this file was written.

Written by `python -m pytest --write-compatibility`, not by hand; a test holds it to the markers in the tests.
Versions: {versions}.
"""


@dataclass(frozen=True)
class Row:
    area: str
    feature: str
    answer: str
    tests: tuple[str, ...]  # "test_file.py::test_name"


def make_row(test: str, area: str, feature: str, answer: str = "supported") -> Row:
    """What one marker says; its arguments are those of `pytest.mark.feature`."""
    if area not in AREAS or answer not in ANSWERS or "|" in feature:
        raise pytest.UsageError(
            f"{test}: feature: expected one of the areas {AREAS}, a text without |, and an answer of {ANSWERS}; "
            f"got {area!r}, {feature!r}, {answer!r}"
        )
    return Row(area, feature, answer, (test,))


def declared_rows(folder: Path = TESTS) -> list[Row]:
    """The table by the markers in the source, in the order of the areas, then of the tests."""
    rows: dict[tuple[str, str], Row] = {}
    for path in sorted(folder.glob("test_*.py")):
        for row in _rows_of(path):
            known = rows.setdefault((row.area, row.feature), row)
            if known.answer != row.answer:
                raise pytest.UsageError(
                    f"{row.feature!r} is {known.answer} in {known.tests}, {row.answer} in {row.tests}"
                )
            rows[row.area, row.feature] = replace(known, tests=tuple(dict.fromkeys(known.tests + row.tests)))
    return sorted(rows.values(), key=lambda row: AREAS.index(row.area))


def _rows_of(path: Path) -> list[Row]:
    functions = [f for f in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(f, ast.FunctionDef)]
    return [
        make_row(f"{path.name}::{function.name}", *args, **keywords)
        for function in functions
        for decorator in function.decorator_list
        for args, keywords in _markers(decorator)
    ]


def _markers(decorator: ast.expr) -> list[tuple[list, dict]]:
    """Arguments of every feature marker in a decorator: on its own, or of one case of a parametrization."""
    calls = [
        node
        for node in ast.walk(decorator)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.feature"
    ]
    return [
        ([ast.literal_eval(arg) for arg in call.args], {k.arg: ast.literal_eval(k.value) for k in call.keywords})
        for call in calls
    ]


def render(rows: list[Row], versions: str) -> str:
    lines = [HEADER.format(versions=versions)]
    for area in dict.fromkeys(row.area for row in rows):
        lines += [f"## {area}\n", "| feature | answer | proven by |", "|---|---|---|"]
        for row in rows:
            if row.area == area:
                tests = "<br>".join(f"`{test}`" for test in row.tests)
                lines.append(f"| {row.feature} | {row.answer} | {tests} |")
        lines.append("")
    return "\n".join(lines)


def read_table(text: str) -> list[Row]:
    """The inverse of `render`."""
    rows, area = [], ""
    for line in text.splitlines():
        if line.startswith("## "):
            area = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| feature |"):
            feature, answer, tests = line.strip("| ").split(" | ")
            rows.append(Row(area, feature, answer, tuple(re.findall(r"`(.+?)`", tests))))
    return rows


def differences(committed: list[Row], declared: list[Row]) -> list[str]:
    """Rows that only one of both has; a supported feature may wait for a GPU."""
    waiting = {(row.area, row.feature, row.tests) for row in committed if row.answer == NEEDS_GPU}
    expected = [
        replace(row, answer=NEEDS_GPU) if (row.area, row.feature, row.tests) in waiting else row for row in declared
    ]
    missing = [f"not in the file: {row}" for row in expected if row not in committed]
    surplus = [f"not in the tests: {row}" for row in committed if row not in expected]
    order = [] if missing or surplus or committed == expected else ["the order of the rows differs"]
    return missing + surplus + order


def versions() -> str:
    import torch

    import dsd_kernels

    found = [f"Python {platform.python_version()}", f"dsd-kernels {dsd_kernels.__version__}"]
    found += [f"{d.name} {d.version}" for name in PACKAGES for d in importlib.metadata.distributions(name=name)]
    backends = sorted({row.backend for row in dsd_kernels.backends() if row.available})
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return ", ".join(found) + f"; backends {', '.join(backends)}; {device}"


class Recorder:
    """The outcomes of one run, from which the table is written."""

    def __init__(self, folder: Path = TESTS, table: Path = TABLE):
        self.folder, self.table, self.message = folder, table, ""
        self.n_deselected = 0
        self.outcomes: dict[str, set[str]] = defaultdict(set)

    def pytest_deselected(self, items):
        self.n_deselected += len(items)

    def pytest_runtest_logreport(self, report):
        file, _, name = report.nodeid.partition("::")
        test = f"{Path(file).name}::{name.partition('[')[0]}"
        if report.skipped:
            self.outcomes[test].add(report.longrepr[2] if isinstance(report.longrepr, tuple) else EXPECTED_TO_FAIL)
        elif report.failed or report.when == "call":
            self.outcomes[test].add(report.outcome)

    def pytest_sessionfinish(self, session):
        rows = declared_rows(self.folder)
        problems = self.problems(rows)
        if problems:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            self.message = "\n  ".join([f"{self.table.name} not written:", *problems])
            return
        self.table.write_text(render([self.answered(row) for row in rows], versions()), encoding="utf-8")
        self.message = f"{len(rows)} features written to {self.table.name}"

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line(self.message)

    def problems(self, rows: list[Row]) -> list[str]:
        """Why this run proves less than the table would say."""
        found = [f"{self.n_deselected} tests were deselected"] if self.n_deselected else []
        for test in dict.fromkeys(test for row in rows for test in row.tests):
            found += [f"{test}: {text}" for text in _shortcomings(self.outcomes.get(test, {"did not run"}))]
        return found

    def answered(self, row: Row) -> Row:
        ran = any("passed" in self.outcomes[test] for test in row.tests)
        return row if ran else replace(row, answer=NEEDS_GPU)


def _shortcomings(outcomes: set[str]) -> list[str]:
    """Cases may be skipped where another one passed, or for want of a GPU; never for want of a framework."""
    bad = outcomes & {"failed", EXPECTED_TO_FAIL}
    if "passed" not in outcomes:
        bad |= {outcome for outcome in outcomes if not re.search("GPU|CUDA", outcome)}
    return sorted(bad)


def pytest_addoption(parser):
    parser.addoption("--write-compatibility", action="store_true", help="write docs/compatibility.md from this run")


def pytest_configure(config):
    config.addinivalue_line(
        "markers", 'feature(area, feature, answer="supported"): what the test proves in docs/compatibility.md'
    )
    if config.getoption("--write-compatibility") and not hasattr(config, "workerinput"):  # xdist's workers see a part
        config.pluginmanager.register(Recorder())


def pytest_collection_modifyitems(items):
    """A marker that cannot be read from the source (computed, or on a whole module) would be missing in the table."""
    files = {item.path for item in items if item.get_closest_marker("feature")}
    declared = {(row.area, row.feature, test) for f in files for row in _rows_of(f) for test in row.tests}
    for item in items:
        for marker in item.iter_markers("feature"):
            row = make_row(f"{item.path.name}::{item.originalname}", *marker.args, **marker.kwargs)
            if (row.area, row.feature, row.tests[0]) not in declared:
                raise pytest.UsageError(f"{row.tests[0]}: feature: expected literal strings in a decorator of the test")
