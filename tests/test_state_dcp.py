"""torch.distributed.checkpoint in one process: masks and momentum come back whole, or their loss is an error.

It reads only the keys that the new optimizer's own state dict has, after a made-up step with zero gradients and lr 0;
`MaskedSGD(full_state_dict=True)` therefore has a mask for every parameter in its state dict.
"""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from state_cases import mlp, params_of, snapshot, train
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.distributed.checkpoint.state_dict import StateDictOptions

from dsd_kernels import MaskedSGD

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

OPTION_SETS = {
    "plain": {},
    "flattened": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "on the CPU": {"full_state_dict": True, "cpu_offload": True},
    "flattened, on the CPU": {"flatten_optimizer_state_dict": True, "cpu_offload": True},
}


def build(dtype=torch.float32, lr=0.1, **options):
    """Two groups, the second with a learning rate of its own."""
    model = mlp(dtype)
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": lr / 2}]
    return model, MaskedSGD(groups, **{"lr": lr, "momentum": 0.9, "full_state_dict": True} | options)


def trained(**options):
    """In the middle of a sparse phase: the matrix of the first layer and all of the last one masked."""
    model, optimizer = build(**options)
    train(model, optimizer, range(2))
    optimizer.prune(0.5, [model[0].weight, *model[2].parameters()])
    train(model, optimizer, range(2, 4))
    optimizer.zero_grad()  # a gradient keeps torch.distributed.checkpoint from its made-up step
    return model, optimizer


def fresh(**options):
    """As in a new process: other weights, other learning rate, no masks, no momentum."""
    model, optimizer = build(lr=0.7, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(3.0)
    return model, optimizer


def only(name, optimizer):
    return {key: value for key, value in snapshot(optimizer).items() if key[1] == name}


def masked_names(model, optimizer):
    return [name for name, p in model.named_parameters() if p in optimizer.masks]


def assert_goes_on(run, resumed):
    """Same weights, momentum, masks and groups now, and the same bits after more training."""
    for steps in (range(0), range(4, 7)):
        train(*run, steps)
        train(*resumed, steps)
        assert snapshot(resumed[1]) == snapshot(run[1])
    assert masked_names(*resumed) == masked_names(*run) == ["0.weight", "2.weight", "2.bias"]
    assert [group["lr"] for group in resumed[1].param_groups] == [0.1, 0.05]


def through_files(path, run, resumed, options):
    """Save the one, load into the other, as two processes would."""
    model_state, optimizer_state = dcp_state.get_state_dict(*run, options=options)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=path)
    model_state, optimizer_state = dcp_state.get_state_dict(*resumed, options=options)
    dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=path)
    dcp_state.set_state_dict(*resumed, model_state_dict=model_state, optim_state_dict=optimizer_state, options=options)


@pytest.mark.feature("State", "torch.distributed.checkpoint save and load, with full_state_dict=True")
@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
def test_a_checkpoint_resumes_to_the_bit(tmp_path, options, momentum):
    run, resumed = trained(momentum=momentum), fresh(momentum=momentum)
    through_files(tmp_path, run, resumed, StateDictOptions(**options))
    assert_goes_on(run, resumed)


@pytest.mark.feature("State", "torch.distributed.checkpoint of float32 momentum, master weights, stochastic rounding")
@pytest.mark.parametrize("options", [{}, {"flatten_optimizer_state_dict": True}], ids=["nested", "flattened"])
@pytest.mark.parametrize(
    "precision",
    [{"momentum_dtype": torch.float32}, {"master_weights": True}, {"stochastic_rounding": True}],
    ids=lambda precision: next(iter(precision)),
)
def test_a_checkpoint_of_half_precision_weights_resumes_to_the_bit(tmp_path, precision, options):
    precision = {"dtype": torch.bfloat16, **precision}
    run, resumed = trained(**precision), fresh(**precision)
    through_files(tmp_path, run, resumed, StateDictOptions(**options))
    assert_goes_on(run, resumed)


@pytest.mark.feature("State", "torch.distributed.checkpoint's optimizer state dict functions")
@pytest.mark.parametrize(
    ("momentum", "full_state_dict", "options"),
    [
        (0, False, {}),
        (0.9, False, {}),
        (0.9, True, {}),
        (0.9, False, {"cpu_offload": True}),
        (0.9, False, {"full_state_dict": True}),
        # full_state_dict of both: torch refuses it for a new optimizer that has no tensor in its state, SGD's own too
        (0, True, {"full_state_dict": True}),
    ],
)
def test_its_optimizer_functions_carry_masks_by_name(momentum, full_state_dict, options):
    """Without a file between them nothing is lost, so that masks of the masked parameters are enough."""
    settings = {"momentum": momentum, "full_state_dict": full_state_dict}
    run, options = trained(**settings), StateDictOptions(**options)
    state = copy.deepcopy(dcp_state.get_optimizer_state_dict(*run, options=options))
    assert state["state"]["0.weight"]["mask"].dtype == torch.bool
    resumed = fresh(**settings)
    resumed[0].load_state_dict(run[0].state_dict())
    dcp_state.set_optimizer_state_dict(*resumed, state, options=options)
    assert_goes_on(run, resumed)


def test_a_checkpoint_of_a_dense_phase_comes_back_dense(tmp_path):
    model, optimizer = build()
    train(model, optimizer, range(2))
    optimizer.zero_grad()
    dcp.save({"optimizer": dcp_state.get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path)
    resumed = fresh()
    state = dcp_state.get_optimizer_state_dict(*resumed)
    dcp.load({"optimizer": state}, checkpoint_id=tmp_path)
    dcp_state.set_optimizer_state_dict(*resumed, state)
    assert resumed[1].masks == {}
    assert only("momentum_buffer", resumed[1]) == only("momentum_buffer", optimizer)


@pytest.mark.feature("State", "masks lost by torch.distributed.checkpoint", answer="refused")
@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flattened"])
def test_a_mask_that_the_checkpoint_loses_is_an_error(tmp_path, momentum, flatten):
    settings = {"momentum": momentum, "full_state_dict": False}
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    state = dcp_state.get_optimizer_state_dict(*trained(**settings), options=options)
    dcp.save({"optimizer": state}, checkpoint_id=tmp_path)
    resumed = fresh(**settings)
    state = dcp_state.get_optimizer_state_dict(*resumed, options=options)
    dcp.load({"optimizer": state}, checkpoint_id=tmp_path)
    with pytest.raises(ValueError, match=r"expected masks of 1 parameters, got 0.*full_state_dict=True"):
        dcp_state.set_optimizer_state_dict(*resumed, state, options=options)
    assert resumed[1].masks == {}
    assert [group["lr"] for group in resumed[1].param_groups] == [0.7, 0.35]


@pytest.mark.feature("State", "torch.distributed.checkpoint's made-up step on a fresh optimizer")
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "nesterov": True}, {"dampening": 0.5}], ids=str)
@pytest.mark.parametrize("full_state_dict", [False, True])
def test_the_made_up_step_changes_no_weight_counter_or_mask(full_state_dict, options):
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, :3] = torch.tensor([-0.0, 1e-45, 0.0])
    optimizer = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9, full_state_dict=full_state_dict, **options)
    groups = copy.deepcopy(optimizer.state_dict()["param_groups"])
    weights = only("weight", optimizer)
    dcp_state.get_optimizer_state_dict(model, optimizer)
    assert only("weight", optimizer) == weights
    assert optimizer.state_dict()["param_groups"] == groups
    assert optimizer.masks == {}
    assert [p.grad for p in params_of(optimizer)] == [None] * 4


def test_a_fresh_optimizer_is_known_to_be_fresh():
    """One with state is not stepped by torch.distributed.checkpoint, and would then lose its momentum in loading."""
    assert not fresh(full_state_dict=True)[1].state
    _, masked = fresh(full_state_dict=True)
    masked.prune(0.5)
    assert not masked.state
