"""Every public name is documented by the template of the project, and says nothing that its signature does not."""

import inspect
import re

import pytest

import dsd_kernels

PUBLIC = [name for name in dsd_kernels.__all__ if callable(getattr(dsd_kernels, name))]
METHODS = [f"MaskedSGD.{name}" for name in ("prune", "set_masks", "densify", "sparsity", "verify")]


def resolve(name):
    target = dsd_kernels
    for part in name.split("."):
        target = getattr(target, part)
    return target


@pytest.mark.parametrize("name", PUBLIC + METHODS)
def test_docstrings_have_a_summary_and_an_example(name):
    doc = inspect.getdoc(resolve(name))
    summary = doc.splitlines()[0]
    assert summary.endswith((".", ":")), summary
    assert ">>> " in doc, "no doctest"


@pytest.mark.parametrize("name", PUBLIC + METHODS)
def test_every_argument_is_documented(name):
    target = resolve(name)
    doc = inspect.getdoc(target)
    for argument in inspect.signature(target).parameters:
        if argument not in ("self", "args", "kwargs"):
            assert re.search(rf"\b{argument}\b", doc), f"{name} does not document {argument}"


def test_all_is_sorted_and_exists():
    assert list(dsd_kernels.__all__) == sorted(dsd_kernels.__all__)
    assert all(hasattr(dsd_kernels, name) for name in dsd_kernels.__all__)
