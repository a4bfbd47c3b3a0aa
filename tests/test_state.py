"""P5: everything that a run needs is in its state dicts, and what is lost, foreign or damaged is noticed and refused.

Resuming is the run that never stopped, to the bit. Interchange with torch.optim.SGD, copies and most bad states are in
test_optim_drop_in.py, torch.distributed.checkpoint is in test_state_dcp.py.
"""

import copy
import doctest
import io
import pickle
from pathlib import Path

import pytest
import torch
from state_cases import loss_of, mlp, params_of, snapshot, train

from dsd_kernels import MaskedSGD
from dsd_kernels.flows import DSD

OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def masked_run(**options):
    """A model in the middle of training, its matrices masked, its biases not."""
    model = mlp()
    optimizer = MaskedSGD(model.parameters(), **OPTIONS | options)
    train(model, optimizer, range(2))
    optimizer.prune(0.5)
    train(model, optimizer, range(2, 4))
    return model, optimizer


def through_torch_save(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def through_pickle(obj):
    return pickle.loads(pickle.dumps(obj))


@pytest.mark.feature("State", "copy.deepcopy and pickle")
@pytest.mark.parametrize("copier", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0}, {"full_state_dict": True}], ids=["plain", "no momentum", "full"]
)
def test_a_copy_trains_on_as_the_original_and_apart_from_it(copier, options):
    model, optimizer = masked_run(**options)
    twin_model, twin = copier((model, optimizer))
    before = snapshot(twin)
    train(model, optimizer, range(4, 7))
    assert snapshot(twin) == before
    train(twin_model, twin, range(4, 7))
    assert snapshot(twin) == snapshot(optimizer)
    assert twin.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


class Run:
    """A whole training program: scaled gradients, overflows, a scheduler per step, DSD, masks."""

    n_steps = 10
    overflows = (0, 4, 7)  # the first step, one of the sparse phase, the first of the re-dense one

    def __init__(self, fused, mask_momentum, momentum):
        self.model = mlp()
        options = OPTIONS | {"fused": fused, "mask_momentum": mask_momentum}
        self.optimizer = MaskedSGD(self.model.parameters(), **options)
        # cycles both lr and momentum, so that what the groups hold must come back too
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=0.5, total_steps=self.n_steps + 1)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        self.flow = DSD(
            self.optimizer, self.model, dense=2, sparse=3, redense=1, iterations=2, sparsity=0.5, unit="step",
            momentum=momentum,
        )  # fmt: skip

    def parts(self):
        return vars(self)

    def go(self, steps):
        for step in steps:
            self.optimizer.zero_grad()
            self.scaler.scale(loss_of(self.model, step)).backward()
            if step in self.overflows:
                self.model[2].weight.grad[1, 1] = torch.inf
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.flow.step()
            self.scheduler.step()

    def outcome(self):
        others = {name: part.state_dict() for name, part in self.parts().items() if name not in ("model", "optimizer")}
        return snapshot(self.optimizer), self.optimizer.state_dict()["param_groups"], str(others)


@pytest.mark.feature("State", "resume at any step, with scheduler, GradScaler, flow and masks")
@pytest.mark.parametrize("fused", [None, True], ids=["scaler unscales", "kernel unscales"])
@pytest.mark.parametrize(("mask_momentum", "momentum"), [("zero", "keep"), ("keep", "zero_regrown")])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")  # the first step is skipped
def test_resume_at_any_step_of_any_phase_is_the_run_that_never_stopped(fused, mask_momentum, momentum):
    settings = fused, mask_momentum, momentum
    uninterrupted = Run(*settings)
    uninterrupted.go(range(Run.n_steps))
    stopped = Run(*settings)
    phases = []
    for step in range(Run.n_steps):
        saved = through_torch_save({name: part.state_dict() for name, part in stopped.parts().items()})
        resumed = Run(*settings)
        for name, part in resumed.parts().items():
            part.load_state_dict(saved[name])
        phases.append(resumed.flow.phase.name)
        resumed.go(range(step, Run.n_steps))
        assert resumed.outcome() == uninterrupted.outcome(), f"stopped before step {step}"
        stopped.go([step])
    assert phases == ["dense"] * 2 + ["sparse"] * 3 + ["redense"] + ["sparse"] * 3 + ["redense"]


@pytest.mark.feature("State", "a state dict that lost its masks", answer="refused")
@pytest.mark.parametrize("n_left", [1, 0])
def test_a_lost_mask_is_noticed(n_left):
    _, optimizer = masked_run()
    before, state = snapshot(optimizer), optimizer.state_dict()
    for index in (0, 2)[n_left:]:
        del state["state"][index]["mask"]
    text = rf"param_groups\[0\].*expected masks of 2 parameters, got {n_left}.*full_state_dict=True"
    with pytest.raises(ValueError, match=text):
        optimizer.load_state_dict(state)
    assert snapshot(optimizer) == before


def test_a_mask_too_many_is_noticed():
    _, optimizer = masked_run()
    before, state = snapshot(optimizer), optimizer.state_dict()
    state["state"][1]["mask"] = torch.ones(33, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"param_groups\[0\].*expected masks of 2 parameters, got 3"):
        optimizer.load_state_dict(state)
    assert snapshot(optimizer) == before


def test_a_state_dict_counts_the_masks_of_each_group():
    model = mlp()
    optimizer = MaskedSGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1)
    assert [group["n_masked"] for group in optimizer.state_dict()["param_groups"]] == [0, 0]
    optimizer.prune(0.5, list(model[2].parameters()))
    assert [group["n_masked"] for group in optimizer.state_dict()["param_groups"]] == [0, 2]
    optimizer.densify(model[2].bias)
    assert [group["n_masked"] for group in optimizer.state_dict()["param_groups"]] == [0, 1]


def test_state_dicts_of_before_the_count_load():
    _, optimizer = masked_run()
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["n_masked"]
    fresh = MaskedSGD(copy.deepcopy(params_of(optimizer)), lr=1.0)
    fresh.load_state_dict(state)
    assert snapshot(fresh) == snapshot(optimizer)


@pytest.mark.feature("State", "a state dict with a mask for every parameter")
def test_a_full_state_dict_has_a_mask_for_every_parameter_and_all_true_means_none():
    model, optimizer = masked_run(full_state_dict=True)
    state = optimizer.state_dict()
    masks = [state["state"][i]["mask"] for i in range(4)]
    assert [(mask.dtype, mask.shape) for mask in masks] == [(torch.bool, p.shape) for p in model.parameters()]
    assert [bool(mask.all()) for mask in masks] == [False, True, False, True]
    assert state["param_groups"][0]["n_masked"] == 4
    fresh = MaskedSGD(copy.deepcopy(params_of(optimizer)), full_state_dict=True, **OPTIONS)
    fresh.load_state_dict(state)
    assert len(fresh.masks) == len(optimizer.masks) == 2
    assert snapshot(fresh) == snapshot(optimizer)


def test_a_full_state_dict_of_an_optimizer_that_never_stepped_loads():
    model = mlp()
    optimizer = MaskedSGD(model.parameters(), full_state_dict=True, **OPTIONS)
    assert not optimizer.state
    optimizer.load_state_dict(through_torch_save(optimizer.state_dict()))
    assert optimizer.masks == {}
    assert not optimizer.state


def test_every_parameter_has_an_entry_beside_masks():
    """A strict torch.distributed.checkpoint looks for one as soon as any parameter has one."""
    model = mlp()
    optimizer = MaskedSGD(model.parameters(), lr=0.1)
    assert optimizer.state_dict()["state"] == {}
    optimizer.prune(0.5)
    state = optimizer.state_dict()["state"]
    assert {index: list(entry) for index, entry in state.items()} == {0: ["mask"], 1: [], 2: ["mask"], 3: []}


def adam(model):
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, range(1))
    return optimizer.state_dict()


def other_model(model):
    model[2] = torch.nn.Linear(33, 7)
    optimizer = MaskedSGD(model.parameters(), **OPTIONS)
    optimizer.prune(0.5)
    return optimizer.state_dict()


def reordered(model):
    """Saved by a program that listed the layers the other way round."""
    optimizer = MaskedSGD([*model[2].parameters(), *model[0].parameters()], **OPTIONS)
    train(model, optimizer, range(1))
    return optimizer.state_dict()


def one_layer_less(model):
    optimizer = MaskedSGD(model[0].parameters(), **OPTIONS)
    optimizer.prune(0.5)
    return optimizer.state_dict()


def split_into_groups(model):
    return MaskedSGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], **OPTIONS).state_dict()


FOREIGN = {
    "Adam's": (adam, r"expected a group of SGD, but param_groups\[0\] has no 'momentum'"),
    "of another width": (other_model, r"mask of params\[2\].*expected shape \(5, 33\), got \(7, 33\)"),
    "in another order": (reordered, r"momentum_buffer of params\[0\].*expected shape \(33, 6\), got \(5, 33\)"),
    "of fewer layers": (one_layer_less, "doesn't match the size of optimizer's group"),
    "of other groups": (split_into_groups, "different number of parameter groups"),
}


@pytest.mark.feature("State", "another optimizer's, truncated, reordered or resized state", answer="refused")
@pytest.mark.parametrize("case", FOREIGN)
def test_a_state_dict_of_another_run_is_refused_whole(case):
    make, text = FOREIGN[case]
    _, optimizer = masked_run()
    before, groups = snapshot(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=text):
        optimizer.load_state_dict(make(mlp()))
    assert snapshot(optimizer) == before
    assert optimizer.state_dict()["param_groups"] == groups


@pytest.mark.feature("State", "a mask that does not match its parameter", answer="refused")
@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (torch.ones(33, 5, dtype=torch.bool), r"expected shape \(5, 33\), got \(33, 5\)"),
        (torch.ones(24, dtype=torch.uint8), r"expected shape \(5, 33\), got \(24,\)"),  # packed bits
        (torch.full((5, 33), 0.5), "expected a bool tensor, got torch.float32 with values other than 0 and 1"),
        ([True] * 165, "expected a bool tensor, got list"),
    ],
    ids=["transposed", "packed", "fractions", "list"],
)
def test_one_bad_mask_among_good_ones_changes_nothing(mask, text):
    model, optimizer = masked_run()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["mask"].logical_not_()  # good, and another than the optimizer's
    state["state"][2]["mask"] = mask
    state["param_groups"][0]["lr"] = 0.7
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=rf"mask of params\[2\] of param_groups\[0\]: {text}"):
        optimizer.load_state_dict(state)
    assert snapshot(optimizer) == before
    assert optimizer.param_groups[0]["lr"] == 0.1
    with pytest.raises((TypeError, ValueError), match=r"masks: expected .* params\[2\]"):
        optimizer.set_masks({model[0].weight: state["state"][0]["mask"], model[2].weight: mask})
    assert snapshot(optimizer) == before


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch):
    page = Path(__file__).parents[1] / "docs" / "checkpoints.md"
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert (failed, attempted > 20) == (0, True)
