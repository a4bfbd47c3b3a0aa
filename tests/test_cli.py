"""The command line: what it shows and leaves, and that its baseline is what it says."""

import re
import sys
from io import StringIO

import pytest
import torch
from cases import bits_equal
from cli_cases import invoke, metrics_of, sparse_checkpoint, tiny_config, train
from rich.console import Console

from dsd_kernels.cli import checkpoint, tasks
from dsd_kernels.cli.progress import Bar, observer
from dsd_kernels.cli.run import Run
from dsd_kernels.ops.backends import OPS, backends


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cnn"
    return folder, train(folder)


@pytest.fixture
def small_text(monkeypatch):
    """A few pages of the documentation: the whole of it takes too long here."""
    topics = pytest.importorskip("pydoc_data.topics").topics
    monkeypatch.setattr("pydoc_data.topics.topics", {name: topics[name] for name in ("if", "while", "try")})


def test_train_shows_the_table_beside_the_baseline(trained):
    _, result = trained
    rows = [line.split() for line in result.stdout.splitlines()]
    phases = {row[0]: row for row in rows if row and row[0] in ("dense", "sparse", "redense")}
    assert phases["dense"][1:5] == ["1-1", "0.02", "0.0%", "0.0%"]
    assert phases["sparse"][1:5] == ["2-3", "0.02", "50.0%", "50.0%"]
    assert phases["redense"][1:5] == ["4-4", "0.002", "0.0%", "0.0%"]
    assert all(len(row) == 11 for row in phases.values())  # three figures of each arm
    assert phases["dense"][5::2] == phases["dense"][6::2]  # nothing pruned yet: the arms are the same


def test_train_says_what_one_run_shows(trained):
    _, result = trained
    text = " ".join(result.stdout.split())
    assert "of 360 images; one image is 0.28 points" in text
    assert "A single run shows nothing about a gain" in text
    assert "same initial weights" in text


def test_train_lists_what_it_pruned_and_why_not(trained):
    _, result = trained
    assert re.search(r"conv1.weight +16x1x3x3 +144 +no: first convolution", result.stdout)
    assert re.search(r"conv2.weight +32x16x3x3 +4,608 +2,304 \(50.0%\)", result.stdout)
    assert re.search(r"norm1.bias +16 +16 +no: normalisation", result.stdout)


def test_train_leaves_metrics_and_curves(trained):
    folder, _ = trained
    metrics = metrics_of(folder)
    assert metrics["config"]["sparsity"] == [0.5]
    assert metrics["versions"]["torch"] == torch.__version__ or torch.__version__.startswith(
        metrics["versions"]["torch"]
    )
    assert len(metrics["data"]["sha256"]) == 64
    assert metrics["machine"]
    assert [record["epoch"] for record in metrics["epochs"]["dsd"]] == [1, 2, 3, 4]
    assert [record["sparsity_actual"] for record in metrics["epochs"]["dsd"]] == [0, 0.5, 0.5, 0]
    assert [record["sparsity_actual"] for record in metrics["epochs"]["baseline"]] == [0, 0, 0, 0]
    assert [row["phase"] for row in metrics["phases"]] == ["dense", "sparse", "redense"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_output_fits_80_columns(trained):
    folder, result = trained
    inspected, diagnosed = invoke("inspect", folder), invoke("doctor")
    for output in (result.stdout, inspected.stdout, diagnosed.stdout):
        tables = [
            line
            for line in output.splitlines()
            if not line.startswith(("Its SHA", "Written", "machine", "lstm", "cnn"))
        ]
        assert max(map(len, tables)) <= 80


def test_iterations_have_their_own_sparsity(tmp_path):
    result = train(tmp_path / "run", "--sparsity", "0.5,0.25", "--distribution", "erk", "--sparse", "1")
    records = metrics_of(tmp_path / "run")["epochs"]["dsd"]
    assert [record["phase"] for record in records] == ["dense", "sparse 1", "redense 1", "sparse 2", "redense 2"]
    assert [record["sparsity_asked"] for record in records] == [0, 0.5, 0, 0.25, 0]
    assert records[1]["sparsity_actual"] == 0.5
    assert ", then " in result.stdout


def test_a_run_that_diverges_still_reports(tmp_path):
    result = train(tmp_path / "run", "--lr", "1e9")
    assert " nan " in result.stdout
    assert metrics_of(tmp_path / "run")["epochs"]["dsd"][-1]["test_loss"] is None  # JSON has no NaN


def test_without_pruning_both_arms_are_the_same(tmp_path):
    for options in (("--sparse", "0"), ("--sparsity", "0")):
        result = train(tmp_path / "run", "--overwrite", *options)
        epochs = metrics_of(tmp_path / "run")["epochs"]
        for ours, theirs in zip(epochs["dsd"], epochs["baseline"], strict=True):
            assert ours["test_loss"] == theirs["test_loss"]
        assert re.search(r"conv2.weight +32x16x3x3 +4,608 +no: no sparse phase", result.stdout)


def test_lstm_reports_its_text_and_bits_per_character(tmp_path, small_text):
    result = train(tmp_path / "run", "--model", "lstm", "--batch-size", "16")
    metrics = metrics_of(tmp_path / "run")
    n_characters, sha256 = re.search(r"([\d,]+) characters.*SHA-256 is (\w{64})", result.stdout, re.DOTALL).groups()
    assert metrics["data"]["sha256"] == sha256
    assert n_characters in metrics["data"]["description"]
    assert metrics["loss_unit"] == "bits/char"
    assert "loss in bits/char" in result.stdout
    first, last = metrics["epochs"]["baseline"][0], metrics["epochs"]["baseline"][-1]
    assert first["test_loss"] > last["test_loss"] > 1
    assert re.search(r"embedding.weight +\S+ +[\d,]+ +no: embedding", result.stdout)


def test_text_and_split_are_fixed():
    assert tasks.documentation().sha256 == tasks.documentation().sha256
    first, second = tasks.digits(), tasks.digits()
    assert torch.equal(first.test[0], second.test[0])
    assert first.test[1].bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]  # each digit in its proportion


def test_the_baseline_is_plain_sgd():
    """The same weights, batches, dropout and learning rates through torch.optim.SGD: bitwise the same network."""
    config = tiny_config(momentum=0.9, weight_decay=1e-3, nesterov=True, seed=3)
    run = Run(config, tasks.digits())
    torch.manual_seed(config.seed)
    model = tasks.DigitsNet().train()
    optimizer = torch.optim.SGD(model.parameters(), config.lr, 0.9, weight_decay=1e-3, nesterov=True, foreach=False)
    while not run.baseline.finished:
        epoch = run.baseline.epoch
        optimizer.param_groups[0]["lr"] = config.lr * (0.1 if epoch == 3 else 1.0)
        order = run.baseline.order()
        torch.manual_seed(run.baseline.epoch_seed())
        for rows in order:
            optimizer.zero_grad()
            tasks.loss_of(model, run.task.train[0][rows], run.task.train[1][rows])[0].backward()
            optimizer.step()
        run.baseline.train_epoch(observer(Console(file=StringIO()), run), stop=lambda: False)
    for ours, theirs in zip(run.baseline.model.parameters(), model.parameters(), strict=True):
        assert bits_equal(ours.detach(), theirs.detach())


def test_both_arms_start_alike_and_see_the_same_order():
    run = Run(tiny_config(), tasks.digits())
    for ours, theirs in zip(run.dsd.model.parameters(), run.baseline.model.parameters(), strict=True):
        assert bits_equal(ours.detach(), theirs.detach())
    orders = [torch.cat(arm.order()) for arm in run]
    assert torch.equal(*orders)
    run.dsd.epoch = 1
    assert not torch.equal(torch.cat(run.dsd.order()), orders[0])
    assert sorted(orders[0].tolist()) == list(range(1437))


def test_a_terminal_gets_one_bar():
    run = Run(tiny_config(), tasks.digits())
    console = Console(file=StringIO(), force_terminal=True, width=80)
    with observer(console, run) as bar:
        assert isinstance(bar, Bar)
        run.dsd.train_epoch(bar, stop=lambda: False)
        bar.progress.refresh()
    assert "dsd dense 1/4" in console.file.getvalue()
    assert "test " in console.file.getvalue()


def test_inspect_shows_asked_and_actual_sparsity(tmp_path):
    sparse_checkpoint(tmp_path)
    for path in (tmp_path, tmp_path / "checkpoint.pt"):
        result = invoke("inspect", path)
        assert result.exit_code == 0
        assert "dsd, sparse, epoch 3 of 4, 0 of 6 batches done" in result.stdout
        assert re.search(r"conv2.weight +32x16x3x3 +4,608 +50.00% +50.00% +2,304", result.stdout)
        assert re.search(r"conv1.weight +16x1x3x3 +144 +- +0.00% +144 +first convolution", result.stdout)
        assert "Every promise about masks holds" in result.stdout


def test_inspect_reports_a_broken_promise(tmp_path):
    run = sparse_checkpoint(tmp_path)
    with torch.no_grad():
        run.dsd.model.conv2.weight.fill_(1.0)
    checkpoint.save(tmp_path / "checkpoint.pt", run.state_dict())
    result = invoke("inspect", tmp_path)
    assert result.exit_code == 1
    assert "conv2.weight: 2304 pruned weights are not +0.0" in result.stderr


def test_inspect_needs_no_data(tmp_path, monkeypatch):
    sparse_checkpoint(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert invoke("inspect", tmp_path).exit_code == 0


def test_doctor_names_the_backend_of_every_op():
    result = invoke("doctor")
    assert result.exit_code == 0
    serving = next(row.backend for row in backends() if row.device == "cpu" and row.active)
    for op in OPS:
        assert re.search(rf"{op} +{serving} \(", result.stdout)
    for row in backends():
        assert re.search(rf"{row.backend} +{row.device} +{'yes' if row.available else 'no'} ", result.stdout)
    assert f"torch         {torch.__version__.partition('+')[0]}" in result.stdout


def test_help_groups_the_options_and_shows_defaults():
    text = invoke("train", "--help").stdout
    for section in ("Task:", "Phases:", "Optimizer:", "Machine:", "Output:"):
        assert f"\n{section}\n" in text
    assert "[default: 20 for cnn, 4 for lstm]" in " ".join(text.split())
    assert invoke().stdout == invoke("--help").stdout
