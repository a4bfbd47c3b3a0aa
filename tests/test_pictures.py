"""What pictures and TensorBoard are made of: histograms, thresholds and overlaps, by hand."""

import sys
from types import SimpleNamespace

import pytest
import torch
from cli_cases import assert_one_line, contents, invoke, metrics_of, train
from torch import nn

from dsd_kernels.cli.tensorboard import SCALARS, TensorBoard
from dsd_kernels.flows import DSD
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.training.history import N_BINS, WeightHistory


def history_over(sparsity, change=lambda _: None, **options):
    """The history of a DSD of two iterations over one layer with the weights 1 to 100."""
    model = nn.Linear(10, 10)
    with torch.no_grad():
        model.weight.copy_(torch.arange(1.0, 101.0).view(10, 10))
    flow = DSD(
        MaskedSGD(model.parameters(), lr=1.0),
        model,
        dense=1,
        sparse=1,
        redense=1,
        iterations=2,
        sparsity=sparsity,
        **options,
    )
    history = WeightHistory()
    while not flow.finished:
        with torch.no_grad():
            change(model.weight)
        phase = flow.phase
        history.before_phase_change(flow, phase.name)
        flow.step()
        if flow.phase is not phase:
            history.after_phase_change(flow)
    return history


def test_histograms_and_thresholds():
    history = history_over((0.25, 0.5))
    layers = [snapshot["layers"]["weight"] for snapshot in history.snapshots]
    assert [snapshot["when"] for snapshot in history.snapshots] == ["dense", "sparse", "redense", "sparse", "redense"]
    assert [layer["threshold"] for layer in layers] == [25.0, None, 50.0, None, None]
    assert [layer["n_masked"] for layer in layers] == [0, 25, 0, 50, 0]
    assert [sum(layer["counts"]) for layer in layers] == [100, 75, 100, 50, 100]
    assert [layer["counts"][0] for layer in layers] == [1, 0, 25, 0, 50]  # |w| below 100 / 60; regrown ones are 0
    assert {len(layer["counts"]) for layer in layers} == {N_BINS}
    assert {layer["largest"] for layer in layers} == {100.0}


def test_overlaps_of_masks():
    [overlap] = history_over((0.25, 0.5)).overlaps
    assert overlap["layers"]["weight"] == {"again": 0.5, "chance": 0.25}  # 25 of the 50 were pruned before
    [overlap] = history_over(0.5, change=lambda weight: weight.copy_(101 - weight)).overlaps
    assert overlap["layers"]["weight"]["chance"] == 0.5


def test_a_random_mask_has_no_threshold():
    history = history_over(0.5, selection="random")
    assert all(snapshot["layers"]["weight"]["threshold"] is None for snapshot in history.snapshots)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_weights_that_are_all_zero_or_not_finite(value):
    history = history_over(0.5, change=lambda weight: weight.fill_(value))
    assert all(len(snapshot["layers"]["weight"]["counts"]) == N_BINS for snapshot in history.snapshots)


def test_train_leaves_its_pictures(tmp_path):
    train(tmp_path / "one")
    assert (tmp_path / "one" / "weights.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "one" / "masks.png").exists()
    result = train(tmp_path / "two", "--iterations", "2")
    assert (tmp_path / "two" / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert "curves.png, weights.png, masks.png" in result.stdout
    weights = metrics_of(tmp_path / "two")["weights"]
    assert [snapshot["when"] for snapshot in weights["snapshots"]][1] == "end of sparse 1"
    assert len(weights["overlaps"]) == 1


def test_a_training_that_diverged_has_pictures_too(tmp_path):
    train(tmp_path, "--lr", "1e30", "--iterations", "2")
    assert (tmp_path / "weights.png").read_bytes().startswith(b"\x89PNG")


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for command in ("train", "study"):
        result = invoke(command, "--output", tmp_path / "run", "--tensorboard", tmp_path / "board")
        assert_one_line(result, "--tensorboard", "not installed", "pip install 'dsd-kernels[tensorboard]'")
    assert contents(tmp_path) == {}


def test_tensorboard_writes_one_run_for_each_arm(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path / "run", "--tensorboard", tmp_path / "board")
    for arm, records in metrics_of(tmp_path / "run")["epochs"].items():
        [file] = (tmp_path / "board" / arm).iterdir()
        board = events.EventAccumulator(str(file))
        board.Reload()
        found = [(scalar.step, scalar.value) for scalar in board.Scalars("loss/test")]
        assert found == [(record["epoch"], pytest.approx(record["test_loss"])) for record in records]


def test_a_run_that_is_repeated_takes_the_place_of_the_older_points(tmp_path):
    """TensorBoard would show every epoch of both otherwise; histograms are those of the ends of phases."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for options in ((), ("--overwrite", "--seed", "1")):
        train(tmp_path / "run", "--tensorboard", tmp_path / "board", *options)
    board = events.EventAccumulator(str(tmp_path / "board" / "dsd"), size_guidance={"histograms": 0})  # all of them
    board.Reload()
    records = metrics_of(tmp_path / "run")["epochs"]["dsd"]
    found = [(scalar.step, scalar.value) for scalar in board.Scalars("loss/test")]
    assert found == [(record["epoch"], pytest.approx(record["test_loss"])) for record in records]
    assert [histogram.step for histogram in board.Histograms("weights/conv2.weight")] == [1, 3, 4]


class Recorder:
    """A SummaryWriter that remembers what it was asked to do."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars, self.histograms = folder, purge_step, [], {}

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def add_histogram_raw(self, tag, **values):
        self.histograms[tag, values["global_step"]] = values

    def flush(self):
        pass

    def close(self):
        pass


@pytest.fixture
def recorder(monkeypatch):
    """In place of tensorboard, which need not be installed."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Recorder))
    monkeypatch.setattr("dsd_kernels.cli.tensorboard.importlib.util.find_spec", lambda _: True)


def record_of(epoch, phase="dense"):
    return {"epoch": epoch, "phase": phase, **dict.fromkeys(SCALARS.values(), 0.5), "test_loss": None}


def test_what_was_written_before_counts_no_longer_from_the_first_epoch_on(recorder, tmp_path):
    with TensorBoard(tmp_path) as board:
        board.write("dsd", [record_of(3), record_of(4)])
        board.write("dsd", [record_of(5)])
        [writer] = board.writers.values()
    assert (writer.folder, writer.purge_step) == (str(tmp_path / "dsd"), 3)
    assert [step for tag, _, step in writer.scalars if tag == "loss/train"] == [3, 4, 5]
    assert "loss/test" not in {tag for tag, _, _ in writer.scalars}  # not finite


def test_histograms_are_written_where_a_phase_ends(recorder, tmp_path):
    history = history_over((0.25, 0.5))
    history.snapshots = history.snapshots[:2]
    history.snapshots[1]["when"] = "end of sparse 1"
    arm = SimpleNamespace(name="dsd", history=history)
    with TensorBoard(tmp_path) as board:
        board.epoch(arm, record_of(1, "dense"))
        board.epoch(arm, record_of(2, "sparse 1"))
        [writer] = board.writers.values()
    [((tag, step), histogram)] = writer.histograms.items()
    assert (tag, step) == ("weights/weight", 2)
    assert (histogram["num"], histogram["min"], histogram["max"]) == (75, 0.0, 100.0)
    assert histogram["bucket_counts"] == history.snapshots[1]["layers"]["weight"]["counts"]
    assert histogram["bucket_limits"] == pytest.approx([100 / N_BINS * i for i in range(1, N_BINS + 1)])
    assert histogram["sum"] == pytest.approx(sum(range(26, 101)), rel=0.01)  # from the middles of bins
    assert histogram["sum_squares"] == pytest.approx(sum(i**2 for i in range(26, 101)), rel=0.01)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_weights_that_have_no_histogram_are_left_out(recorder, tmp_path, value):
    history = history_over(0.5, change=lambda weight: weight.fill_(value))
    history.snapshots[-1]["when"] = "end of dense"
    with TensorBoard(tmp_path) as board:
        board.epoch(SimpleNamespace(name="dsd", history=history), record_of(1))
        assert board.writers["dsd"].histograms == {}


def test_no_folder_for_tensorboard_writes_nothing():
    with TensorBoard(None) as board:
        board.write("dsd", [{}])
    assert board.writers == {}
