"""A study ends with the same numbers however often it is cut short, and never mixes what does not belong together."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from cli_cases import assert_one_line, contents, invoke, metrics_of
from study_cases import ALL_ARMS, FEW, TINY, finish, measured, report_of, study

from dsd_kernels import tasks
from dsd_kernels.study import arms, runner, settings
from dsd_kernels.tasks.digits import digits
from dsd_kernels.training import arm as training_arm
from dsd_kernels.training import checkpoint
from dsd_kernels.training.config import new_config
from dsd_kernels.training.execution import execution


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of all arms, never interrupted."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    return folder, study(folder, "--seeds", "2")


def test_every_arm_has_the_same_number_of_epochs_and_its_own_end(whole):
    folder, _ = whole
    assert list(report_of(folder)["arms"]) == ALL_ARMS
    found = measured(folder)
    assert {len(records) for records in found.values()} == {7}
    ends = {name: found[f"{name}-seed001.json"][-1]["sparsity_actual"] for name in ALL_ARMS}
    sparse = ("prune-once", "iht", "acdc", "gap", "pgap", "gradual")
    assert ends == {name: 0.5 if name in sparse else 0.0 for name in ALL_ARMS}


def test_arms_start_as_one_and_have_one_learning_rate(whole):
    """All but the baseline have DSD's learning rate in every epoch, and all start as one."""
    folder, _ = whole
    found = measured(folder)
    for name in ALL_ARMS:
        rates = [record["lr"] for record in found[f"{name}-seed000.json"]]
        assert rates == [0.02] * 7 if name == "baseline" else rates == [0.02] * 5 + [0.02 * 0.1] * 2
    grow = ("gap", "pgap", "acdc")  # of these only the first differ from the start
    first = {json.dumps(found[f"{name}-seed000.json"][0]["test_loss"]) for name in ALL_ARMS if name not in grow}
    assert len(first) == 1


def test_dsd_and_llr_are_what_train_does(tmp_path, whole):
    folder, _ = whole
    result = invoke("train", "--output", tmp_path, *TINY, "--seed", "1")
    assert result.exit_code == 0
    found, epochs = measured(folder), metrics_of(tmp_path)["epochs"]
    for ours, theirs in (("dsd", "dsd"), ("llr", "baseline")):
        losses = [record["test_loss"] for record in found[f"{ours}-seed001.json"]]
        assert losses == [record["test_loss"] for record in epochs[theirs]]


def test_a_flow_that_prunes_at_its_very_end_is_measured_after_it():
    config = new_config({"dense": 1, "sparse": 2, "redense": 2, "batch_size": 512}, "cpu")
    arm = arms.make_arm("iht", config, digits(), seed=0)
    finish(arm)
    assert arm.records[-1]["sparsity_actual"] == 0.5
    assert tasks.evaluate(arm.model, arm.task.test)[1] == arm.records[-1]["test_right"]


def test_the_report_is_complete(whole):
    folder, result = whole
    report, text = report_of(folder), (folder / "report.md").read_text()
    assert report["seeds"] == [0, 1]
    assert len(report["data"]["sha256"]) == 64
    assert len(report["verdicts"]["baseline"]) == len(ALL_ARMS) - 1
    assert len(report["verdicts"]["llr"]) == len(ALL_ARMS) - 2
    for part in (*report["verdicts"]["baseline"], *report["made_on"], report["data"]["sha256"], report["command"]):
        assert part in text
    for sentence in report["verdicts"]["llr"]:
        assert sentence.replace("`", "") in " ".join(result.stdout.split())
    dsd = report["metrics"]["accuracy"]["differences"]["baseline"]["dsd"]
    right = [[records[-1]["test_right"] for name, records in measured(folder).items() if name.startswith(f"{arm}-s")]
             for arm in ("dsd", "baseline")]  # fmt: skip
    assert dsd["mean"] == pytest.approx((sum(right[0]) - sum(right[1])) / 2 / 360 * 100)
    for picture in ("report.png", "report-arms.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
        assert f"({picture})" in text


def test_the_reports_command_is_the_studys(whole):
    folder, _ = whole
    expected = "dsd-kernels study --model cnn --dense 2 --sparse 3 --redense 2 --batch-size 512 --seeds 2"
    assert report_of(folder)["command"] == expected


def test_several_processes_give_the_same_numbers(tmp_path, whole):
    study(tmp_path, *FEW, "--jobs", "2")
    expected = measured(whole[0])
    found = measured(tmp_path)
    assert len(found) == 6
    assert all(found[name] == expected[name] for name in found)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_killed_and_started_again_it_ends_with_the_same_numbers(tmp_path, whole):
    command = [sys.executable, "-m", "dsd_kernels", "study", "--output", str(tmp_path), *TINY, *FEW, "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert any("/6  " in line for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)  # ends when the workers are gone too
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("*.json")}
    assert finished
    result = invoke("study", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"{len(finished)} of 6 trainings are finished already." in result.stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    expected, found = measured(whole[0]), measured(tmp_path)
    assert len(found) == 6
    assert all(found[name] == expected[name] for name in found)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_worker_that_is_killed_is_one_line_and_the_same_command_goes_on(tmp_path, whole, monkeypatch):
    def kill_a_worker(_):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        return ""

    with monkeypatch.context() as patch:
        patch.setattr("dsd_kernels.cli.study.in_words", kill_a_worker)  # after the first result
        result = invoke("study", "--output", tmp_path, *TINY, *FEW, "--jobs", "2")
    assert_one_line(
        result, "a training process was killed", "finished trainings are kept, and the same command goes on"
    )
    assert multiprocessing.active_children() == []
    found = measured(tmp_path)
    assert 1 <= len(found) < 6
    assert found == {name: records for name, records in measured(whole[0]).items() if name in found}


def test_a_checkpoint_that_cannot_be_used_says_what_to_do(begun):
    path = begun / "unfinished" / "baseline-seed000.pt"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    result = invoke("study", "--output", begun)
    assert_one_line(
        result, f"{path}: damaged, or not a checkpoint of dsd-kernels", "; delete it to begin this training again"
    )
    checkpoint.save(path, {"study": "another", "arm": {}})
    assert_one_line(
        invoke("study", "--output", begun), "belongs to another study", "delete it to begin this training again"
    )


def test_a_long_training_goes_on_from_its_checkpoint(tmp_path, whole, monkeypatch):
    """gradual has the most to restore: masks, momentum, scheduler, plan and position."""
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    calls = []

    def loss_of(*args):
        calls.append(args)
        if len(calls) == 3 * 4 + 2:  # in the fifth epoch, of 3 batches each
            raise KeyboardInterrupt
        return tasks.loss_of(*args)

    options = ("--arms", "baseline,gradual", "--seeds", "2")
    with monkeypatch.context() as patch:
        patch.setattr(training_arm, "loss_of", loss_of)
        assert invoke("study", "--output", tmp_path, *TINY, *options).exit_code == 130
    unfinished = sorted(path.name for path in (tmp_path / "unfinished").iterdir())
    assert unfinished == ["baseline-seed000.previous.pt", "baseline-seed000.pt"]
    epochs = []
    train_epoch = training_arm.Arm.train_epoch

    def counted(arm, *args, **kwargs):
        epochs.append((arm.name, arm.seed, arm.epoch))
        return train_epoch(arm, *args, **kwargs)

    monkeypatch.setattr(training_arm.Arm, "train_epoch", counted)
    study(tmp_path, *options)
    assert epochs[0] == ("baseline", 0, 4)
    assert list((tmp_path / "unfinished").iterdir()) == []
    expected, found = measured(whole[0]), measured(tmp_path)
    assert all(found[name] == expected[name] for name in found)


@pytest.mark.parametrize("name", ALL_ARMS)
def test_every_arm_resumes_to_the_bit(whole, name):
    config = new_config({"dense": 2, "sparse": 3, "redense": 2, "batch_size": 512}, "cpu")
    with execution(config):  # its threads: the last bits depend on them
        first = arms.make_arm(name, config, digits(), seed=1)
        for _ in range(4):
            first.train_epoch(training_arm.Unwatched(), stop=lambda: False)
        second = arms.make_arm(name, config, digits(), seed=1)
        second.load_state_dict(first.state_dict())
        finish(second)
    expected = measured(whole[0])[f"{name}-seed001.json"]
    assert [{key: record[key] for key in expected[0]} for record in second.records] == expected


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runner, "train_one", lambda *_: signal.raise_signal(signal.SIGINT))
        result = invoke("study", "--output", tmp_path, *TINY, *FEW)
    assert result.exit_code == 130
    assert f"To go on: dsd-kernels study --output {tmp_path}" in result.stdout


@pytest.fixture
def begun(tmp_path):
    """A folder with settings, and no results yet."""
    config = new_config({"dense": 2, "sparse": 3, "redense": 2, "batch_size": 512}, "cpu")
    plan = settings.new(config, ("llr", "dsd"), 2, digits())
    plan.save(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--sparsity", "0.3"), ("holds a study with other settings: --sparsity 0.3 (it began with 0.5)",)),
        (("--model", "rnn"), ("--model rnn (it began with cnn)",)),
        (("--lr", "0.1", "--dense", "3"), ("--lr 0.1 (it began with 0.02)", "--dense 3 (it began with 2)")),
        (("--arms", "dsd"), ("--arms", "began with llr too", "not left out")),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_other_settings_are_refused_by_name(begun, args, words):
    before = contents(begun)
    assert_one_line(invoke("study", "--output", begun, *args), *words)
    assert contents(begun) == before


def test_fewer_seeds_are_refused(tmp_path):
    config = new_config({}, "cpu")
    settings.new(config, ("dsd",), 5, digits()).save(tmp_path)
    assert_one_line(invoke("study", "--output", tmp_path, "--seeds", "4"), "--seeds: expected 5", "or more, got 4")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data_sha256", "0" * 64, "begun with other data (SHA-256 00000000..., here f6d9e39f...)"),
        ("versions", {"dsd_kernels": "0.0.1"}, "begun with dsd_kernels 0.0.1 (here "),
        ("format", 0, "not the settings of a study (format 0, expected 1)"),
        ("config", {}, "not the settings of a study"),
    ],
)
def test_other_data_and_versions_are_refused(begun, key, value, words):
    path = begun / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert_one_line(invoke("study", "--output", begun), words)


def test_a_result_of_another_study_is_refused(begun):
    (begun / "results").mkdir()
    path = begun / "results" / "dsd-seed000.json"
    path.write_text(json.dumps({"study": "another", "arm": "dsd", "seed": 0, "records": [1]}))
    assert_one_line(invoke("study", "--output", begun), f"{path}: belongs to another study")
    path.write_text("{")
    assert_one_line(invoke("study", "--output", begun), f"{path}: not a result")


def test_arms_and_seeds_can_be_added(tmp_path):
    study(tmp_path, *FEW)
    before = measured(tmp_path)
    study(tmp_path, "--arms", "dsd,llr,prune-once", "--seeds", "3")
    after = measured(tmp_path)
    assert len(after) == 12
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--arms", "dsd,magic"), ("--arms", "baseline, llr, dsd", "got 'magic'")),
        (("--seeds", "1"), ("--seeds", "1")),
        (("--jobs", "0"), ("--jobs", "0")),
        (("--sparse", "0", "--redense", "0"), ("--arms", "iterative-dsd: needs 3 epochs", "iht: needs 4 epochs")),
        (("--distribution", "global"), ("--arms", "gap: distribution: expected uniform", "pgap")),
        (("--tensorboard", ""), ("--tensorboard", "expected a path")),
        (("--report", "cnn.txt"), ("--report: expected a file that ends with .md, got cnn.txt",)),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_bad_input_writes_nothing(tmp_path, args, words):
    assert_one_line(invoke("study", "--output", tmp_path / "new", *TINY, *args), *words)
    assert contents(tmp_path) == {}


def test_a_report_can_be_written_elsewhere(tmp_path):
    study(tmp_path / "run", *FEW, "--report", tmp_path / "docs" / "cnn.md")
    names = {"cnn.md", "cnn.json", "cnn.png", "cnn-arms.png"}
    assert {path.name for path in (tmp_path / "docs").iterdir()} == names
    assert "(cnn.png)" in (tmp_path / "docs" / "cnn.md").read_text()


def test_help_lists_every_arm():
    text = " ".join(invoke("study", "--help").stdout.replace("-\n", "-").split())
    for name in ALL_ARMS:
        assert name in text.replace("prune- once", "prune-once")
    assert "[default: 20 for cnn, 10 for the others]" in text
