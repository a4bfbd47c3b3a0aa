"""The layout's rules, read from the syntax trees: imports point down, kernels hold no argument checks."""

import ast
import sys
from pathlib import Path

import pytest

import dsd_kernels

ROOT = Path(dsd_kernels.__file__).parent
# from the bottom up; a module may import from its own layer's packages below it, never from above
LAYERS = (
    ("files", "seeds", "sparsity", "structure", "text_table", "verification", "version"),
    ("ops",),
    (
        "hyperparameters",
        "parameters",
        "shards",
        "layers",
        "distributions",
        "masks",
        "packed_masks",
        "precision",
        "state_dicts",
        "step",
        "step_plan",
        "schedule",
    ),
    ("optim", "distributed"),
    ("flows",),
    ("integrations",),
    ("tasks",),
    ("training",),
    ("study",),
    ("cli", "__main__"),
)
STANDARD_LIBRARY_ONLY = ("files", "schedule", "seeds", "sparsity", "text_table")
IGNORANT = {  # module -> what it must not know
    "optim": {"schedule", "flows", "masks"},
    "masks": {"optim", "packed_masks", "state_dicts", "flows", "schedule"},
    "schedule": {"optim", "masks", "ops", "flows"},
}


def modules():
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


def imported(path):
    """Every absolute name a file imports, at module level or within functions."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name):
    return name.removeprefix("dsd_kernels.") if name.startswith("dsd_kernels.") else None


def layer(name):
    first = name.split(".")[0]
    return next((i for i, names in enumerate(LAYERS) if first in names), None)


@pytest.mark.parametrize("module", [m for m in modules() if m != "__init__"])
def test_imports_point_down(module):
    below = layer(module)
    assert below is not None, f"{module} has no layer: add it to LAYERS"
    for name in filter(None, map(own, imported(modules()[module]))):
        target = layer(name)
        if target is not None:
            assert target <= below, f"{module} imports {name} from above"
            assert name.split(".")[0] not in IGNORANT.get(module, ())


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_needs_the_standard_library_alone(module):
    for name in imported(modules()[module]):
        assert name.split(".")[0] in sys.stdlib_module_names or own(name).split(".")[0] in STANDARD_LIBRARY_ONLY


@pytest.mark.parametrize("module", [m for m in modules() if m == "ops.reference" or m.startswith("ops.triton")])
def test_implementations_hold_no_checks(module):
    tree = ast.parse(modules()[module].read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Raise | ast.Assert)]
    assert not any("checks" in name for name in imported(modules()[module]))


def test_one_stem_per_op_in_every_folder():
    stems = {op.removesuffix("_") for op in dsd_kernels.ops.backends.OPS}
    csrc = ROOT.parent / "csrc" / "cpu"
    assert stems <= {path.stem for path in csrc.glob("*.cpp")}
    assert stems <= {path.stem for path in (ROOT / "ops" / "triton").glob("*.py")}


def test_only_registration_knows_the_dispatcher():
    csrc = ROOT.parent / "csrc"
    knowing = [p.relative_to(csrc) for p in csrc.rglob("*") if p.is_file() and "stable/library.h" in p.read_text()]
    assert sorted(map(str, knowing)) == ["cuda/registration.cpp", "registration.cpp"]
