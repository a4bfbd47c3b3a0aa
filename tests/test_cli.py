"""The command line: what it shows and leaves, and that its baseline is what it says."""

import re
import sys
from io import StringIO

import pytest
import torch
from cases import bits_equal
from cli_cases import invoke, metrics_of, sparse_checkpoint, tiny_config, train
from rich.console import Console
from rich.table import Table

from dsd_kernels import tasks
from dsd_kernels.cli import report, tables
from dsd_kernels.cli.progress import Bar, observer
from dsd_kernels.cli.run import Run
from dsd_kernels.ops.backends import OPS, BackendStatus, backends
from dsd_kernels.seeds import derived_seed
from dsd_kernels.tasks.digits import digits
from dsd_kernels.tasks.networks import ImageCNN
from dsd_kernels.training import checkpoint


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
        assert "…" not in output
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
    result = train(tmp_path / "run", "--lr", "1e30")
    assert " nan " in result.stdout
    text = " ".join(result.stdout.split())
    assert "diverged: the loss is not finite from epoch 1 of dsd and epoch 1 of baseline. The comparison means" in text
    assert "try a smaller --lr than 1e+30." in text
    assert "points" not in text
    assert metrics_of(tmp_path / "run")["epochs"]["dsd"][-1]["test_loss"] is None  # JSON has no NaN


def test_divergence_names_the_arm_and_the_epoch():
    run = Run(tiny_config(), digits())
    fine, broken = {"train_loss": 1.0, "test_loss": 1.0}, {"train_loss": 1.0, "test_loss": float("inf")}
    run.dsd.records, run.baseline.records = [fine, fine], [fine, broken]
    assert report.divergence(run) == "epoch 2 of baseline"
    run.baseline.records = [fine, fine]
    assert report.divergence(run) == ""


def test_tables_are_never_cropped(tmp_path):
    options = ("--sparse", "1", "--sparsity", "0.5,0.9999", "--lr", "0.00125", "--lr-factors", "1,1,0.1,1,0.01")
    result = train(tmp_path / "run", *options)
    assert "…" not in result.stdout
    table = result.stdout.partition("At the end of each phase")[2].partition("Train loss")[0]
    rows = {
        line[:9].strip(): line[9:].split() for line in table.splitlines() if re.match(r"dense|sparse|redense", line)
    }
    assert [row[1] for row in rows.values()] == ["0.00125", "0.00125", "1.25e-4", "0.00125", "1.25e-5"]
    assert rows["sparse 2"][2] == "99.99%"
    assert all(re.fullmatch(r"\d+\.\d\d%", cell) for row in rows.values() for cell in row[-2:])
    assert max(map(len, table.splitlines())) <= 80


def test_a_table_wider_than_the_console_is_printed_whole():
    console = Console(file=StringIO(), width=20)
    table = Table("number", "why")
    table.add_row("compiled (default)", "several words, and incompatibilities")
    tables.print_table(console, table)
    shown = console.file.getvalue()
    assert "compiled (default)" in shown
    assert "incompatibilities" in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) == len("compiled (default)") + len("incompatibilities") + 7


@pytest.mark.parametrize(
    ("fraction", "shown"), [(0, "0.0%"), (1, "100.0%"), (0.5, "50.0%"), (0.9999, "99.99%"), (1e-4, "0.01%")]
)
def test_percent_has_enough_digits(fraction, shown):
    assert tables.percent(fraction) == shown


@pytest.mark.parametrize("shown", ["0", "0.02", "0.00125", "1.25e-4", "1e-9", "1e30", "nan"])
def test_short_numbers(shown):
    assert tables.short(float(shown)) == shown


def test_equal_phases_are_counted():
    assert report.pruned_in_turn([320] * 12, 640) == "320 (50.0%) x12"
    assert report.pruned_in_turn([320, 320, 160], 640) == "320 (50.0%) x2, then 160 (25.0%)"
    assert report.pruned_in_turn([], 640) == ""


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
    assert tasks.load("lstm").sha256 == tasks.load("lstm").sha256
    first, second = digits(), digits()
    assert torch.equal(first.test.inputs, second.test.inputs)
    counts = first.test.targets.bincount().tolist()  # each digit in its proportion
    assert counts == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


def test_the_baseline_is_plain_sgd():
    """The same weights, batches, dropout and learning rates through torch.optim.SGD: bitwise the same network."""
    config = tiny_config(momentum=0.9, weight_decay=1e-3, nesterov=True, seed=3)
    run = Run(config, digits())
    torch.manual_seed(derived_seed(config.seed, "weights"))
    model = ImageCNN().train()
    optimizer = torch.optim.SGD(model.parameters(), config.lr, 0.9, weight_decay=1e-3, nesterov=True, foreach=False)
    while not run.baseline.finished:
        epoch = run.baseline.epoch
        optimizer.param_groups[0]["lr"] = config.lr * (0.1 if epoch == 3 else 1.0)
        order = run.baseline.order()
        torch.manual_seed(derived_seed(config.seed, "dropout", epoch))
        for rows in order:
            optimizer.zero_grad()
            tasks.loss_of(model, *run.task.train[rows])[0].backward()
            optimizer.step()
        run.baseline.train_epoch(observer(Console(file=StringIO()), run), stop=lambda: False)
    for ours, theirs in zip(run.baseline.model.parameters(), model.parameters(), strict=True):
        assert bits_equal(ours.detach(), theirs.detach())


def test_both_arms_start_alike_and_see_the_same_order():
    run = Run(tiny_config(), digits())
    for ours, theirs in zip(run.dsd.model.parameters(), run.baseline.model.parameters(), strict=True):
        assert bits_equal(ours.detach(), theirs.detach())
    orders = [torch.cat(arm.order()) for arm in run]
    generator = torch.Generator().manual_seed(derived_seed(run.config.seed, "order", 0))  # not dropout's
    assert torch.equal(orders[0], torch.randperm(1437, generator=generator))
    assert len({derived_seed(seed, use, epoch) for seed in (0, 1) for use in "abc" for epoch in range(9)}) == 2 * 3 * 9
    assert torch.equal(*orders)
    run.dsd.epoch = 1
    assert not torch.equal(torch.cat(run.dsd.order()), orders[0])
    assert sorted(orders[0].tolist()) == list(range(1437))


def test_a_terminal_gets_one_bar():
    run = Run(tiny_config(), digits())
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


def test_inspect_of_a_phase_without_masks_claims_nothing(trained):
    folder, _ = trained
    result = invoke("inspect", folder)
    assert "No masks in this phase (redense): nothing to verify." in result.stdout
    assert "Every promise" not in result.stdout
    assert re.search(r"weights +pruned last +not pruned because", result.stdout)
    assert re.search(r"conv2.weight +32x16x3x3 +4,608 +2,304 \(50.00%\) *\n", result.stdout)
    assert re.search(r"conv1.weight +16x1x3x3 +144 +- +first convolution", result.stdout)


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
    assert ".)" not in result.stdout
    assert not re.search(r"yes +available", result.stdout)
    assert f"torch         {torch.__version__.partition('+')[0]}" in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there, other ops may have kernels")
def test_doctor_says_where_the_reference_serves_for_want_of_a_kernel(monkeypatch):
    on_cpu = [row for row in backends() if row.device == "cpu"]
    on_gpu = BackendStatus("compiled", "cuda", True, True, "default")  # its kernels are not loaded here
    monkeypatch.setattr("dsd_kernels.cli.doctor.backends", lambda: [*on_cpu, on_gpu])
    line = re.search("magnitude_histogram.*", invoke("doctor").stdout)[0]
    assert line.split(maxsplit=3)[1] == next(row.backend for row in on_cpu if row.active)
    assert line.rstrip().endswith("reference (no compiled kernel)")


def test_help_groups_the_options_and_shows_defaults():
    text = invoke("train", "--help").stdout
    for section in ("Task:", "Phases:", "Optimizer:", "Machine:", "Output:"):
        assert f"\n{section}\n" in text
    assert "[default: 20 for cnn, resnet18, resnet50, vgg16; 4 for lstm, rnn, transformer]" in " ".join(text.split())
    assert invoke().stdout == invoke("--help").stdout
