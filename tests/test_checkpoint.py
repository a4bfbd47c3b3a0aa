"""Checkpoints: whole after a kill at any instant, never read when damaged, and every refusal is one line."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from cases import bits_equal

from dsd_kernels.training import checkpoint
from dsd_kernels.training.checkpoint import CheckpointError

STATE = {
    "weights": torch.tensor([1.5, -0.0, torch.nan, 1e-45]),
    "mask": torch.tensor([True, False, True, True]),
    "plain": {"epoch": 3, "loss": 0.1, "name": "dsd", "nothing": None, "list": [1, 2.5]},
}


class KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it, but `finally` runs, which test_a_leftover covers."""


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "checkpoint.pt", STATE)
    return tmp_path / "checkpoint.pt"


def assert_refused(path, *words):
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.load(path)
    text = str(refusal.value)
    assert "\n" not in text
    for word in (path.name, *words):
        assert word in text


def write_with_digest(path, content):
    path.write_bytes(content)
    checkpoint.sidecar(path).write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


def test_round_trip_is_bitwise(path):
    loaded = checkpoint.load(path)
    assert loaded["plain"] == STATE["plain"]
    assert bits_equal(loaded["weights"], STATE["weights"])
    assert torch.equal(loaded["mask"], STATE["mask"])


def test_a_folder_means_the_checkpoint_in_it(path):
    assert checkpoint.load(path.parent)["plain"] == STATE["plain"]


def test_the_digest_is_readable_by_sha256sum(path):
    checkpoint.save(path, {"plain": 2})
    current, previous = checkpoint.sidecar(path).read_text().splitlines()
    assert current == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  checkpoint.pt"
    assert previous.startswith("# ")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_truncated(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert_refused(path, "damaged", "SHA-256")


def test_one_flipped_byte_anywhere(path):
    content = path.read_bytes()
    for position in range(0, len(content), 97):
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        assert_refused(path, "damaged")


def test_missing(tmp_path):
    assert_refused(tmp_path / "checkpoint.pt", "No such file")


def test_arbitrary_file_without_a_digest(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# Hello\n")
    assert_refused(path, "not a checkpoint", "README.md.sha256")


def test_empty_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.touch()
    assert_refused(path, "not a checkpoint")
    write_with_digest(path, b"")
    assert_refused(path, "not a checkpoint")


def test_digest_of_another_file(path):
    other = path.with_name("other.pt")
    other.write_bytes(path.read_bytes())
    checkpoint.sidecar(other).write_text(checkpoint.sidecar(path).read_text())
    assert_refused(other, "not a checkpoint")


def test_foreign_torch_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": torch.ones(3)}, path)
    write_with_digest(path, path.read_bytes())
    assert_refused(path, "not a checkpoint", checkpoint.FORMAT)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    path = tmp_path / "checkpoint.pt"
    write_with_digest(path, pickle.dumps(Touch()))
    assert_refused(path, "not a checkpoint")
    torch.save(Touch(), path)
    write_with_digest(path, path.read_bytes())
    assert_refused(path, "not a checkpoint")
    assert not (tmp_path / "touched").exists()


def test_another_version(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    checkpoint.save(path, STATE)
    monkeypatch.undo()
    assert_refused(path, "version 99", f"expected version {checkpoint.VERSION}")


def count_and_kill(monkeypatch, kill_at):
    """Kill at the n-th call that reaches the disk: before it happens."""
    calls = []

    def counted(name, call):
        def maybe_killed(*args, **kwargs):
            if len(calls) == kill_at:
                raise KilledError
            calls.append(name)
            return call(*args, **kwargs)

        return maybe_killed

    monkeypatch.setattr(os, "fsync", counted("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", counted("replace", Path.replace))
    return calls


def test_a_kill_at_any_instant_leaves_the_old_or_the_new_one(path, monkeypatch):
    with monkeypatch.context() as patch:
        calls = count_and_kill(patch, kill_at=None)
        checkpoint.save(path, {"generation": 0})
    assert calls == ["fsync", "replace", "fsync"] * 2  # the digest, then the checkpoint
    for kill_at in range(len(calls)):
        checkpoint.save(path, {"generation": kill_at})
        with monkeypatch.context() as patch:
            count_and_kill(patch, kill_at)
            with pytest.raises(KilledError):
                checkpoint.save(path, {"generation": "new"})
        is_replaced = calls[:kill_at].count("replace") == 2
        assert checkpoint.load(path) == {"generation": "new" if is_replaced else kill_at}


def test_a_leftover_of_a_killed_save_is_no_obstacle(path):
    path.with_name("checkpoint.pt.tmp").write_bytes(b"torn")
    path.with_name("checkpoint.pt.sha256.tmp").write_bytes(b"torn")
    checkpoint.save(path, {"generation": 1})
    assert checkpoint.load(path) == {"generation": 1}
    assert sorted(p.name for p in path.parent.iterdir()) == ["checkpoint.pt", "checkpoint.pt.sha256"]


def test_saving_does_not_bless_a_damaged_checkpoint(path):
    path.write_bytes(path.read_bytes()[:-1])
    damaged = hashlib.sha256(path.read_bytes()).hexdigest()
    checkpoint.save(path, {"generation": 1})
    assert damaged not in checkpoint.sidecar(path).read_text()


def test_a_full_disk_leaves_the_old_one(path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, {"generation": 1})
    assert checkpoint.load(path)["plain"] == STATE["plain"]
