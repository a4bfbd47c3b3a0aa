"""Checkpoints: whole after a kill at any instant, never read when damaged, the one before kept, refusals one line."""

import hashlib
import os
import pickle
import zipfile
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
    """As version 3 wrote it."""
    path.write_bytes(content)
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def names(path):
    return sorted(file.name for file in path.parent.iterdir())


def newest(path, passed_over=None):
    """The state that is used, and whether a damaged one was passed over on the way, as expected."""
    told = []
    state = checkpoint.load_newest(path, told.append)
    assert len(told) == (passed_over is not None)
    if passed_over:
        assert told[0].startswith(f"{path}: {passed_over}")
        assert told[0].endswith(f"; going on from the one before, {checkpoint.previous(path)}")
    return state


def test_round_trip_is_bitwise(path):
    loaded = checkpoint.load(path)
    assert loaded["plain"] == STATE["plain"]
    assert bits_equal(loaded["weights"], STATE["weights"])
    assert torch.equal(loaded["mask"], STATE["mask"])


def test_a_folder_means_the_checkpoint_in_it(path):
    assert checkpoint.load(path.parent)["plain"] == STATE["plain"]


def test_the_file_is_what_torch_and_zip_read_and_its_comment_is_the_digest_of_the_rest(path):
    assert torch.load(path, weights_only=True)["format"] == checkpoint.FORMAT
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.decode() == f"sha256:{hashlib.sha256(content[:-71]).hexdigest()}"
    assert content.endswith(archive.comment)


def test_the_one_before_is_kept(path):
    for generation in range(3):
        checkpoint.save(path, {"generation": generation})
    assert checkpoint.load(path) == {"generation": 2}
    assert checkpoint.load(checkpoint.previous(path)) == {"generation": 1}
    assert names(path) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert newest(path) == {"generation": 2}


@pytest.mark.parametrize("harm", ["torn", "flipped", "empty", "missing"])
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(path, harm):
    checkpoint.save(path, {"generation": 1})
    checkpoint.save(path, {"generation": 2})
    if harm == "missing":
        path.unlink()
    elif harm == "flipped":
        damage(path)
    else:
        path.write_bytes(path.read_bytes()[:100] if harm == "torn" else b"")
    assert newest(path, "No such file" if harm == "missing" else "damaged") == {"generation": 1}
    checkpoint.save(path, {"generation": 3})
    assert checkpoint.load(checkpoint.previous(path)) == {"generation": 1}  # not the damaged one
    assert newest(path) == {"generation": 3}


def test_where_both_are_damaged_both_are_named_and_stay(path):
    checkpoint.save(path, {"generation": 1})
    for file in (path, checkpoint.previous(path)):
        damage(file)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    both = r"checkpoint\.pt: damaged.*; .*checkpoint\.previous\.pt: damaged"
    with pytest.raises(CheckpointError, match=both) as refusal:
        newest(path)
    assert "\n" not in str(refusal.value)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_another_version_is_refused_and_not_passed_over(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    checkpoint.save(path, {})
    with pytest.raises(CheckpointError, match="version 99"):
        newest(path)


def test_the_first_of_a_run_keeps_none_of_another_run(path):
    checkpoint.save(path, {"generation": 1})
    checkpoint.save(path, {"generation": 2}, begins=True)
    assert names(path) == ["checkpoint.pt"]
    assert newest(path) == {"generation": 2}


def test_version_3_with_its_digest_beside_it_is_read_and_replaced(path):
    torch.save({"format": checkpoint.FORMAT, "version": 3, "state": {"generation": 3}}, path)
    write_with_digest(path, path.read_bytes())
    assert newest(path) == {"generation": 3}
    checkpoint.save(path, {"generation": 4})
    assert names(path) == ["checkpoint.pt"]
    assert newest(path) == {"generation": 4}


def test_remove_leaves_nothing(path):
    checkpoint.save(path, {})
    checkpoint.remove(path)
    assert names(path) == []


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
    assert_refused(path, "not a checkpoint")


def test_empty_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.touch()
    assert_refused(path, "not a checkpoint")
    write_with_digest(path, b"")
    assert_refused(path, "not a checkpoint")


def test_digest_of_another_file(path):
    other = path.with_name("other.pt")
    write_with_digest(path, b"old")
    other.write_bytes(b"old")
    other.with_name("other.pt.sha256").write_text(path.with_name("checkpoint.pt.sha256").read_text())
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
    assert calls == ["fsync", "replace", "replace", "fsync"]  # the content, the one before, the new one, the folder
    for kill_at in range(len(calls)):
        checkpoint.save(path, {"generation": kill_at})
        with monkeypatch.context() as patch:
            count_and_kill(patch, kill_at)
            with pytest.raises(KilledError):
                checkpoint.save(path, {"generation": "new"})
        between_the_names = "No such file" if kill_at == 2 else None
        assert newest(path, between_the_names) == {"generation": "new" if kill_at == 3 else kill_at}


def test_a_leftover_of_a_killed_save_is_no_obstacle(path):
    path.with_name("checkpoint.pt.tmp").write_bytes(b"torn")
    checkpoint.save(path, {"generation": 1})
    assert checkpoint.load(path) == {"generation": 1}
    assert names(path) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_a_state_that_could_not_be_read_is_refused_and_both_generations_stay(path):
    checkpoint.save(path, {"generation": 1})
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: not written, .*weights_only=True"):
        checkpoint.save(path, {"weights": torch.ones(3), "a": KilledError()})
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_paths_may_be_strings(path):
    checkpoint.save(str(path), {"generation": 1})
    assert checkpoint.load(str(path)) == newest(str(path)) == {"generation": 1}


def test_a_full_disk_leaves_the_old_one(path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, {"generation": 1})
    assert checkpoint.load(path)["plain"] == STATE["plain"]
