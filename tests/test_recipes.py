"""Recipes: the papers' phases as they are in the sources, refused when wrong, and runnable on a few images."""

import pytest
import torch
from cli_cases import assert_one_line, contents, invoke, metrics_of

from dsd_kernels.training import recipes
from dsd_kernels.training.config import new_config

SHORT = ("--dense", "1", "--sparse", "1", "--redense", "1", "--device", "cpu")
# phase lengths and learning rates as Han et al. 2017 (arXiv 1607.04381) have them
PAPER = {
    "resnet18-imagenet": ((90, 45, 45), (0.3,), (1e-1, 1e-2, 1e-3)),
    "resnet50-imagenet": ((90, 45, 45), (0.3,), (1e-1, 1e-2, 1e-3)),
    "vgg16-imagenet": ((74, 1, 18), (0.3,), (1e-2, 1e-4, 1e-5)),
    "deepspeech-phases": ((50, 50, 50), (0.5, 0.25), (8e-4, 5e-4, 3e-4, 1e-4, 3e-5)),
    "deepspeech2-phases": ((20, 20, 20), (0.5, 0.25), (3e-4, 3e-4, 3e-5, 3e-5, 6e-6)),
}


def read(name):
    return recipes.read(name, new_config({}, "cpu").to_dict())


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_the_papers(name):
    lengths, sparsity, rates = PAPER[name]
    recipe = read(name)
    about = recipe.pop("about")
    config = new_config({k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items()}, "cpu")
    assert (config.dense, config.sparse, config.redense) == lengths
    assert config.sparsity == sparsity
    scale = rates[0] if name.startswith("deepspeech") else 1.0  # there only the ratios are the paper's
    ours = [factor if scale != 1.0 else config.lr * factor for factor in config.lr_factors]
    assert ours == pytest.approx([rate / scale for rate in rates])
    assert "Han et al. 2017" in about
    assert ("speech data of the paper are not here" in about) == name.startswith("deepspeech")


@pytest.fixture
def images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label in range(2):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for i in range(5):
            pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8)
            image.frombytes("RGB", (40, 40), pixels.numpy().tobytes()).save(
                tmp_path / "images" / str(label) / f"{i}.png"
            )
    return tmp_path / "images"


def test_a_recipe_trains_on_made_up_images(tmp_path, images):
    options = ("--image-size", "32", "--dataset", f"imagefolder:{images}")
    result = invoke("train", "--output", tmp_path / "run", "--recipe", "resnet18-imagenet", *SHORT, *options)
    assert result.exit_code == 0, result.output
    assert "Recipe: ResNet-18 on ImageNet" in result.stdout
    config = metrics_of(tmp_path / "run")["config"]
    assert config["sparsity"] == [0.3]
    assert config["batch_size"] == 256
    records = metrics_of(tmp_path / "run")["epochs"]["dsd"]
    assert [record["lr"] for record in records] == pytest.approx([0.1, 0.01, 0.001])
    assert records[1]["sparsity_actual"] == pytest.approx(0.3, abs=1e-4)
    assert "first convolution" in result.stdout


def test_a_recipe_of_ones_own_in_a_study(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    (tmp_path / "mine.toml").write_text('model = "rnn"\nlr = 0.05\nsparsity = [0.25]\nnesterov = true\n')
    options = ("--recipe", tmp_path / "mine.toml", "--dataset", f"text:{tmp_path / 'text.txt'}", *SHORT)
    result = invoke("study", "--output", tmp_path / "run", *options, "--arms", "dsd", "--seeds", "2", "--lr", "0.1")
    assert result.exit_code == 0, result.output
    settings = (tmp_path / "run" / "study.json").read_text()
    for part in ('"model": "rnn"', '"lr": 0.1', '"nesterov": true', "0.25"):
        assert part in settings


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("--recipe", "expected deepspeech-phases", "or a TOML file")),
        ("dense = ", ("not a TOML file that can be read",)),
        ("densse = 3", ("expected settings among", "got densse")),
        ("[phases]\ndense = 3", ("got phases",)),
        ("dense = 1.5", ("--dense", "1.5")),
        ("sparsity = [1.5]", ("--sparsity", "1.5")),
        ('model = "mlp"', ("--model", "mlp")),
        ("lr = nan", ("--lr", "nan")),
        ("[dense]\na = 1", ("got a table for dense",)),
        ('device = "cpu"', ("got device",)),
    ],
)
def test_a_recipe_that_is_wrong(tmp_path, content, words):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_text(content)
    before = contents(tmp_path)
    assert_one_line(invoke("train", "--output", tmp_path / "run", "--recipe", path), *words)
    assert contents(tmp_path) == before
