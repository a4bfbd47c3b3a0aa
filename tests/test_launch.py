"""`torchrun -m dsd_kernels train`: one output of several ranks, and the same bits whichever rank dies, and when."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import assert_one_line, assert_same_run, contents, invoke

from dsd_kernels.training import arm as training_arm
from dsd_kernels.training import checkpoint

SCRIPT = Path(__file__).with_name("killed_ranks.py")
TWO_RANKS = ("--nproc-per-node", "2")
BATCHES = 6  # of an epoch
OPTIONS = ("--batch-size", "256", "--dense", "2", "--sparse", "1", "--redense", "1", "--device", "cpu")
SECONDS = 900  # after which a run that hangs fails its test


def command(launch, folder, *args, flow="dsd", deaths=()):
    torchrun = [sys.executable, "-m", "torch.distributed.run", *launch]
    return [*torchrun, str(SCRIPT), flow, json.dumps(deaths), "train", "--output", str(folder), *OPTIONS, *args]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def launch(folder, *args, restarts=0, **script):
    return subprocess.run(
        command((*TWO_RANKS, f"--max-restarts={restarts}"), folder, *args, **script),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=ENVIRONMENT,
    )


def errors(stderr):
    return re.findall(r"^(?:error|note|interrupted).*$", stderr, re.MULTILINE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run over two ranks that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, launch(folder)


def test_several_ranks_have_one_output(whole):
    folder, result = whole
    assert result.returncode == 0, result.stderr
    assert errors(result.stderr) == []
    assert "2 ranks: each batch of 256 is divided among them." in result.stdout
    epochs = re.findall(r"^(dsd|baseline) +epoch +(\d)/4 ", result.stdout, re.MULTILINE)
    assert epochs == [(arm, str(epoch)) for arm in ("dsd", "baseline") for epoch in (1, 2, 3, 4)]
    for once in ("Its SHA-256 is", "At the end of each phase", "Written to"):
        assert result.stdout.count(once) == 1
    names = ["checkpoint.previous.pt", "checkpoint.pt", "curves.png", "metrics.json", "weights.png"]
    assert sorted(path.name for path in contents(folder)) == names
    assert invoke("inspect", folder).exit_code == 0


def test_no_thread_of_the_group_outlives_it(whole):
    """One that lets go of a tensor while the interpreter ends aborts the process, once in a while."""
    _, result = whole
    assert result.stderr.count("threads left: []") == 2, result.stderr


def test_killed_in_every_phase_a_run_ends_with_the_bits_of_the_one_that_never_was(tmp_path, whole):
    deaths = [
        [0, 1, "batch", BATCHES + 3],  # dense, its second epoch
        [1, 1, "stop", BATCHES + 2],  # sparse: all ranks stop after the same batch, and save
        [2, 0, "batch", 3],  # sparse, the rank that writes
        [3, 1, "batch", BATCHES + 1 - 2],  # re-dense
        [4, 0, "write", 1],  # re-dense, its last checkpoint
    ]
    result = launch(tmp_path, restarts=len(deaths), deaths=deaths)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^Resumed at: (.*)\.$", result.stdout, re.MULTILINE) == [
        "dsd, dense, epoch 2 of 4, 0 of 6 batches done",
        "dsd, sparse, epoch 3 of 4, 2 of 6 batches done",
        "dsd, sparse, epoch 3 of 4, 2 of 6 batches done",
        "dsd, redense, epoch 4 of 4, 0 of 6 batches done",
        "dsd, redense, epoch 4 of 4, 0 of 6 batches done",
    ]
    lost, also_lost, passed_over = errors(result.stderr)
    for error in (lost, also_lost):
        assert error.startswith("error: rank 0 of 2 lost another one, or the network to it; the last checkpoint in ")
        assert f"{tmp_path} stands; to go on: dsd-kernels train --resume --output {tmp_path}" in error
    path = tmp_path / "checkpoint.pt"
    assert passed_over.startswith(f"note: {path}: No such file")
    assert passed_over.endswith(f"going on from the one before, {checkpoint.previous(path)}")
    assert_same_run(tmp_path, whole[0])


def test_damaged_in_every_phase_a_run_goes_on_from_the_checkpoint_before(tmp_path, whole):
    deaths = [
        [0, 1, "damage", BATCHES + 2],  # dense: the checkpoint of its first epoch
        [1, 0, "damage", 2 * BATCHES + 3],  # sparse: that of the dense phase's end
        [2, 1, "damage", 2 * BATCHES + 1],  # re-dense: that of the sparse phase
        [3, 0, "damage", 2 * BATCHES + 1],  # the baseline: that of DSD's end
    ]
    result = launch(tmp_path, restarts=len(deaths), deaths=deaths)
    assert result.returncode == 0, result.stderr
    assert resumed(result) == [
        "dsd, dense, epoch 2 of 4",
        "dsd, sparse, epoch 3 of 4",
        "dsd, redense, epoch 4 of 4",
    ]
    assert_passed_over(result, tmp_path, len(deaths))
    assert_same_run(tmp_path, whole[0])


def test_gap_killed_and_damaged_in_every_phase(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = launch(whole, flow="gap")
    assert result.returncode == 0, result.stderr
    deaths = [
        [0, 1, "batch", 3],  # the first partition grows
        [1, 0, "batch", BATCHES + 2],  # the second one
        [2, 1, "damage", 2],  # the second one: the checkpoint of the first
        [3, 0, "batch", 2 * BATCHES + 4],  # final
        [4, 1, "damage", 2],  # final: the checkpoint of the second one
    ]
    result = launch(killed, flow="gap", restarts=len(deaths), deaths=deaths)
    assert result.returncode == 0, result.stderr
    assert resumed(result) == [
        "dsd, grow 2, epoch 2 of 4",
        "dsd, final, epoch 3 of 4",
        "dsd, grow 2, epoch 2 of 4",
    ]
    assert_passed_over(result, killed, 2)
    assert_same_run(killed, whole)


def resumed(result):
    """Where restarts went on: each at the begin of an epoch, which for the first one is not said."""
    return re.findall(r"^Resumed at: (.*), 0 of 6 batches done\.$", result.stdout, re.MULTILINE)


def assert_passed_over(result, folder, times):
    """As often, the damaged checkpoint is named, and the one before that is used instead."""
    path = folder / checkpoint.NAME
    notes = [line for line in errors(result.stderr) if line.startswith("note: ")]
    assert len(notes) == times
    for note in notes:
        assert note.startswith(f"note: {path}: damaged, or not a checkpoint of dsd-kernels: ")
        assert note.endswith(f"going on from the one before, {checkpoint.previous(path)}")


def test_a_host_that_does_not_answer_is_named_within_the_timeout(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"

    def host(number):
        address = ("--local-addr", f"127.0.0.{number + 1}", "--rdzv-conf", f"is_host={number == 0}")
        nodes = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "two-hosts")
        args = command((*nodes, *address), tmp_path, "--rank-timeout", "15", deaths=[[0, 1, "freeze", 2 * BATCHES + 2]])
        return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    environment = {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "lo"}
    with host(0) as first, host(1) as second:
        found, errors_found = first.communicate(timeout=SECONDS)
        frozen = next(line for line in iter(second.stderr.readline, "") if line.startswith("frozen: "))
        os.kill(int(frozen.split()[1]), signal.SIGKILL)
    assert first.returncode != 0
    [error] = errors(errors_found)
    assert error.startswith("error: rank 0 of 2 lost another one, or the network to it; the last checkpoint in ")
    assert re.search("Timed out waiting 15000ms|timeout caused pair closure", error)  # whichever message finds it out
    assert sorted(path.name for path in contents(tmp_path)) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert checkpoint.load(tmp_path)["position"] == "dsd, sparse, epoch 3 of 4, 0 of 6 batches done"
    assert "dsd       epoch  2/4" in found


class TestOfOneProcess:
    """What torchrun's environment changes, without it."""

    @pytest.fixture
    def begun(self, tmp_path, monkeypatch):
        """A run that was killed after its first checkpoint, in a launch of its own."""
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
        with monkeypatch.context() as patch:
            patch.setattr(training_arm, "loss_of", lambda *_: 1 / 0)
            assert isinstance(invoke("train", "--output", tmp_path, *OPTIONS).exception, ZeroDivisionError)
        return tmp_path

    def test_a_restart_goes_on_with_the_run_of_its_launch(self, begun, monkeypatch):
        refused = invoke("train", "--output", begun, *OPTIONS)
        assert_one_line(refused, "holds a run already")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        checkpoint.save(begun / "checkpoint.pt", {**checkpoint.load(begun), "position": "elsewhere"})
        assert_one_line(invoke("train", "--output", begun, *OPTIONS), "stands at", "not at 'elsewhere'")

    def test_a_restart_does_not_go_on_with_the_run_of_another(self, begun, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
        before = contents(begun)
        assert_one_line(invoke("train", "--output", begun, *OPTIONS), "holds a run already")
        assert contents(begun) == before

    def test_a_study_is_not_for_ranks(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert_one_line(invoke("study", "--output", tmp_path / "run"), "--jobs", "without torchrun")
        assert contents(tmp_path) == {}

    def test_other_ranks_leave_what_all_of_them_know_to_the_first(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        result = invoke("train", "--output", tmp_path, "--sparsity", "2")
        assert (result.exit_code, result.output) == (2, "")
        assert (invoke("train", "--help").exit_code, invoke("train", "--help").output) == (0, "")
