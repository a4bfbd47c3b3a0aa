"""What pictures and TensorBoard are made of: histograms, thresholds and overlaps, by hand."""

import sys

import pytest
import torch
from cli_cases import assert_one_line, contents, invoke, metrics_of, train
from torch import nn

from dsd_kernels.cli.tensorboard import TensorBoard
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


def test_no_folder_for_tensorboard_writes_nothing():
    with TensorBoard(None) as board:
        board.write("dsd", [{}])
    assert board.writers == {}
