"""The benchmark measures what it says: real shapes, honest peers, the gate before any speed, figures from JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import bits_equal

from benchmarks import gate, report, results
from benchmarks.__main__ import README, main
from benchmarks.cases import INPUTS, OPS, make_inputs, resnet50_shapes
from benchmarks.peers import CONTENDERS, Task, contenders, torch_sgd
from benchmarks.timing import MAX_ROUNDS, Sample, measure
from dsd_kernels import use_backend
from dsd_kernels.ops import reference

ROOT = Path(__file__).parents[1]
SHAPES = [(8, 8), (5, 13), (64,), (3, 2, 7, 7)]
# literal, from counting what each kernel reads and writes
BYTES_PER_WEIGHT = {
    "dsd_kernels, masked": 20.125,
    "dsd_kernels, no mask": 20,
    "torch fused, no mask": 20,
    "torch foreach, no mask": 56,
    "torch for-loop, no mask": 56,
    "torch fused + bool mask on p": 29,
    "torch fused + float mask on p": 32,
    "torch fused + float masks on p, m": 44,
    "torch foreach + float masks on p, m": 80,
}
FLOORS = [("step", 20.125), ("select", 4), ("prune", 20.125)]


def names(op):
    return [contender.name for contender in contenders(op, "cpu")]


def bound(op, name):
    inputs = make_inputs(SHAPES, "cpu")
    return inputs, next(c for c in CONTENDERS[op] if c.name == name).bind(inputs)


def test_resnet50_has_its_161_parameters():
    shapes = resnet50_shapes()
    assert len(shapes) == 161
    assert sum(torch.Size(shape).numel() for shape in shapes) == 25_557_032
    assert sum(len(shape) >= 2 for shape in shapes) == 54
    assert shapes[:5] == [(64, 3, 7, 7), (64,), (64,), (64, 64, 1, 1), (64,)]
    assert shapes[12] == (256, 64, 1, 1)  # the first shortcut
    assert shapes[-5:] == [(2048, 512, 1, 1), (2048,), (2048,), (1000, 2048), (1000,)]


def test_single_tensors_have_the_size_of_their_name():
    for name in ("1e6", "1e7", "1e8"):
        assert sum(torch.Size(shape).numel() for shape in INPUTS[name]) == float(name)


def test_bytes_per_weight_are_those_of_the_literal_table():
    assert {c.name: c.bytes_per_weight for c in CONTENDERS["step"]} == BYTES_PER_WEIGHT
    assert [(name, op.floor_bytes_per_weight) for name, op in OPS.items()] == FLOORS


@pytest.mark.parametrize("name", names("step"))
def test_every_step_does_the_same_job(name):
    expected = make_inputs(SHAPES, "cpu")
    torch_sgd(foreach=False)(expected).run()
    if "no mask" not in name:
        with torch.no_grad():
            for p, mask in zip(expected.targets, expected.masks, strict=True):
                p.masked_fill_(~mask, 0.0)

    inputs, task = bound("step", name)
    task.run()

    torch.testing.assert_close(inputs.params, expected.params, rtol=1e-5, atol=1e-7)
    for p, buffer, mask in zip(inputs.targets, inputs.target_buffers, inputs.masks, strict=True):
        assert "no mask" in name or not p[~mask].any()
        assert bool(buffer[~mask].any()) == ("p, m" not in name and name != "dsd_kernels, masked")


@pytest.mark.parametrize("name", names("select"))
def test_every_selection_gives_the_same_thresholds(name):
    inputs, task = bound("select", name)
    expected = [p.abs().flatten().sort().values[k - 1].item() for p, k in zip(inputs.targets, inputs.k, strict=True)]
    assert [float(value) for value in task.run()] == expected


@pytest.mark.parametrize("name", names("prune"))
def test_every_prune_event_zeroes_half_of_the_weights_each_time(name):
    inputs, task = bound("prune", name)
    before = [p.detach().clone() for p in inputs.targets]
    for _ in range(2):
        task.prepare()
        assert all(map(bits_equal, (p.detach() for p in inputs.targets), before))
        task.run()
        for p, buffer, k in zip(inputs.targets, inputs.target_buffers, inputs.k, strict=True):
            assert ((p == 0).sum(), (buffer == 0).sum()) == (k, k)


def test_inputs_are_the_same_for_the_same_shapes():
    first, second = make_inputs(SHAPES, "cpu"), make_inputs(SHAPES, "cpu")
    first.read()
    for a, b in zip(first.params + first.momentum_buffers, second.params + second.momentum_buffers, strict=True):
        assert bits_equal(a.detach(), b.detach())
    assert all(map(torch.equal, first.masks, second.masks))


def test_rounds_are_interleaved_after_a_warm_up():
    calls = []

    def task(letter):
        return Task(lambda: calls.append(letter), lambda: calls.append(f"prepare {letter}"))

    def timer(run):
        run()
        return Sample(float(len(calls)))

    samples = measure([task("A"), task("B"), task("C")], timer, seconds=0, min_rounds=4)

    assert calls == ["prepare A", "A", "prepare B", "B", "prepare C", "C"] * (2 + 4)
    assert [[sample.elapsed for sample in own][:2] for own in samples] == [[14, 20], [16, 22], [18, 24]]


def test_rounds_are_bounded():
    samples = measure([Task(list)], lambda run: Sample(1.0), seconds=1e9, min_rounds=1)
    assert len(samples[0]) == MAX_ROUNDS


def test_ratios_are_taken_round_by_round():
    """A machine that slows down for everyone changes no ratio."""
    ours = [Sample(seconds) for seconds in (1.0, 2.0, 4.0)]
    theirs = [Sample(3 * sample.elapsed) for sample in ours]
    row = results.make_row("theirs", 20, theirs, ours, n_weights=3_000_000)
    assert row["ratio"] == {"median": 3.0, "q1": 3.0, "q3": 3.0}
    assert row["us"] == {"median": 6e6, "q1": 4.5e6, "q3": 9e6}
    assert row["gb_per_s"] == pytest.approx(0.01)


def test_the_gate_is_green():
    assert gate.problems("cpu") == []


def off_by_one_bit(params, *_, **__):
    params[1].view(torch.int32).flatten()[0] ^= 1


def leaves_negative_zero(params, *_, **__):
    params[1][params[1] == 0] = -0.0


def next_threshold(_, k):
    return torch.full(k.shape, 0.125)


def prunes_nothing(params, buffers, masks, _):
    for mask in masks:
        mask.fill_(255)


def after(original, damage):
    def broken(*args, **kwargs):
        original(*args, **kwargs)
        damage(*args, **kwargs)

    return broken


BROKEN = {
    "step off by one bit": ("masked_sgd_", after(reference.masked_sgd_, off_by_one_bit), "step"),
    "step leaves -0": ("masked_sgd_", after(reference.masked_sgd_, leaves_negative_zero), "masked step"),
    "wrong threshold": ("kth_magnitude", next_threshold, "kth_magnitude of shape"),
    "prune does nothing": ("prune_", prunes_nothing, "prune: "),
    "prune leaves -0": ("prune_", after(reference.prune_, leaves_negative_zero), "prune: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_no_speed_from_a_broken_op(monkeypatch, capsys, tmp_path, case):
    op, broken, named = BROKEN[case]
    monkeypatch.setattr(reference, op, broken)
    with use_backend("reference"):
        code = main(["--quick", "--inputs", "tiny", "--seconds", "0", "--output", str(tmp_path / "out.json")])
    printed = capsys.readouterr()
    assert code == 1
    assert printed.out == ""
    assert "the gate is red" in printed.err
    assert named in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_run_prints_ratios_and_writes_the_json_that_tables_are_made_of(capsys, tmp_path):
    path = tmp_path / "new" / "out.json"
    assert main(["--quick", "--inputs", "tiny", "--seconds", "0", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(path.read_text())

    assert set(written) == set(results.Report.__annotations__)
    assert {"line", "threads", "backend", "versions", "commit", "date"} <= set(written["machine"])
    assert [(r["op"], r["inputs"]) for r in written["results"]] == [(op, "tiny") for op in OPS]
    for result in written["results"]:
        assert set(result) == set(results.Result.__annotations__)
        assert (result["n_tensors"], result["n_weights"], result["rounds"]) == (161, 161 * 64, 5)
        assert [row["name"] for row in result["rows"]] == names(result["op"])
        assert result["rows"][0]["ratio"] == {"median": 1, "q1": 1, "q3": 1}
        for row in [*result["rows"], result["floor"]]:
            assert set(row) == set(results.Row.__annotations__)
            assert 0 < row["us"]["q1"] <= row["us"]["median"] <= row["us"]["q3"]
            assert row["name"] in printed
    assert written["machine"]["line"] in printed

    assert main(["--table", str(path)]) == 0
    table = capsys.readouterr().out
    assert table.rstrip("\n") == report.markdown(written)
    assert table.count("| 161 tiny |") == len(OPS)


def test_readme_shows_what_the_committed_json_says_and_nothing_else():
    text = README.read_text()
    if not report.MARKED.search(text):
        pytest.skip("README.md has no benchmark markers yet")
    assert report.with_tables(text) == text, "run: python -m benchmarks --update-readme"


def test_tables_replace_what_stands_between_their_markers(tmp_path):
    row = results.make_row("peer", None, [Sample(2.0)] * 3, [Sample(1.0)] * 3, n_weights=64)
    result = {"op": "select", "inputs": "1e6", "n_tensors": 1, "n_weights": 64, "dtype": "float32", "sparsity": 0.5}
    machine = {
        "line": "a machine",
        "device": "cpu",
        "threads": 2,
        "omp_wait_policy": None,
        "load": 0.0,
        "backend": "compiled",
    }
    machine |= {"versions": {"torch": "2"}, "commit": "abc-dirty", "date": "2026-01-01"}
    results.save(tmp_path / "cpu.json", machine, [result | {"rounds": 3, "floor": row, "rows": [row, row]}])

    text = (
        "a\n<!-- benchmark:cpu -->\nstale\n<!-- /benchmark -->\nb\n<!-- benchmark:gpu -->\nstale\n<!-- /benchmark -->\n"
    )
    updated = report.with_tables(text, tmp_path)

    assert "stale" not in updated
    assert "| peer |  | 2.00x |" in updated
    assert "a machine; cpu, compiled backend, 2 threads" in updated
    assert "commit abc-dirty" in updated
    assert updated.endswith("b\n<!-- benchmark:gpu -->\n<!-- /benchmark -->\n")
    assert report.with_tables(updated, tmp_path) == updated


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--cases", "step,fly"], "expected some of step,select,prune, got 'fly'"),
        (["--inputs", ""], "expected some of 1e6,"),
        (["--seconds", "-1"], "--seconds: expected a number of seconds, 0 or more, got -1.0"),
        (["--output", "/"], "--output: expected a file, / is a folder"),
        (["--output", "/dev/null/x.json"], "/dev/null"),
        (["--table", "no-such-file.json"], "no-such-file.json"),
        (["--table", str(README)], "README.md: expected JSON written by --output"),
    ],
)
def test_bad_options_are_one_error_before_anything_is_measured(capsys, arguments, error):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert error in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(capsys):
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "--device: torch.cuda is not available here" in capsys.readouterr().err
    script = subprocess.run(
        ["sh", str(ROOT / "benchmarks" / "gpu.sh")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (script.returncode, script.stdout, script.stderr.count("\n")) == (1, "", 1)
    assert "needs a GPU" in script.stderr


def test_it_needs_no_package_but_torch_and_numpy():
    """A machine with a GPU often has nothing else, and no network."""
    absent = ("click", "rich", "hypothesis", "sklearn", "matplotlib", "pytest", "triton")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import benchmarks.__main__"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("load", [0.0, 100.0 * os.cpu_count()])
def test_a_busy_machine_is_named(monkeypatch, capsys, load):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert main(["--quick", "--inputs", "tiny", "--cases", "select", "--seconds", "0"]) == 0
    printed = capsys.readouterr()
    assert f"load {load}" in printed.out
    assert printed.err.startswith("this machine is busy") == (load > 0)
