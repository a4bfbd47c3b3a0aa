"""Bad input on the command line is one line and exit code 2, and nothing is changed or lost."""

import os
import subprocess
import sys

import pytest
import torch
from cli_cases import TINY, assert_one_line, contents, invoke, metrics_of, sparse_checkpoint, train

from dsd_kernels.training import checkpoint

HUGE = "99999999999999999999999"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cnn"
    return folder, train(folder)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--sparsity", "-0.1"), ("--sparsity", "[0, 1)", "-0.1")),
        (("--sparsity", "1.0"), ("--sparsity", "[0, 1)", "1.0")),
        (("--sparsity", "nan"), ("--sparsity", "[0, 1)", "nan")),
        (("--sparsity", "half"), ("--sparsity", "[0, 1)", "half")),
        (("--sparsity", "0.5,,0.2"), ("--sparsity", "[0, 1)", "''")),
        (("--sparsity", "0.5,0.2", "--iterations", "3"), ("--sparsity", "3 iterations", "got 2")),
        (("--dense", "-1"), ("--dense", "-1", "0<=x<=")),
        (("--sparse", "2.5"), ("--sparse", "2.5")),
        (("--dense", "0", "--sparse", "0", "--redense", "0"), ("--dense", "at least one epoch")),
        (("--lr", "0"), ("--lr", "(0, inf)")),
        (("--lr", "nan"), ("--lr", "(0, inf)", "nan")),
        (("--lr-factors", "1,1,-1"), ("--lr-factors", "[0, inf)", "-1")),
        (("--lr-factors", "1,1"), ("--lr-factors", "expected 3 values, got 2")),
        (("--lr-factors", "1,1,1,1", "--iterations", "2"), ("--lr-factors", "3 values, or one for each of 5", "got 4")),
        (("--lr", "1e308", "--lr-factors", "1,1e5,1"), ("--lr-factors", "finite", "1e+308 * 100000")),
        (("--threads", "0"), ("--threads", "0", "1<=x<=")),
        (("--threads", "100000"), ("--threads", "100000", f"expected 1 to {os.cpu_count()}")),
        (("--threads", "2147483648"), ("--threads", "2147483648", "x<=2147483647")),
        (("--threads", HUGE), ("--threads", HUGE, "x<=2147483647")),
        (("--batch-size", HUGE), ("--batch-size", HUGE, "x<=2147483647")),
        (("--dense", HUGE), ("--dense", HUGE, "x<=2147483647")),
        (("--sparse", HUGE), ("--sparse", HUGE, "x<=2147483647")),
        (("--redense", HUGE), ("--redense", HUGE, "x<=2147483647")),
        (("--iterations", HUGE), ("--iterations", HUGE, "x<=1000")),
        (("--output", ""), ("--output", "expected a path, got ''")),
        (("--characters", "100"), ("--characters: cnn reads no text", "lstm, rnn, transformer")),
        (("--image-size", "64"), ("--image-size: the digits have 8x8 pixels", "--dataset imagefolder:PATH")),
        (("--image-size", "64", "--model", "rnn"), ("--image-size: rnn reads no images",)),
        (("--momentum", "1"), ("--momentum", "[0, 1)")),
        (("--momentum", "0", "--nesterov"), ("--nesterov", "--momentum")),
        (("--weight-decay", "inf"), ("--weight-decay", "[0, inf)")),
        (("--batch-size", "0"), ("--batch-size", "0")),
        (("--model", "mlp"), ("--model", "mlp", "cnn", "lstm")),
        (("--distribution", "random"), ("--distribution", "random", "erk")),
        (("--backend", "fastest"), ("--backend", "fastest", "reference")),
        (("--device", "toaster"), ("--device", "toaster", "cpu, cuda or cuda:N")),
        (("--device", "cuda:99"), ("--device", "cuda:99", "not available")),
        (("--resume",), ("checkpoint.pt", "No such file")),
        (("--resume", "--overwrite"), ("--resume", "--overwrite")),
        (("--frobnicate",), ("--frobnicate",)),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, args, words):
    base = [
        part
        for part in ("--output", tmp_path / "run", *TINY)
        if args[0] != "--device" or part not in ("--device", "cpu")
    ]
    assert_one_line(invoke("train", *base, *args), *words)
    assert contents(tmp_path) == {}


def test_a_backend_that_is_not_here(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    result = invoke("train", "--output", tmp_path / "run", *TINY, "--backend", "triton")
    assert_one_line(result, "--backend", "triton does not serve cpu")
    assert contents(tmp_path) == {}


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        assert_one_line(invoke("train", "--output", output, *TINY), "--output", str(output))
    assert contents(tmp_path) == before


def test_a_run_is_not_destroyed(trained):
    folder, _ = trained
    before = contents(folder)
    assert_one_line(invoke("train", "--output", folder, *TINY), str(folder), "--resume", "--overwrite")
    assert_one_line(invoke("train", "--output", folder, "--overwrite", "--sparsity", "2"), "--sparsity")
    assert contents(folder) == before


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path):
    train(tmp_path, "--seed", "1")
    (tmp_path / "notes.txt").write_text("mine")
    train(tmp_path, "--seed", "2", "--overwrite")
    assert metrics_of(tmp_path)["config"]["seed"] == 2
    assert checkpoint.load(tmp_path)["config"]["seed"] == 2
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--sparsity", "0.3"), ("--sparsity 0.3", "0.5")),
        (("--model", "lstm"), ("--model lstm", "cnn")),
        (("--seed", "1", "--nesterov"), ("--seed 1", "--nesterov True")),
        (("--iterations", "2"), ("--iterations 2", "began with 1")),
        (("--backend", "reference"), ("--backend reference", "began with the default")),
        (("--lr-factors", "1,1,1"), ("--lr-factors 1.0,1.0,1.0", "1.0,1.0,0.1")),
    ],
    ids=lambda value: value[0],
)
def test_resume_with_other_options_names_them(trained, args, words):
    folder, _ = trained
    before = contents(folder)
    assert_one_line(invoke("train", "--output", folder, "--resume", *args), "--resume: contradicts", *words)
    assert contents(folder) == before


def test_resume_of_a_finished_run_only_reports(trained):
    folder, result = trained
    before = metrics_of(folder)
    again = invoke("train", "--output", folder, "--resume", "--sparsity", "0.5")
    assert again.exit_code == 0
    assert metrics_of(folder) == before
    table = result.stdout.partition("At the end of each phase")[2]
    assert again.stdout.partition("At the end of each phase")[2] == table


@pytest.mark.parametrize("command", [("inspect",), ("train", "--resume", "--output")], ids=["inspect", "resume"])
def test_a_damaged_or_foreign_checkpoint(tmp_path, command):
    path = tmp_path / "checkpoint.pt"
    for _ in range(2):
        checkpoint.save(path, {"weights": torch.ones(10)})
    for file in (path, checkpoint.previous(path)):
        file.write_bytes(file.read_bytes()[:-100])
    before = contents(tmp_path)
    words = ("checkpoint.pt: damaged, or not a checkpoint of dsd-kernels", "; ", "checkpoint.previous.pt: damaged")
    assert_one_line(invoke(*command, tmp_path), *words)
    assert contents(tmp_path) == before


def test_resume_with_other_data(tmp_path):
    run = sparse_checkpoint(tmp_path)
    checkpoint.save(tmp_path / "checkpoint.pt", {**run.state_dict(), "data_sha256": "0" * 64})
    assert_one_line(invoke("train", "--resume", "--output", tmp_path), "checkpoint.pt", "other data", "00000000")


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = invoke("train", "--output", tmp_path / "run", *TINY)
    assert_one_line(result, "scikit-learn", "pip install 'dsd-kernels[cli,train]'")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_the_extra_the_command_says_how_to_get_it(package):
    code = f"import sys; sys.modules[{package!r}] = None; from dsd_kernels.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: dsd-kernels needs {package}, which is not installed: pip install 'dsd-kernels[cli,train]'"
    )
    assert "Traceback" not in done.stderr
