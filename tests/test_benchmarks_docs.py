"""Tables, pictures and comparisons come from JSON; the documents show what is committed, and nothing else."""

import sys

import pytest

from benchmarks import compare, docs, report, results
from benchmarks.__main__ import main
from benchmarks.timing import Sample

MACHINE = {
    "line": "a machine",
    "device": "cpu",
    "threads": 2,
    "omp_wait_policy": None,
    "load": 0.0,
    "backend": "compiled",
    "versions": {"torch": "2"},
    "commit": "abc-dirty",
    "date": "2026-01-01",
}


def row(name, seconds, spread=0.0, unmasked=None):
    """Times around a median; ours take a second."""
    ours = [Sample(1.0)] * 5
    own = [Sample(seconds * (1 + spread * i)) for i in (-2, -1, 0, 1, 2)]
    made = results.make_row(name, 20, own, ours, n_weights=1000)
    if unmasked is not None:
        made["mask_cost"] = {"median": seconds / unmasked - 1, "q1": 0.0, "q3": seconds / unmasked}
    return made


def result(job="select", inputs="1e6", dtype="float32", sparsity=0.5, rows=()):
    shown = list(rows) or [row("ours", 1.0), row("peer", 2.0)]
    floor = None if job == "train" else row("the floor", 0.5)
    size = {"n_tensors": 1, "n_weights": 1000, "dtype": dtype, "sparsity": sparsity, "values": "normal"}
    return {"job": job, "inputs": inputs, **size, "floor": floor, "rows": shown, "refusals": []}


def written(path, *found, machine="a machine"):
    made = {"schema": results.SCHEMA, "machine": MACHINE | {"line": machine}, "results": list(found), "left_out": []}
    results.save(path, made)
    return made


@pytest.mark.parametrize("path", [docs.README, docs.PAGE, docs.SHARDS_PAGE, docs.GPU_PAGE], ids=lambda path: path.name)
def test_documents_show_what_the_committed_json_says_and_nothing_else(path):
    text = path.read_text()
    assert docs.MARKED.search(text)
    assert docs.with_tables(text) == text, "run: python -m benchmarks --update-docs"


def test_the_documents_pictures_were_drawn_from_the_committed_json():
    shown = {line.split("](")[1].rstrip(")") for line in docs.PAGE.read_text().splitlines() if line.startswith("![")}
    drawn = sorted(docs.PICTURES.glob("*.png"))
    assert shown == {f"benchmarks/{path.name}" for path in drawn} != set()
    for path in drawn:
        assert docs.digest().encode() in path.read_bytes(), "run: python -m benchmarks --update-docs"


def test_the_page_names_every_picture_and_every_option():
    from benchmarks.options import make_parser

    text = docs.PAGE.read_text()
    options = {option for action in make_parser("x")._actions for option in action.option_strings if "--" in option}
    assert {option for option in options - {"--help"} if f"`{option}" not in text} == set()


def test_tables_replace_what_stands_between_their_markers(tmp_path):
    written(tmp_path / "cpu.json", result())
    text = (
        "a\n<!-- benchmark:cpu -->\nstale\n<!-- /benchmark -->\nb\n<!-- benchmark:gpu -->\nstale\n<!-- /benchmark -->\n"
        "c\n<!-- benchmark:cpu:summary -->\nstale\n<!-- /benchmark -->\n"
    )
    updated = docs.with_tables(text, tmp_path)

    assert "stale" not in updated
    assert updated.count("| peer | 20 | 2.00x |") == 2
    assert "a machine; cpu, compiled backend, 2 threads" in updated
    assert "commit abc-dirty" in updated
    assert "b\n<!-- benchmark:gpu -->\n<!-- /benchmark -->\nc\n" in updated
    assert docs.with_tables(updated, tmp_path) == updated


def test_a_table_has_a_column_for_every_input_and_a_row_for_every_contender():
    few = result("step", "1e6", rows=[row("ours", 1.0, unmasked=0.8), row("peer", 2.0)])
    many = result("step", "resnet50", rows=[row("ours", 1.0, unmasked=0.5), row("other", 12.0), row("peer", 300.0)])
    lines = report.table([few, many]).splitlines()
    assert lines[2:] == [
        "|  | bytes a weight | 1e6 | ResNet-50 |",
        "| --- | ---: | ---: | ---: |",
        "| ours, µs | 20 | 1,000,000 | 1,000,000 |",
        "| the memory's own time / ours | 20 | 50% | 50% |",
        "| what the mask adds to our time |  | +25% | +100% |",
        "| peer | 20 | 2.00x | 300x |",
        "| other |  |  | 12.0x |",
    ]


def test_a_table_without_bytes_has_no_column_for_them():
    rows = [row("ours", 1.0) | {"bytes_per_weight": None}]
    assert report.table([result("train", "cnn", rows=rows)]).splitlines()[2] == "|  | CNN |"


def test_what_is_unusual_has_its_own_table(tmp_path):
    made = written(tmp_path / "a.json", result("step"), result("step", dtype="bfloat16"), result("step", sparsity=0.0))
    text = report.markdown(made)
    assert text.count("**masked SGD step") == 2
    assert "|  | bytes a weight | 1e6, bfloat16 | 1e6, sparsity 0 |" in text
    assert "bfloat16" not in report.summary(made)


def test_the_summary_shows_whom_all_inputs_have_in_common(tmp_path):
    both = [row("ours", 1.0), row("peer", 2.0)]
    made = written(tmp_path / "a.json", result(rows=both), result(inputs="1e7", rows=[*both, row("rare", 3.0)]))
    assert "| peer |" in report.summary(made)
    assert "rare" not in report.summary(made)
    assert "| rare |" in report.markdown(made)


def test_what_was_not_measured_stands_below_the_tables(tmp_path):
    refused = result() | {"refusals": [{"name": "peer", "reason": "too large"}]}
    made = written(tmp_path / "a.json", refused, refused)
    assert "- peer: too large\n\nMeasured on" in report.markdown(made)


@pytest.mark.parametrize(
    ("before", "after", "spread", "verdict"),
    [(1.0, 2.0, 0.0, "slower"), (2.0, 1.0, 0.0, "faster"), (1.0, 1.05, 0.1, ""), (1.0, 1.05, 0.0, "slower")],
)
def test_a_change_counts_beyond_the_quartiles_of_both_runs(tmp_path, before, after, spread, verdict):
    runs = [
        written(tmp_path / "x.json", result(rows=[row("peer", seconds, spread)]) | {"floor": None})
        for seconds in (before, after)
    ]
    (change,) = compare.changes(*runs)
    assert change.verdict == verdict
    assert change.ratio["median"] == pytest.approx(after / before)
    assert change.ratio["q1"] <= change.ratio["median"] <= change.ratio["q3"]


def test_compare_prints_ours_and_what_changed(tmp_path, capsys):
    rows = [row("dsd_kernels, masked", 1.0), row("same", 3.0), row("worse", 4.0)]
    written(tmp_path / "a.json", result("step", rows=rows), result("prune"))
    rows = [row("dsd_kernels, masked", 1.0), row("same", 3.0), row("worse", 6.0)]
    written(tmp_path / "b.json", result("step", rows=rows), machine="another machine")

    assert main(["--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0

    printed = capsys.readouterr().out
    assert "A: a machine" in printed
    assert "B: another machine" in printed
    assert "different machines" in printed
    assert "dsd_kernels, masked" in printed
    assert "same" not in printed
    assert "1.50x" in printed
    assert "4 timings compared: 1 slower, 0 faster" in printed


def test_runs_without_a_case_in_common_are_one_line(tmp_path, capsys):
    written(tmp_path / "a.json", result("step"))
    written(tmp_path / "b.json", result("prune"))
    with pytest.raises(SystemExit):
        main(["--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert capsys.readouterr().err == "error: --compare: the two have no case in common\n"


@pytest.mark.parametrize("content", ['{"schema": 1}', "[]", "{"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json: expected"):
        results.load(tmp_path / "a.json")


def steps(inputs):
    rows = [row("dsd_kernels, masked", 1.0, unmasked=0.9), row("torch fused + bool mask on p", 3.0, unmasked=1.1)]
    return result("step", inputs, rows=rows)


def test_pictures_are_drawn_from_whatever_there_is(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    written(tmp_path / "a.json", steps("1e6"), steps("1e7"), steps("resnet50"), result("prune"))
    assert main(["--table", str(tmp_path / "a.json"), "--plots", str(tmp_path / "plots")]) == 0
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["mask_cost.png", "memory_share.png", "time_over_size.png"]
    assert capsys.readouterr().out.count("drawn: ") == 3

    written(tmp_path / "b.json", result("train", "lonely"))
    assert main(["--table", str(tmp_path / "b.json"), "--plots", str(tmp_path / "none")]) == 0
    assert list((tmp_path / "none").iterdir()) == []


def test_without_matplotlib_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        main(["--inputs", "tiny", "--plots", str(tmp_path)])
    assert "--plots: needs matplotlib, which is not installed" in capsys.readouterr().err
