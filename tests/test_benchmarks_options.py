"""The benchmark's options: one's own model, and one line for bad input, before anything is measured."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main

ROOT = Path(__file__).parents[1]

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
        (["--cases", "step,fly"], "expected some of step,select,prune,train,flow, got 'fly'"),
        (["--inputs", ""], "expected some of 1e3,"),
        (["--inputs", "cnn", "--cases", "step"], "nothing to measure: networks are for --cases train and flow"),
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
