"""A run of the benchmark: the gate before any speed, interleaved rounds, ratios by round, one line for bad input."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import report, results, sanitize
from benchmarks.__main__ import main
from benchmarks.cases import JOBS, OVER_NETWORKS, Case
from benchmarks.peers import contenders
from benchmarks.peers.contender import Contender, Task
from dsd_kernels import use_backend
from dsd_kernels.ops import reference

ROOT = Path(__file__).parents[1]
QUICK = ["--inputs", "tiny", "--seconds", "0"]


def usual_names(job, inputs="tiny"):
    return [contender.name for contender in contenders(Case(job, inputs), "cpu", full=False)]


def test_a_fault_of_ours_is_no_bad_input(monkeypatch):
    def fails(*_):
        raise ValueError("ours")

    monkeypatch.setattr("benchmarks.__main__.measure_all", fails)
    with pytest.raises(ValueError, match="ours"):
        main(QUICK)


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
        inputs = "cnn" if result["job"] in OVER_NETWORKS else "tiny"
        assert set(result) == set(results.Result.__annotations__)
        assert result["inputs"] == inputs
        assert (result["n_tensors"], result["n_weights"]) == ((14, 40_490) if inputs == "cnn" else (161, 161 * 64))
        assert [row["name"] for row in result["rows"]] == usual_names(result["job"], inputs)
        assert result["rows"][0]["ratio"] == {"median": 1, "q1": 1, "q3": 1}
        assert (result["floor"] is None) == (result["job"] in OVER_NETWORKS)
        for row in [*result["rows"], *([result["floor"]] if result["floor"] else [])]:
            assert set(row) == set(results.Row.__annotations__)
            assert 0 < row["us"]["q1"] <= row["us"]["median"] <= row["us"]["q3"]
            assert row["rounds"] == 7 or row["name"] == "an epoch of training"  # which sits out where it is slow
            assert row["name"] in printed
    assert written["machine"]["line"] in printed

    assert main(["--table", str(path)]) == 0
    table = capsys.readouterr().out
    assert table.rstrip("\n") == report.markdown(written)
    assert table.count("| 161 tiny |") == len(JOBS) - len(OVER_NETWORKS)


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


def test_an_interrupted_run_says_so_in_one_line(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.__main__.measure_all", interrupt)
    assert main(QUICK) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; nothing was written"


def test_a_run_that_is_cut_leaves_the_cases_before(monkeypatch, capsys, tmp_path):
    run_case = results.run_case

    def cut(case, *arguments, **options):
        if case.job == "step":
            return run_case(case, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.results.run_case", cut)
    path = tmp_path / "out.json"
    assert main([*QUICK, "--cases", "step,select", "--output", str(path)]) == 130
    assert [result["job"] for result in results.load(path)["results"]] == ["step"]
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted; {path} has the cases before"


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


STAND_IN = """#!/bin/sh
called="$DSD_BUILD $(basename "$0") $*"
printf '%s\\n' "$called" >> calls
[ -z "$FAILS" ] || case $called in *"$FAILS"*) exit 3 ;; esac
"""


@pytest.fixture
def gpu_script(tmp_path):
    """Run gpu.sh in a folder of its own with stand-ins for all that it calls: what fails, then status and calls."""
    for folder in ("benchmarks", "tests", "csrc/cuda", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "benchmarks" / "gpu.sh").write_text((ROOT / "benchmarks" / "gpu.sh").read_text())
    (tmp_path / "tests" / "test_one.py").write_text("def test(backend, device): ...")
    for name in ("python", "g++", "nvcc", "compute-sanitizer"):
        program = tmp_path / "bin" / name
        program.write_text(STAND_IN)
        program.chmod(0o755)

    def run(fails):
        result = subprocess.run(
            ["sh", "benchmarks/gpu.sh"],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": "python", "FAILS": fails},
            capture_output=True,
            text=True,
            check=False,
        )
        return result, (tmp_path / "calls").read_text()

    return run


@pytest.mark.parametrize(
    ("fails", "part"),
    [
        ("cuda python setup.py", "build"),
        ("python -m pytest", "test"),
        ("memcheck", "sanitize"),
        ("-m benchmarks --full", "bench"),
    ],
)
def test_a_part_of_the_gpu_script_that_fails_stops_no_other_and_is_named(gpu_script, fails, part):
    result, calls = gpu_script(fails)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, f"gpu.sh: failed: {part}")
    assert ("cpu python setup.py" in calls) == (part == "build")
    for call in ("tests/test_one.py tests/test_no_synchronisation.py", "--tool racecheck", "-m benchmarks --full"):
        assert call in calls


def test_the_gpu_script_runs_no_tests_where_it_has_no_pytest(gpu_script):
    result, calls = gpu_script("import pytest")
    assert (result.returncode, result.stderr) == (0, "")
    assert "left out: 'python' has no pytest" in result.stdout
    assert "-m pytest" not in calls
    assert "-m benchmarks --full" in calls


def test_gpu_script_calls_the_benchmark_with_options_that_it_has():
    script = (ROOT / "benchmarks" / "gpu.sh").read_text().replace("\\\n", "")
    from benchmarks.options import make_parser

    calls = re.findall(r"-m benchmarks (-[^|;&}\n]*)", script)
    assert len(calls) == 4
    for arguments in map(shlex.split, calls):
        make_parser("gpu.sh").parse_args(arguments)


def test_what_the_sanitizer_watches_runs():
    assert set(sanitize.kernels_of("cpu")) <= {"compiled", "triton"}
    sanitize.run("cpu")


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
