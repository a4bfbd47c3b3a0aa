"""Files of a run: of another structure, in the way, or not writable; an older run is not lost."""

import hashlib
import os
import shutil
import signal

import pytest
import torch
from cli_cases import TINY, assert_one_line, contents, invoke, sparse_checkpoint, train

from dsd_kernels.cli import session
from dsd_kernels.tasks.digits import digits
from dsd_kernels.training import arm as training_arm
from dsd_kernels.training import checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cnn"
    return folder, train(folder)


def without(state, *path):
    for key in path[:-1]:
        state = state[key]
    del state[path[-1]]


def replaced(state, value, *path):
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value


MISFITS = {
    "no arms": lambda state: without(state, "arms"),
    "no baseline": lambda state: without(state, "arms", "baseline"),
    "no config": lambda state: without(state, "config"),
    "an extra setting": lambda state: replaced(state, 1, "config", "extra"),
    "a setting less": lambda state: without(state, "config", "seed"),
    "another model": lambda state: replaced(state, "mlp", "config", "model"),
    "another type": lambda state: replaced(state, "many", "config", "threads"),
    "another backend": lambda state: replaced(state, "magic", "config", "backend"),
    "another shape": lambda state: replaced(state, torch.ones(3), "arms", "dsd", "model", "head.bias"),
    "another sum": lambda state: replaced(state, torch.ones(3), "ranks", 0, "arms", "dsd", "loss_sum"),
    "another epoch": lambda state: replaced(state, 1, "arms", "dsd", "epoch"),
    "another position": lambda state: replaced(state, "finished", "position"),
    "another random state": lambda state: replaced(state, None, "ranks", 0, "random"),
    "no ranks": lambda state: replaced(state, [], "ranks"),
    "no plans": lambda state: without(state, "arms", "dsd", "plans"),
}
ONLY_RESUMED = ("no baseline", "another sum", "another epoch", "another position", "another random state", "no ranks")


@pytest.fixture(scope="module")
def sparse_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse")
    sparse_checkpoint(folder)
    return folder


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_checkpoint_of_another_structure(tmp_path, sparse_folder, misfit):
    state = checkpoint.load(sparse_folder)
    MISFITS[misfit](state)
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    before = contents(tmp_path)
    words = (str(tmp_path / "checkpoint.pt"), "does not fit this version")
    assert_one_line(invoke("train", "--resume", "--output", tmp_path), *words)
    if misfit not in ONLY_RESUMED:
        assert_one_line(invoke("inspect", tmp_path), *words)
    assert contents(tmp_path) == before


def test_a_checkpoint_without_its_state(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": checkpoint.FORMAT, "version": 3}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name("checkpoint.pt.sha256").write_text(f"{digest}  {path.name}\n")
    for command in (("inspect",), ("train", "--resume", "--output")):
        assert_one_line(invoke(*command, tmp_path), str(path), "does not fit this version")


def test_a_checkpoint_that_is_a_folder(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.mkdir()
    for args in (("inspect", tmp_path), ("inspect", path), ("train", "--resume", "--output", tmp_path)):
        assert_one_line(invoke(*args), f"{path}: is a folder")
    assert_one_line(invoke("train", "--output", tmp_path, "--overwrite", *TINY), f"{path} is a folder")
    assert_one_line(invoke("inspect", ""), "CHECKPOINT", "expected a path, got ''")


def failing_writes(monkeypatch, after):
    """Let so many files reach the disk, then none."""
    calls = []

    def fsync(descriptor, call=os.fsync):
        calls.append(descriptor)
        if len(calls) > 2 * after:  # the file, then its folder
            raise OSError(27, "File too large")
        call(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_write_error_names_the_file_and_the_way_on(tmp_path, monkeypatch, after):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        failing_writes(patch, after)
        result = invoke("train", "--output", folder, *TINY)
    words = (f"{folder / 'checkpoint.pt'}: File too large; ", f"dsd-kernels train --resume --output {folder}", "stands")
    assert_one_line(result, *words)
    assert invoke("train", "--resume", "--output", folder).exit_code == 0


def test_a_write_error_at_the_start_promises_nothing(tmp_path, monkeypatch, trained):
    old = tmp_path / "old"
    shutil.copytree(trained[0], old)
    for folder, words in ((tmp_path / "new", "no checkpoint of this run was written\n"), (old, "the older run stands")):
        with monkeypatch.context() as patch:
            failing_writes(patch, after=0)
            assert_one_line(invoke("train", "--output", folder, "--overwrite", *TINY), words)
    assert contents(tmp_path / "new") == {}
    assert invoke("train", "--output", old, "--resume").exit_code == 0


def test_overwrite_keeps_the_older_run_until_there_is_a_new_checkpoint(tmp_path, monkeypatch):
    train(tmp_path, "--seed", "1")
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(session, "load", lambda *_, **__: signal.raise_signal(signal.SIGINT) or digits())
        assert invoke("train", "--output", tmp_path, *TINY, "--overwrite").exit_code == 130
    assert contents(tmp_path) == before
    with monkeypatch.context() as patch:
        patch.setattr(training_arm, "loss_of", lambda *_: signal.raise_signal(signal.SIGINT) or 1 / 0)
        invoke("train", "--output", tmp_path, *TINY, "--overwrite", "--seed", "2")
    assert [path.name for path in contents(tmp_path)] == ["checkpoint.pt"]
    assert checkpoint.load(tmp_path)["config"]["seed"] == 2
