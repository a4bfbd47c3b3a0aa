"""Stop and resume: a run interrupted after any batch ends with the bits of the run that never stopped (P5)."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from cli_cases import assert_same_run, invoke

from dsd_kernels import tasks
from dsd_kernels.cli import report, session
from dsd_kernels.training import arm as training_arm
from dsd_kernels.training import checkpoint

BATCHES = 6  # of an epoch, at this batch size
EPOCHS = 6  # of an arm
OPTIONS = ("--batch-size", "256", "--dense", "2", "--sparse", "1", "--redense", "1", "--sparsity", "0.5,0.25")
OPTIONS += ("--nesterov", "--weight-decay", "0.001", "--distribution", "global", "--device", "cpu", "--seed", "7")


@pytest.fixture
def in_batch(monkeypatch):
    """Do something within the n-th training batch from now on; by default, send SIGINT."""

    def arm(n, action=lambda: signal.raise_signal(signal.SIGINT)):
        calls = []

        def loss_of(*args):
            calls.append(args)
            if len(calls) == n:
                action()
            return tasks.loss_of(*args)

        monkeypatch.setattr(training_arm, "loss_of", loss_of)

    return arm


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert invoke("train", "--output", folder, *OPTIONS).exit_code == 0
    return folder


@pytest.mark.parametrize(
    ("n", "position"),
    [
        (1, "dsd, dense, epoch 1 of 6, 1 of 6 batches done"),
        (2 * BATCHES, "dsd, sparse 1, epoch 3 of 6, 0 of 6 batches done"),
        (2 * BATCHES + 4, "dsd, sparse 1, epoch 3 of 6, 4 of 6 batches done"),
        (4 * BATCHES + 3, "dsd, sparse 2, epoch 5 of 6, 3 of 6 batches done"),
        (6 * BATCHES - 1, "dsd, redense 2, epoch 6 of 6, 5 of 6 batches done"),
        (EPOCHS * BATCHES, "baseline, unpruned, epoch 1 of 6, 0 of 6 batches done"),
        ((EPOCHS + 3) * BATCHES + 2, "baseline, unpruned, epoch 4 of 6, 2 of 6 batches done"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ctrl_c_then_resume_is_bitwise(tmp_path, uninterrupted, in_batch, n, position):
    folder = tmp_path / "run"
    in_batch(n)
    stopped = invoke("train", "--output", folder, *OPTIONS)
    assert stopped.exit_code == 130
    assert f"Stopped and saved in {folder / 'checkpoint.pt'}: {position}." in stopped.stdout
    assert f"To go on: dsd-kernels train --resume --output {folder}" in stopped.stdout
    assert not (folder / "metrics.json").exists()
    resumed = invoke("train", "--resume", "--output", folder)
    assert resumed.exit_code == 0, resumed.output
    assert f"Resumed at: {position}." in resumed.stdout
    assert_same_run(folder, uninterrupted)


def test_interrupted_again_and_again(tmp_path, uninterrupted, in_batch):
    folder = tmp_path / "run"
    in_batch(7)
    assert invoke("train", "--output", folder, *OPTIONS).exit_code == 130
    n_runs, code = 1, 130
    while code == 130:
        in_batch(11)
        code = invoke("train", "--resume", "--output", folder).exit_code
        n_runs += 1
    assert n_runs == 7  # 72 batches: 7, then 11 each
    assert_same_run(folder, uninterrupted)


def test_a_kill_is_resumed_from_the_last_epoch(tmp_path, uninterrupted, in_batch):
    class KilledError(BaseException):
        pass

    def kill():
        raise KilledError

    in_batch(3 * BATCHES + 2, kill)
    with pytest.raises(KilledError):
        invoke("train", "--output", tmp_path, *OPTIONS)
    assert "dsd, redense 1, epoch 4 of 6, 0 of 6 batches done" in invoke("inspect", tmp_path).stdout
    assert invoke("train", "--resume", "--output", tmp_path).exit_code == 0
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_ctrl_c_does_not_wait(tmp_path, in_batch):
    in_batch(3, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    result = invoke("train", "--output", tmp_path, *OPTIONS)
    assert result.exit_code == 130
    assert "0 of 6 batches done" in checkpoint.load(tmp_path)["position"]  # the one that the run began with
    assert re.fullmatch(
        r"interrupted at once; the last checkpoint in .* stands; to go on: dsd-kernels train .*\n", result.stderr
    )
    assert f"--resume --output {tmp_path}" in result.stderr


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_resumed(tmp_path, uninterrupted, in_batch):
    in_batch(2 * BATCHES + 1)  # in the sparse phase: an epoch's checkpoint, then that of the interruption
    assert invoke("train", "--output", tmp_path, *OPTIONS).exit_code == 130
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"error: {path}: damaged" in invoke("inspect", path).stderr
    note = rf"note: {path}: damaged.*; going on from the one before, {checkpoint.previous(path)}\n"
    assert re.fullmatch(note, invoke("inspect", tmp_path).stderr)
    resumed = invoke("train", "--resume", "--output", tmp_path)
    assert re.fullmatch(note, resumed.stderr)
    assert "Resumed at: dsd, sparse 1, epoch 3 of 6, 0 of 6 batches done." in resumed.stdout
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_before_training_writes_nothing(tmp_path, monkeypatch, times):
    def load(model, *args, **options):
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        return tasks.load(model, *args, **options)

    monkeypatch.setattr(session, "load", load)
    result = invoke("train", "--output", tmp_path, *OPTIONS)
    assert result.exit_code == 130
    when = "before training began" if times == 1 else "at once"
    assert result.stderr == f"interrupted {when}; no checkpoint of this run was written\n"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_before_a_resumed_run_goes_on(tmp_path, monkeypatch, in_batch):
    in_batch(3)
    invoke("train", "--output", tmp_path, *OPTIONS)

    def load(*args, **options):
        signal.raise_signal(signal.SIGINT)
        return tasks.load(*args, **options)

    monkeypatch.setattr(session, "load", load)
    result = invoke("train", "--output", tmp_path, "--resume")
    assert result.exit_code == 130
    assert re.fullmatch(
        r"interrupted before training began; the last checkpoint in .* stands; to go on: .*\n", result.stderr
    )


def test_ctrl_c_in_the_conclusion_does_not_lose_it(tmp_path, monkeypatch):
    conclude = report.conclude
    monkeypatch.setattr(report, "conclude", lambda *args: signal.raise_signal(signal.SIGINT) or conclude(*args))
    result = invoke("train", "--output", tmp_path, *OPTIONS)
    assert result.exit_code == 0
    files = "checkpoint.pt, metrics.json, curves.png, weights.png, masks.png"
    assert result.stdout.endswith(f"Written to {tmp_path}: {files}\n")


def test_ctrl_c_while_the_commands_are_imported():
    code = """
import sys
from dsd_kernels.cli import main

class Interrupted:
    def find_spec(self, name, *_):
        if name == "dsd_kernels.cli.app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted while loading; nothing was written"
    assert "Traceback" not in done.stderr


def test_signal_handlers_and_threads_are_put_back(tmp_path, in_batch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    in_batch(3)
    assert invoke("train", "--output", tmp_path, *OPTIONS, "--threads", str(min(2, os.cpu_count()))).exit_code == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), torch.get_num_threads()) == before


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize(
    ("model", "device"),
    [("lstm", "cpu"), pytest.param("lstm", "cuda", marks=ON_GPU), pytest.param("cnn", "cuda", marks=ON_GPU)],
)
def test_every_model_and_device_resumes(tmp_path, in_batch, monkeypatch, model, device):
    topics = pytest.importorskip("pydoc_data.topics").topics
    monkeypatch.setattr("pydoc_data.topics.topics", {name: topics[name] for name in ("if", "while", "try")})
    options = (
        "--model",
        model,
        "--device",
        device,
        "--batch-size",
        "32",
        "--dense",
        "1",
        "--sparse",
        "1",
        "--redense",
        "1",
    )
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert invoke("train", "--output", whole, *options).exit_code == 0
    n_batches = -(-len(tasks.load(model).train) // 32)
    in_batch(n_batches + 2)
    assert invoke("train", "--output", folder, *options).exit_code == 130
    assert checkpoint.load(folder)["position"] == f"dsd, sparse, epoch 2 of 3, 2 of {n_batches} batches done"
    assert invoke("train", "--resume", "--output", folder).exit_code == 0
    assert_same_run(folder, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_real_process_saves_when_it_gets_the_signal(tmp_path, number, code):
    long = ("--dense", "1", "--sparse", "500", "--redense", "0", "--batch-size", "256", "--device", "cpu")
    command = [sys.executable, "-m", "dsd_kernels", "train", "--output", str(tmp_path), *long]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        assert any(re.match(r"dsd +epoch +2/501 +sparse", line) for line in lines)
        process.send_signal(number)
        output = process.stdout.read()
        assert process.wait() == code, process.stderr.read()
    position = re.search(r"Stopped and saved in .*: (dsd, sparse, epoch \d+ of 501, \d of 6 batches done)\.", output)
    inspected = invoke("inspect", tmp_path)
    assert inspected.exit_code == 0
    assert position.group(1) in inspected.stdout
    assert "50.00%" in inspected.stdout
