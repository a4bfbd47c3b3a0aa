"""Masks in safetensors files: by name, whole or not at all, and refused with one line that names the file."""

import os

import pytest
import torch
from cases import generator

from dsd_kernels import MaskedSGD

pytest.importorskip("safetensors")
import safetensors.torch

from dsd_kernels.integrations.safetensors import load_masks, save_masks

pytest.importorskip("numpy")  # safetensors needs it to write


def masked(seed=0, sparsity=0.3, shape=(5, 3)):
    """A model with a convolution in channels_last, a linear layer and a scalar; all but the bias are masked."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, bias=False), torch.nn.Linear(*shape))
    model.to(memory_format=torch.channels_last)
    model.register_parameter("scale", torch.nn.Parameter(torch.ones(())))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(seed)))
    optimizer = MaskedSGD(model.parameters(), lr=0.1)
    if sparsity:
        optimizer.prune(sparsity, [model[0].weight, model[1].weight, model.scale])
    return model, optimizer


@pytest.fixture
def path(tmp_path):
    model, optimizer = masked()
    save_masks(optimizer, model, tmp_path / "masks.safetensors")
    return tmp_path / "masks.safetensors"


@pytest.mark.feature("State", "safetensors files of masks")
def test_a_round_trip_gives_the_same_masks_to_another_model(path):
    model, optimizer = masked()
    other, fresh = masked(seed=9, sparsity=0)
    load_masks(fresh, other, path)
    for name in ("0.weight", "1.weight", "scale"):
        expected = optimizer.masks[model.get_parameter(name)]
        assert fresh.masks[other.get_parameter(name)].equal(expected)
        assert torch.equal(other.get_parameter(name) != 0, expected)
    assert other[1].bias not in fresh.masks
    fresh.verify()


@pytest.mark.feature("State", "safetensors files of masks")
def test_the_file_is_plain_safetensors_with_metadata(path):
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
        masks = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    n, n_pruned = sum(m.numel() for m in masks.values()), sum(int((~m).sum()) for m in masks.values())
    assert {name: (mask.dtype, tuple(mask.shape)) for name, mask in masks.items()} == {
        "0.weight": (torch.bool, (5, 3, 3, 3)),
        "1.weight": (torch.bool, (3, 5)),
        "scale": (torch.bool, ()),
    }
    assert (metadata["format"], metadata["version"]) == ("dsd_kernels.masks", "1")
    assert float(metadata["sparsity"]) == n_pruned / n


def test_names_may_be_given_as_a_dict(tmp_path):
    model, optimizer = masked()
    names = {"conv": model[0].weight, "head": model[1].weight, "alias": model[1].weight, "scale": model.scale}
    save_masks(optimizer, names, str(tmp_path / "masks"))
    before = optimizer.masks
    optimizer.densify()
    load_masks(optimizer, names, str(tmp_path / "masks"))
    assert all(optimizer.masks[p].equal(before[p]) for p in before)
    assert len(optimizer.masks) == 3


def rewritten(change):
    """A file with other masks and metadata, not by save_masks."""

    def write(path):
        with safetensors.safe_open(path, "pt") as file:
            metadata, masks = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(metadata, masks)
        safetensors.torch.save_file(masks, path, metadata)

    return write


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


BAD_FILES = {
    "truncated": (lambda path: os.truncate(path, 100), "expected a safetensors file"),
    "empty": (lambda path: os.truncate(path, 0), "expected a safetensors file"),
    "one bit flipped": (flipped, "damaged: its masks do not have the SHA-256"),
    "one mask removed": (rewritten(lambda _, masks: masks.pop("scale")), "damaged"),
    "masks of another dtype": (
        rewritten(lambda _, masks: masks.update({name: mask.byte() for name, mask in masks.items()})),
        "damaged",
    ),
    "not of save_masks": (
        rewritten(lambda metadata, _: metadata.clear()),
        "expected masks of format 'dsd_kernels.masks'",
    ),
    "a later version": (
        rewritten(lambda metadata, _: metadata.update(version="2")),
        "expected masks of version '1', got '2'",
    ),
}


def assert_refused(optimizer, model, path, text):
    before, weights = optimizer.masks, [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=text) as refusal:
        load_masks(optimizer, model, path)
    assert path.name in str(refusal.value)
    assert optimizer.masks.keys() == before.keys()
    assert all(optimizer.masks[p].equal(before[p]) for p in before)
    assert all(torch.equal(p, weight) for p, weight in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_and_changes_nothing(path, case):
    spoil, text = BAD_FILES[case]
    spoil(path)
    model, optimizer = masked(seed=9, sparsity=0.5)
    assert_refused(optimizer, model, path, text)


def test_masks_that_do_not_fit_are_refused_and_change_nothing(path):
    model, optimizer = masked(seed=9, sparsity=0.5, shape=(5, 4))
    assert_refused(optimizer, model, path, r"mask of '1\.weight': expected shape \(4, 5\), got \(3, 5\)")
    model, optimizer = masked(seed=9, sparsity=0.5)
    assert_refused(optimizer, torch.nn.Sequential(model[0]), path, r"got a mask of '1\.weight'")
    partial = MaskedSGD(model[1].parameters(), lr=0.1)
    assert_refused(partial, model, path, r"got a mask of '0\.weight'")
    optimizer.prune(0.5, model[1].bias)
    assert_refused(
        optimizer, model, path, r"expected a mask of every masked parameter, none for 1\.bias; densify\(\) first"
    )


def test_what_cannot_be_saved_is_refused_and_leaves_the_file(path):
    before = path.read_bytes()
    model, optimizer = masked(sparsity=0)
    with pytest.raises(ValueError, match="optimizer: expected one with masks, there is none"):
        save_masks(optimizer, model, path)
    optimizer.prune(0.5)
    with pytest.raises(ValueError, match="model: expected a name for every masked parameter, 1 of 2 have none"):
        save_masks(optimizer, model[1], path)
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_file_before_and_nothing_beside_it(path, monkeypatch):
    before = path.read_bytes()
    model, optimizer = masked(seed=9)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_masks(optimizer, model, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_missing_file_is_named(tmp_path):
    model, optimizer = masked()
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        load_masks(optimizer, model, tmp_path / "nothing.safetensors")
