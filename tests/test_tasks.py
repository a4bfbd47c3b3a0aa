"""Tasks: the user's own data, what is refused about them, and networks of the papers' sizes."""

import sys

import pytest
import torch
from cli_cases import assert_one_line, contents, invoke

from dsd_kernels import masks
from dsd_kernels.tasks import DataError, evaluate, load, network
from dsd_kernels.tasks.digits import digits
from dsd_kernels.tasks.imagenet import resnet18, resnet50, vgg16

TINY = ("--dense", "1", "--sparse", "1", "--redense", "1", "--device", "cpu")


@pytest.fixture
def pictures(tmp_path):
    """Two classes of five made-up images each, of several modes and sizes."""
    image = pytest.importorskip("PIL.Image")
    for label, color in (("cats", 40), ("dogs", 200)):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for i in range(5):
            mode = ("RGB", "L", "RGBA", "RGB", "CMYK")[i]
            shade = (color + i,) * len(mode) if len(mode) > 1 and mode != "L" else color + i
            image.new(mode, (20 + 7 * i, 30), shade).save(folder / f"{i}.{'png' if mode == 'RGBA' else 'jpg'}")
    return tmp_path / "pictures"


def test_images_are_split_by_class_and_the_same_each_time(pictures):
    first, second = (load("cnn", f"imagefolder:{pictures}", image_size=16) for _ in range(2))
    assert (len(first.train), len(first.test)) == (8, 2)
    assert first.test[torch.arange(2)][1].tolist() == [0, 1]
    assert first.train.files == second.train.files
    assert first.sha256 == second.sha256
    assert first.dimensions == {"size": 16, "channels": 3, "n_classes": 2}
    assert not set(first.train.files) & set(first.test.files)
    assert evaluate(first.build(), first.test)[0] > 0


def test_train_and_val_folders_are_kept_apart(pictures):
    for name in ("train", "val"):
        (pictures.parent / "own" / name).mkdir(parents=True)
        for label in ("cats", "dogs"):
            target = pictures.parent / "own" / name / label
            target.mkdir()
            (target / "a.png").write_bytes((pictures / label / "2.png").read_bytes())
    task = load("cnn", f"imagefolder:{pictures.parent / 'own'}", image_size=16)
    assert {path.parent.parent.name for path, _ in task.train.files} == {"train"}
    assert {path.parent.parent.name for path, _ in task.test.files} == {"val"}


def test_crops_and_flips_follow_torchs_seed(pictures):
    task, rows = load("cnn", f"imagefolder:{pictures}", image_size=16), torch.arange(8)
    torch.manual_seed(1)
    first = task.train[rows][0]
    torch.manual_seed(1)
    assert torch.equal(task.train[rows][0], first)
    assert first.shape == (8, 3, 16, 16)
    assert torch.equal(task.test[rows[:2]][0], task.test[rows[:2]][0])


def test_no_more_images_are_evaluated_at_once_than_trained_on(pictures):
    """So that evaluation fits in memory where training does; the small examples of other tasks go in larger lots."""
    sizes = []

    class Counting(torch.nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return torch.zeros(*x.shape[:1], 10)

    load("cnn", f"imagefolder:{pictures}", image_size=16).evaluate(Counting(), batch_size=1)
    assert sizes == [1, 1]
    sizes.clear()
    digits().evaluate(Counting(), batch_size=1)
    assert sizes == [360]


def test_a_collection_too_large_for_memory_is_read_as_needed(pictures, monkeypatch):
    held = load("cnn", f"imagefolder:{pictures}", image_size=16)
    monkeypatch.setattr("dsd_kernels.tasks.images.MOST_BYTES_IN_MEMORY", 0)
    read = load("cnn", f"imagefolder:{pictures}", image_size=16)
    assert torch.equal(held.test[torch.arange(2)][0], read.test[torch.arange(2)][0])
    read.test.files[1][0].unlink()
    with pytest.raises(DataError, match=r"expected an image, Pillow cannot read it"):
        read.test[torch.arange(2)]


def test_train_and_inspect_on_images(tmp_path, pictures):
    result = invoke("train", "--output", tmp_path / "run", *TINY, "--dataset", f"imagefolder:{pictures}")
    assert result.exit_code == 0, result.output
    assert "images of 2 classes" in result.stdout
    assert "imagefolder" in invoke("train", "--resume", "--output", tmp_path / "run", "--dataset", "text:a").stderr
    assert invoke("inspect", tmp_path / "run").exit_code == 0


def test_train_on_a_text(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("sphinx of black quartz, judge my vow. " * 50)
    for model in ("rnn", "transformer"):
        args = ("train", "--output", tmp_path / model, *TINY, "--model", model, "--dataset", f"text:{text}")
        result = invoke(*args)
        assert result.exit_code == 0, result.output
        assert f"text of {text}: 1,900 characters" in result.stdout


def broken_image(folder):
    (folder / "cats" / "3.jpg").write_bytes(b"no image")


def empty_class(folder):
    (folder / "birds").mkdir()


def one_class(folder):
    for path in (folder / "dogs").iterdir():
        path.unlink()
    (folder / "dogs").rmdir()


def one_image(folder):
    (folder / "birds").mkdir()
    (folder / "birds" / "a.png").write_bytes((folder / "cats" / "2.png").read_bytes())


def no_folder(folder):
    folder.rename(folder.parent / "elsewhere")


def nothing_in_it(folder):
    one_class(folder)
    (folder / "cats").rename(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (broken_image, ("cats/3.jpg: expected an image",)),
        (empty_class, ("birds: expected images (.bmp,", "got none")),
        (one_class, ("expected a folder for each of two classes or more, got 1",)),
        (one_image, ("birds: expected two images or more", "got 1")),
        (no_folder, ("is not there",)),
        (nothing_in_it, ("expected a folder for each of two classes or more, got 0",)),
    ],
)
@pytest.mark.parametrize("command", ["train", "study"])
def test_bad_images(tmp_path, pictures, command, spoil, words):
    spoil(pictures)
    result = invoke(command, "--output", tmp_path / "run", *TINY, "--dataset", f"imagefolder:{pictures}")
    assert_one_line(result, *words)
    assert not (tmp_path / "run" / "study.json").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"too short", ("expected a text of 650 characters or more, got 9",)),
        (b"a" * 700 + b"\xff", ("expected UTF-8, got byte 0xff at 700",)),
        (None, ("is not there",)),
    ],
    ids=["short", "not UTF-8", "missing"],
)
@pytest.mark.parametrize("command", ["train", "study"])
def test_bad_text(tmp_path, command, content, words):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    result = invoke(command, "--output", tmp_path / "run", *TINY, "--model", "rnn", "--dataset", f"text:{path}")
    assert_one_line(result, "a.txt", *words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model", "rnn", "--dataset", "imagefolder:."), ("expected text:PATH for rnn", "'imagefolder:.'")),
        (("--dataset", "text:a"), ("expected imagefolder:PATH for cnn",)),
        (("--dataset", "imagefolder:"), ("expected imagefolder:PATH",)),
        (("--model", "resnet50"), ("resnet50 has no data of its own", "--dataset imagefolder:PATH")),
        (("--model", "vgg16", "--dataset", "imagefolder:.", "--image-size", "16"), ("--image-size", "32")),
        (("--model", "rnn", "--characters", "-1"), ("--characters", "-1")),
    ],
    ids=lambda value: " ".join(value[:2]) if value[0].startswith("--") else "",
)
def test_a_dataset_that_does_not_fit(tmp_path, args, words):
    assert_one_line(invoke("train", "--output", tmp_path / "run", *TINY, *args), *words)
    assert contents(tmp_path) == {}


def test_without_pillow(tmp_path, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = invoke("train", "--output", tmp_path / "run", *TINY, "--dataset", f"imagefolder:{pictures}")
    assert_one_line(result, "needs Pillow", "pip install pillow")


@pytest.mark.parametrize(
    ("build", "n"), [(resnet18, 11_689_512), (resnet50, 25_557_032), (vgg16, 138_357_544)], ids=["18", "50", "vgg"]
)
def test_networks_of_the_papers_have_their_sizes(build, n):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == n


def test_what_is_pruned_of_a_transformer():
    plan = masks.plan(network("transformer", {"n_characters": 70}), 0.5)
    reasons = {row.name: row.reason for row in plan.rows if not row.prunable}
    assert reasons["embedding.weight"] == reasons["positions.weight"] == "embedding"
    assert len(plan.prunable) == 2 * 4 + 1


def test_a_transformer_sees_no_future():
    torch.manual_seed(0)
    model = network("transformer", {"n_characters": 20}).eval()
    text = torch.randint(20, (1, 64))
    changed = text.clone()
    changed[0, 40:] = (changed[0, 40:] + 1) % 20
    before, after = model(text), model(changed)
    assert torch.allclose(before[0, :40], after[0, :40], atol=1e-6)
    assert not torch.allclose(before[0, 40:], after[0, 40:], atol=1e-3)
