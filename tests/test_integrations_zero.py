"""ZeroMaskedSGD over one and two ranks is bitwise one MaskedSGD over all parameters, masks and state dicts included."""

import copy

import pytest
import torch
import torch.multiprocessing
from cases import bits_equal, generator, normal

from dsd_kernels import MaskedSGD
from dsd_kernels.flows import DSD

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)
from torch import distributed

from dsd_kernels.integrations.zero import ZeroMaskedSGD, ZeroRedundancyOptimizer

OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def network(seed=0):
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5), torch.nn.Linear(5, 3))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator(seed)))
    return net


def groups(net):
    return [{"params": net[0].parameters()}, {"params": [*net[2].parameters(), *net[3].parameters()], "lr": 0.05}]


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        net(normal(32, torch.float32, seed=step).view(4, 8)).square().mean().backward()
        optimizer.step()


def assert_same(net, other):
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert p.isfinite().all()
        assert bits_equal(p.detach(), q.detach())


def consolidated(optimizer, folder):
    """The state of all ranks, on each of them."""
    optimizer.consolidate_state_dict(to=0)
    if distributed.get_rank() == 0:
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    distributed.barrier()
    return torch.load(folder / "optimizer.pt", weights_only=True)


def assert_same_state(state, expected):
    assert state["param_groups"] == expected["param_groups"]
    assert state["state"].keys() == expected["state"].keys()
    for i, entry in expected["state"].items():
        assert state["state"][i].keys() == entry.keys()
        assert all(torch.equal(state["state"][i][key], entry[key]) for key in entry)


def steps_and_masks(folder, **options):
    net, reference = network(), network()
    ours, theirs = ZeroMaskedSGD(groups(net), **OPTIONS, **options), MaskedSGD(groups(reference), **OPTIONS)
    n_own = sum(len(group["params"]) for group in ours.optim.param_groups)
    assert n_own == 6 if distributed.get_world_size() == 1 else 0 < n_own < 6
    for sparsity in (0.5, 0.75):
        train(net, ours, range(2))
        train(reference, theirs, range(2))
        assert_same(net, reference)
        ours.prune(sparsity)
        theirs.prune(sparsity)
        assert_same(net, reference)  # on every rank, before a step brings the weights of the others
    train(net, ours, range(2))
    train(reference, theirs, range(2))
    assert_same(net, reference)
    ours.optim.verify()
    assert all(mask.equal(theirs.masks[q]) for p, mask in ours.masks.items() for q in [twin(p, net, reference)])
    assert_same_state(consolidated(ours, folder), theirs.state_dict())
    ours.densify()
    assert ours.masks == {}


def twin(parameter, net, other):
    return next(q for p, q in zip(net.parameters(), other.parameters(), strict=True) if p is parameter)


def set_masks(folder):
    net, reference = network(), network()
    ours, theirs = ZeroMaskedSGD(groups(net), **OPTIONS), MaskedSGD(groups(reference), **OPTIONS)
    ours.set_masks({p: p.detach() > 0 for p in net.parameters()})
    theirs.set_masks({p: p.detach() > 0 for p in reference.parameters()})
    train(net, ours, range(3))
    train(reference, theirs, range(3))
    assert_same(net, reference)


def resume(folder):
    net = network()
    optimizer = ZeroMaskedSGD(groups(net), **OPTIONS)
    train(net, optimizer, range(2))
    optimizer.prune(0.5)
    train(net, optimizer, range(2))
    weights, state = copy.deepcopy(net.state_dict()), consolidated(optimizer, folder)
    train(net, optimizer, range(2, 5))
    for cls in (ZeroMaskedSGD, MaskedSGD):
        resumed = network(seed=9)
        fresh = cls(groups(resumed), lr=0.7)
        resumed.load_state_dict(weights)
        fresh.load_state_dict(copy.deepcopy(state))
        train(resumed, fresh, range(2, 5))
        assert_same(resumed, net)
        assert fresh.param_groups[1]["lr"] == 0.05
        inner = getattr(fresh, "optim", fresh)
        assert inner.state.keys() == {p for group in inner.param_groups for p in group["params"]}  # its share alone
    assert_same_state(consolidated(optimizer, folder), fresh.state_dict())


def plain_without_masks(folder):
    net, reference = network(), network()
    ours = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=MaskedSGD, **OPTIONS)
    theirs = MaskedSGD(reference.parameters(), **OPTIONS)
    train(net, ours, range(2))
    train(reference, theirs, range(2))
    state = consolidated(ours, folder)
    assert_same_state(state, theirs.state_dict())
    fresh = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=MaskedSGD, lr=0.7)
    fresh.load_state_dict(state)
    train(net, fresh, range(2, 4))
    train(reference, theirs, range(2, 4))
    assert_same(net, reference)


def bad_states(folder):
    net = network()
    optimizer = ZeroMaskedSGD(groups(net), **OPTIONS)
    optimizer.prune(0.5)
    state = consolidated(optimizer, folder)
    before = optimizer.masks
    with pytest.raises(ValueError, match=r"state_dict: expected param_groups of \[2, 4\] parameters, got \[2\]"):
        optimizer.load_state_dict({**state, "param_groups": state["param_groups"][:1]})
    for entry in state["state"].values():
        entry["mask"] = torch.ones(7) > 0
    with pytest.raises(ValueError, match=r"state_dict: mask of params\[.\] of param_groups\[.\]"):
        optimizer.load_state_dict(state)
    assert all(optimizer.masks[p].equal(mask) for p, mask in before.items())


def refusals(folder):
    net = network()
    with pytest.raises(ValueError, match="no supported functional optimizer equivalent"):
        ZeroMaskedSGD(net.parameters(), lr=0.1, overlap_with_ddp=True)
    with pytest.raises(TypeError, match="optimizer: expected a MaskedSGD, got ZeroMaskedSGD"):
        DSD(ZeroMaskedSGD(net.parameters(), lr=0.1), net, dense=1, sparse=1, redense=1, sparsity=0.5)


def bucket_view(folder):
    steps_and_masks(folder, parameters_as_bucket_view=True)


CHECKS = (plain_without_masks, steps_and_masks, bucket_view, set_masks, resume, bad_states)


def in_group(rank, n_ranks, folder, checks):
    """Run checks as one rank of a group."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=n_ranks)
    try:
        for check in checks:
            check(folder)
    finally:
        distributed.destroy_process_group()


@pytest.mark.feature("Frameworks", "ZeroRedundancyOptimizer over MaskedSGD, without masks")
@pytest.mark.feature("Frameworks", "ZeroRedundancyOptimizer with masks, by integrations.zero.ZeroMaskedSGD")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_one_rank_is_bitwise_masked_sgd(tmp_path, check):
    in_group(0, 1, tmp_path, [check])


@pytest.mark.feature("Frameworks", "ZeroRedundancyOptimizer over MaskedSGD, without masks")
@pytest.mark.feature("Frameworks", "ZeroRedundancyOptimizer with masks, by integrations.zero.ZeroMaskedSGD")
def test_two_ranks_are_bitwise_masked_sgd(tmp_path):
    torch.multiprocessing.spawn(in_group, (2, tmp_path, CHECKS), nprocs=2)


@pytest.mark.feature("Frameworks", "ZeroRedundancyOptimizer with overlap_with_ddp", answer="refused")
@pytest.mark.feature("Frameworks", "flows over ZeroRedundancyOptimizer", answer="refused")
def test_what_cannot_work_over_ranks_is_refused(tmp_path):
    in_group(0, 1, tmp_path, [refusals])
