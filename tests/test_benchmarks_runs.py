"""A run of the benchmark: the gate before any speed, interleaved rounds, ratios by round, one line for bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import report, results
from benchmarks.__main__ import main
from benchmarks.cases import JOBS, Case
from benchmarks.peers import contenders
from benchmarks.peers.contender import Contender, Task
from benchmarks.timing import MAX_ROUNDS, Sample, measure, stride
from benchmarks.workloads import make_inputs
from dsd_kernels import use_backend
from dsd_kernels.ops import reference

ROOT = Path(__file__).parents[1]
QUICK = ["--inputs", "tiny", "--seconds", "0"]


def usual_names(job, inputs="tiny"):
    return [contender.name for contender in contenders(Case(job, inputs), "cpu", full=False)]


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


def test_a_fault_of_ours_is_no_bad_input(monkeypatch):
    def fails(*_):
        raise ValueError("ours")

    monkeypatch.setattr("benchmarks.__main__.measure_all", fails)
    with pytest.raises(ValueError, match="ours"):
        main(QUICK)


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
    samples = [[Sample(3.0), Sample(6.0)], [Sample(2.0), Sample(4.0)], [Sample(1.0), Sample(1.0)]]
    _, rows = results.rows_of(case, entrants, samples, "cpu")
    assert [row["mask_cost"] and row["mask_cost"]["median"] for row in rows] == [0.5, None]


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
        code = main([*QUICK, "--output", str(tmp_path / "out.json")])
    printed = capsys.readouterr()
    assert code == 1
    assert printed.out == ""
    assert "the gate is red" in printed.err
    assert named in printed.err
    assert list(tmp_path.iterdir()) == []


def test_the_gate_is_held_to_what_is_measured(monkeypatch, capsys):
    """Red in bfloat16 alone: float32 may be measured, bfloat16 may not."""

    def damage(params, *_, **__):
        if params[0].dtype == torch.bfloat16:
            params[1].view(torch.int16).flatten()[0] ^= 1

    monkeypatch.setattr(reference, "masked_sgd_", after(reference.masked_sgd_, damage))
    with use_backend("reference"):
        assert main([*QUICK, "--cases", "select"]) == 0
        assert main([*QUICK, "--cases", "select", "--dtype", "float32,bfloat16"]) == 1
    assert "(bfloat16, sparsity 0.5)" in capsys.readouterr().err


@pytest.mark.parametrize("absent", [[], ["rich"]], ids=["rich", "plain"])
def test_a_run_prints_ratios_and_writes_the_json_that_tables_are_made_of(monkeypatch, capsys, tmp_path, absent):
    monkeypatch.setattr("benchmarks.terminal.find_spec", lambda name: name not in absent)
    path = tmp_path / "new" / "out.json"
    assert main(["--inputs", "tiny,cnn", "--seconds", "0", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(path.read_text())

    assert set(written) == set(results.Report.__annotations__)
    assert {"line", "threads", "backend", "versions", "commit", "date"} <= set(written["machine"])
    assert [result["job"] for result in written["results"]] == list(JOBS)
    for result in written["results"]:
        inputs = "cnn" if result["job"] == "train" else "tiny"
        assert set(result) == set(results.Result.__annotations__)
        assert result["inputs"] == inputs
        assert (result["n_tensors"], result["n_weights"]) == ((14, 40_490) if inputs == "cnn" else (161, 161 * 64))
        assert [row["name"] for row in result["rows"]] == usual_names(result["job"], inputs)
        assert result["rows"][0]["ratio"] == {"median": 1, "q1": 1, "q3": 1}
        assert (result["floor"] is None) == (result["job"] == "train")
        for row in [*result["rows"], *([result["floor"]] if result["floor"] else [])]:
            assert set(row) == set(results.Row.__annotations__)
            assert 0 < row["us"]["q1"] <= row["us"]["median"] <= row["us"]["q3"]
            assert row["rounds"] == 7
            assert row["name"] in printed
    assert written["machine"]["line"] in printed

    assert main(["--table", str(path)]) == 0
    table = capsys.readouterr().out
    assert table.rstrip("\n") == report.markdown(written)
    assert table.count("| 161 tiny |") == len(JOBS) - 1


def test_every_dtype_and_sparsity_that_is_asked_for_is_measured(capsys, tmp_path):
    path = tmp_path / "out.json"
    asked = ["--sparsity", "0,.8", "--dtype", "float16,bfloat16", "--full", "--output", str(path)]
    assert main(["--inputs", "tiny", "--cases", "step,select", "--seconds", "0", *asked]) == 0
    found = [(r["job"], r["dtype"], r["sparsity"]) for r in json.loads(path.read_text())["results"]]
    halves = ("bfloat16", "float16")
    assert set(found) == {("step", d, s) for d in halves for s in (0.0, 0.8)} | {("select", d, 0.8) for d in halves}
    assert "not measured: numpy.partition" in capsys.readouterr().out  # numpy has no bfloat16


def test_a_peer_that_refuses_is_named_with_its_reason_and_ours_may_not():
    def refuses(_):
        raise RuntimeError("quantile() input tensor is too large\nmore")

    fine = Contender("ours", lambda _: Task(list))
    admitted, tasks, refusals = results.admit([fine, Contender("peer", refuses)], None)
    assert (admitted, len(tasks)) == ([fine], 1)
    assert refusals == [{"name": "peer", "reason": "quantile() input tensor is too large"}]
    with pytest.raises(RuntimeError, match="too large"):
        results.admit([Contender("ours", refuses)], None)


def test_what_does_not_fit_is_left_out_and_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("benchmarks.__main__.fits", lambda case, _: case.job == "select")
    path = tmp_path / "out.json"
    assert main([*QUICK, "--cases", "step,select", "--output", str(path)]) == 0
    written = json.loads(path.read_text())
    assert [result["job"] for result in written["results"]] == ["select"]
    assert [one["name"] for one in written["left_out"]] == [str(Case("step", "tiny"))]
    assert "left out: it does not fit into this machine's memory" in capsys.readouterr().out
    assert "it does not fit" in report.markdown(written)


MODELS = {
    "network": "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Tanh())\n",
    "params": "import torch\ndef make():\n    return [torch.zeros(3, 5, requires_grad=True), torch.zeros(9)]\n",
    "nothing": "def make():\n    return 3\n",
    "frozen": "import torch\ndef make():\n    return [torch.zeros(3, 5)]\n",
    "broken": "def make():\n    return 1 / 0\n",
}


@pytest.fixture
def models(monkeypatch, tmp_path):
    for name, text in MODELS.items():
        (tmp_path / f"my_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(("name", "n_weights"), [("network", 18), ("params", 15)])
def test_ones_own_model_is_measured_over_its_parameters(models, tmp_path, name, n_weights):
    path = tmp_path / "out.json"
    model = f"my_{name}:make"
    assert main(["--model", model, "--seconds", "0", "--output", str(path)]) == 0
    found = [(r["job"], r["inputs"], r["n_weights"]) for r in json.loads(path.read_text())["results"]]
    assert found == [("step", model, n_weights), ("select", model, 15), ("prune", model, 15)]


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("torch", "--model: expected module:callable, got 'torch'"),
        ("no_such_module:make", "'no_such_module:make' failed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("my_network:fake", "failed: AttributeError"),
        ("my_broken:make", "failed: ZeroDivisionError: division by zero"),
        ("my_nothing:make", "expected 'my_nothing:make' to return a model or its parameters, got int"),
        ("my_frozen:make", "'my_frozen:make' trains no parameter of two or more dimensions"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(models, capsys, model, error):
    assert_one_line(capsys, ["--model", model], error)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--cases", "step,fly"], "expected some of step,select,prune,train, got 'fly'"),
        (["--inputs", ""], "expected some of 1e3,"),
        (["--inputs", "cnn", "--cases", "step"], "nothing to measure: networks are for --cases train"),
        (["--sparsity", "1"], "--sparsity: expected numbers in [0, 1), got '1'"),
        (["--sparsity", "nan"], "--sparsity: expected numbers in [0, 1), got 'nan'"),
        (["--sparsity", "half"], "--sparsity: expected numbers in [0, 1), got 'half'"),
        (["--dtype", "int8"], "expected some of float32,bfloat16,float16,float64, got 'int8'"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--seconds", "-1"], "--seconds: expected a number of seconds, 0 or more, got -1.0"),
        (["--output", "/"], "--output: expected a file, / is a folder"),
        (["--output", "/dev/null/x.json"], "/dev/null"),
        (["--plots", "/dev/null/x"], "/dev/null"),
        (["--table", "no-such-file.json"], "no-such-file.json"),
        (["--table", str(ROOT / "README.md")], "README.md: expected JSON written by --output"),
        (["--compare", "no-such-file.json", "b.json"], "no-such-file.json"),
        (["--compare", "a.json"], "--compare: expected 2 arguments"),
    ],
)
def test_bad_options_are_one_line_before_anything_is_measured(capsys, arguments, error):
    assert_one_line(capsys, arguments, error)


def assert_one_line(capsys, arguments, error):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert error in printed.err


def test_an_interrupted_run_says_so_in_one_line(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.__main__.measure_all", interrupt)
    assert main(QUICK) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; nothing was written"


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


def test_gpu_script_calls_the_benchmark_with_options_that_it_has():
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    from benchmarks.options import make_parser

    calls = [line.partition("-m benchmarks ")[2].split() for line in script.splitlines() if "-m benchmarks " in line]
    assert len(calls) == 2
    for arguments in calls:
        make_parser("gpu.sh").parse_args(arguments)


def test_it_needs_no_package_but_torch_and_numpy():
    """A machine with a GPU often has nothing else, and no network."""
    absent = ("click", "rich", "hypothesis", "sklearn", "matplotlib", "pytest", "triton", "torchao")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); "
        "from benchmarks.__main__ import main; import benchmarks.terminal as t; t.find_spec = lambda _: None; "
        "sys.exit(main(['--inputs', 'tiny,cnn', '--seconds', '0', '--full']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "dsd_kernels, masked" in result.stdout


@pytest.mark.parametrize("load", [0.0, 100.0 * os.cpu_count()])
def test_a_busy_machine_is_named(monkeypatch, capsys, load):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert main([*QUICK, "--cases", "select"]) == 0
    printed = capsys.readouterr()
    assert f"load {load}" in printed.out
    assert printed.err.startswith("this machine is busy") == (load > 0)
