"""Training over ranks is that of one process, to the bit: DDP, FSDP2, HSDP, tensor parallelism, and both of these.

Gradients do not depend on the weights and are small integers, so that every order of adding them up is exact; what
remains is the arithmetic of the update, which is the same for each weight wherever it lies.
"""

import copy
import doctest
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cases import bits_equal, generator
from torch import nn

from dsd_kernels import MaskedSGD, distributed, masks
from dsd_kernels.flows import DSD, GaP

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)
import torch.distributed.checkpoint as dcp
from rank_cases import failures
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

N_INPUTS, N_OUTPUTS, BATCH = 12, 8, 8
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}


class Branches(nn.Module):
    """Layers side by side: one that is cut evenly, some that are not, one with fewer rows than ranks."""

    def __init__(self):
        super().__init__()
        self.even = nn.Linear(N_INPUTS, N_OUTPUTS)
        self.odd = nn.Linear(N_INPUTS, 7, bias=False)
        self.flat = nn.Linear(N_INPUTS, 1)
        self.conv = nn.Conv1d(4, 3, 3)
        for seed, p in enumerate(self.parameters()):
            # quarters: many weights tie, over the borders of shards too
            p.data.copy_(torch.randn(p.shape, generator=generator(seed)).mul(4).round().div(4))

    def forward(self, x):
        conv = self.conv(x.view(-1, 4, 3)).flatten(1)
        return torch.cat([self.even(x), self.odd(x), self.flat(x), conv], dim=1)


def batch(step, dtype):
    """Small integers: the inputs, and how much each output counts in the loss."""
    random = generator(100 + step)
    return (torch.randint(-1, 2, (BATCH, n), generator=random).to(dtype) for n in (N_INPUTS, N_OUTPUTS + 7 + 1 + 3))


def train(model, optimizer, steps, rows=slice(None)):
    """Steps over the rows of each batch; the gradients of all ranks' rows are averaged, over equal numbers of rows."""
    for step in steps:
        inputs, weights = (part[rows] for part in batch(step, next(model.parameters()).dtype))
        optimizer.zero_grad()
        (model(inputs) * weights).sum().div(len(inputs)).backward()
        optimizer.step()


def own_rows(rank=None, n_ranks=None):
    rank, n_ranks = (dist.get_rank(), dist.get_world_size()) if rank is None else (rank, n_ranks)
    size = BATCH // n_ranks
    return slice(rank * size, (rank + 1) * size)


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def named_masks(model, optimizer):
    found = optimizer.masks
    return {name.removeprefix("module."): found[p] for name, p in model.named_parameters() if p in found}


def assert_same(model, optimizer, expected_model, expected_optimizer):
    """Weights, masks and all state, to the bit."""
    theirs = dict(expected_model.named_parameters())
    for name, p in model.named_parameters():
        q = theirs[name.removeprefix("module.")]
        assert bits_equal(whole(p), q.detach()), name
        ours, expected = optimizer.state.get(p, {}), expected_optimizer.state.get(q, {})
        assert ours.keys() == expected.keys()
        kept = expected.keys() - {"mask"}  # which is only a name there, and empty
        assert all(bits_equal(whole(ours[key]), expected[key]) for key in kept), name
    found, expected = named_masks(model, optimizer), named_masks(expected_model, expected_optimizer)
    assert found.keys() == expected.keys()
    assert all(whole(found[name]).equal(expected[name]) for name in found)


def mesh_of(*shape):
    return dist.init_device_mesh("cpu", shape, mesh_dim_names=("outer", "inner")[: len(shape)])


def fsdp(model, **options):
    for layer in (model.even, model.odd):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def by_columns(p):
    return Shard(1) if p.dim() > 1 else None


def tensor_parallel(model, mesh):
    """`odd` has rows that do not divide: torch replicates its output, which DTensor then pads."""
    parallelize_module(model.even, mesh, ColwiseParallel(output_layouts=Replicate()))
    return parallelize_module(model, mesh, {"flat": RowwiseParallel(input_layouts=Replicate())})


def layouts():
    """{name: (how a model is laid out over the ranks, the rows that this rank trains with)}"""
    n = dist.get_world_size()
    found = {
        "DDP": (DistributedDataParallel, own_rows()),
        "FSDP2": (fsdp, own_rows()),
        "FSDP2 by columns": (lambda m: fsdp(m, shard_placement_fn=by_columns), own_rows()),
        "FSDP2 offloaded": (lambda m: fsdp(m, offload_policy=CPUOffloadPolicy(pin_memory=False)), own_rows()),
        "tensor parallel": (lambda m: tensor_parallel(m, mesh_of(n)), slice(None)),
    }
    if n == 4:
        square = mesh_of(2, 2)
        outer = own_rows(square.get_local_rank("outer"), 2)
        found |= {
            "HSDP": (lambda m: fsdp(m, mesh=square), own_rows()),
            "FSDP2 and tensor parallel": (
                lambda m: fsdp(tensor_parallel(m, square["inner"]), mesh=square["outer"]),
                outer,
            ),
        }
    return found


def twins(lay_out, dtype=torch.float32, **options):
    """A model laid out over the ranks, and the same model whole, each with its optimizer."""
    model, expected = (Branches().to(dtype) for _ in range(2))
    model = lay_out(model)
    options = OPTIONS | options
    return (model, MaskedSGD(model.parameters(), **options)), (expected, MaskedSGD(expected.parameters(), **options))


PRECISIONS = {
    "float32": {},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "masters": {"dtype": torch.bfloat16, "master_weights": True},
    "float32 momentum": {"dtype": torch.bfloat16, "momentum_dtype": torch.float32},
}


def training(folder):
    """Pruning before the first step, with ties everywhere; in training; again; and by one threshold for the model."""
    for (name, (lay_out, rows)), (precision, options) in itertools.product(layouts().items(), PRECISIONS.items()):
        if precision != "float32" and name not in ("DDP", "FSDP2", "HSDP"):
            continue
        ours, theirs = twins(lay_out, **options)
        for start, sparsity in ((0, 0.3), (1, 0.5), (3, 0.8)):
            for (model, optimizer), own in ((ours, rows), (theirs, slice(None))):
                optimizer.prune(sparsity)
                train(model, optimizer, range(start, start + 2), own)
            assert_same(*ours, *theirs)
        for model, optimizer in (ours, theirs):
            optimizer.densify()
            plan = masks.plan(model, 0.6, "global", min_weights=1, exclude_first=False)
            optimizer.prune(plan.sparsities())
        assert_same(*ours, *theirs)
        ours[1].verify()
        distributed.verify(ours[1])
        assert ours[1].sparsity().overall == theirs[1].sparsity().overall
        assert str(ours[1].verify()).splitlines()[1:] == str(theirs[1].verify()).splitlines()[1:]


def trained(lay_out, rows=None, **options):
    """In the middle of a sparse phase: some parameters masked."""
    ours, theirs = twins(lay_out, full_state_dict=True, **options)
    for (model, optimizer), own in ((ours, own_rows() if rows is None else rows), (theirs, slice(None))):
        train(model, optimizer, range(2), own)
        even, odd = (getattr(model, "module", model).get_submodule(name).weight for name in ("even", "odd"))
        optimizer.prune({even: 0.5, odd: 0.7})
        train(model, optimizer, range(2, 4), own)
        optimizer.zero_grad()
    return ours, theirs


def state_dicts_interchange(folder):
    """`torch.optim.SGD` steps on from our state, momentum and all, and we from its."""
    ours, theirs = twins(fsdp)
    for (model, optimizer), own in ((ours, own_rows()), (theirs, slice(None))):
        train(model, optimizer, range(2), own)
    stock = torch.optim.SGD(ours[0].parameters(), lr=0.7, foreach=False)
    stock.load_state_dict(copy.deepcopy(ours[1].state_dict()))
    train(ours[0], stock, range(2, 4), own_rows())
    back = MaskedSGD(ours[0].parameters(), lr=0.7)
    back.load_state_dict(copy.deepcopy(stock.state_dict()))
    train(ours[0], back, range(4, 6), own_rows())
    train(*theirs, range(2, 6))
    assert_same(ours[0], back, *theirs)


def whole_state_loads_into_shards(folder):
    """The state dict of one process, momentum and masks whole, given to an optimizer of shards."""
    for options in ({}, {"dtype": torch.bfloat16, "master_weights": True}):
        ours, theirs = twins(fsdp, **options)
        model, optimizer = theirs
        train(model, optimizer, range(2))
        optimizer.prune(0.5)
        for p, q in zip(ours[0].parameters(), model.parameters(), strict=True):
            p.detach().copy_(distribute_tensor(q.detach(), p.device_mesh, p.placements))
        ours[1].load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for (m, o), own in ((ours, own_rows()), (theirs, slice(None))):
            train(m, o, range(2, 4), own)
        assert_same(*ours, *theirs)


def checkpoint_resharded(folder):
    """Saved by all ranks, loaded by half of them, saved by these and loaded by all: the same bits, and steps go on."""
    n = dist.get_world_size()
    few = list(range(n // 2))
    group, is_few = dist.new_group(few), dist.get_rank() in few
    half = dist.DeviceMesh("cpu", few)
    for options in ({}, {"dtype": torch.bfloat16, "master_weights": True}):
        ours, theirs = trained(fsdp, **options)
        path = folder / f"{len(options)}"
        save(ours, path / "all")
        train(*theirs, range(4, 6))
        if is_few:
            resumed = load(lambda m: fsdp(m, mesh=half), path / "all", group, **options)
            train(*resumed, range(4, 6), own_rows(dist.get_rank(), len(few)))
            assert_same(*resumed, *theirs)
            resumed[1].zero_grad()
            save(resumed, path / "few", group)
        dist.barrier()
        resumed = load(fsdp, path / "few", None, **options)
        train(*resumed, range(6, 8), own_rows())
        train(*theirs, range(6, 8))
        assert_same(*resumed, *theirs)
        resumed[1].verify()


def save(run, path, group=None):
    model, optimizer = get_state_dict(*run)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=path, process_group=group)


def load(lay_out, path, group, dtype=torch.float32, **options):
    model = lay_out(Branches().to(dtype))
    run = model, MaskedSGD(model.parameters(), lr=0.7, momentum=0.5, full_state_dict=True, **options)
    model_state, optimizer_state = get_state_dict(*run)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=path, process_group=group)
    set_state_dict(*run, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return run


def flows(folder):
    """DSD and grow-and-prune with random masks, policies of momentum and restored values, over shards."""
    for kind, options in (
        (DSD, {"dense": 1, "sparse": 2, "redense": 1, "sparsity": 0.5, "momentum": "zero_regrown"}),
        (DSD, {"dense": 1, "sparse": 1, "redense": 1, "sparsity": 0.5, "regrown": "restore", "distribution": "erk"}),
        (DSD, {"dense": 1, "sparse": 2, "redense": 1, "sparsity": 0.5, "selection": "random"}),
        (DSD, {"dense": 1, "sparse": 1, "redense": 1, "sparsity": 0.6, "distribution": "global"}),
        (GaP, {"partitions": 2, "grow": 1, "rounds": 2, "final": 1, "sparsity": 0.5}),
    ):
        ours, theirs = twins(fsdp)
        flow, expected = (kind(o, m, min_weights=1, exclude_first=False, **options) for m, o in (ours, theirs))
        while not expected.finished:
            for (model, optimizer), own in ((ours, own_rows()), (theirs, slice(None))):
                train(model, optimizer, [expected.position], own)
            assert_same(*ours, *theirs)
            flow.step()
            expected.step()
        assert flow.finished
        assert_same(*ours, *theirs)


def given_masks(folder):
    """A mask is given whole or placed as its parameter; one placed otherwise is moved there."""
    (model, optimizer), (expected, reference) = twins(fsdp)
    for name in ("even.weight", "odd.weight", "flat.weight"):
        p, q = model.get_parameter(name), expected.get_parameter(name)
        mask = torch.rand(q.shape, generator=generator(len(name))) > 0.5
        reference.set_masks({q: mask})
        by_columns = distribute_tensor(mask, p.device_mesh, [Shard(1)])
        for given in (mask, optimizer.masks.get(p, mask), by_columns):
            optimizer.set_masks({p: given})
            found = optimizer.masks[p]
            assert found.placements == p.placements
            assert found.full_tensor().equal(mask)
    train(model, optimizer, range(2), own_rows())
    train(expected, reference, range(2))
    assert_same(model, optimizer, expected, reference)
    plain = MaskedSGD([torch.ones(12, 8)], lr=0.1)
    [p] = plain.param_groups[0]["params"]
    with pytest.raises(TypeError, match=r"masks: expected a plain tensor for params\[0\]"):
        plain.set_masks({p: distribute_tensor(torch.ones(12, 8) > 0, mesh_of(2), [Shard(0)])})


def structured(folder):
    """2:4 where the groups lie whole on one rank; refused where they do not."""
    ours, theirs = twins(fsdp)
    for model, optimizer in (ours, theirs):
        optimizer.prune(0.5, [model.even.weight, model.odd.weight], structure="2:4")
    assert_same(*ours, *theirs)
    model = fsdp(Branches(), shard_placement_fn=by_columns)
    optimizer = MaskedSGD(model.parameters(), lr=0.1)
    if N_INPUTS // dist.get_world_size() % 4:
        with pytest.raises(ValueError, match=r"input dimension of params\[0\].*local shard.*is not a multiple of 4"):
            optimizer.prune(0.5, [model.even.weight], structure="2:4")
        assert optimizer.masks == {}


def structured_on_some_ranks(folder):
    """Groups of 3 in 15 columns: the last of 4 ranks holds a whole group, and says no with the others."""
    n = dist.get_world_size()
    whole = torch.ones(2, 15)
    tensor = nn.Parameter(distribute_tensor(whole, mesh_of(n), [Shard(1)]))
    optimizer = MaskedSGD([tensor], lr=0.1)
    match = r"input dimension of {}, but that of a local shard, \d, is not a multiple of 3"
    with pytest.raises(ValueError, match=match.format(r"params\[0\] of param_groups\[0\]")):
        optimizer.prune(2 / 3, structure="1:3")
    for make in (masks.magnitude_masks, masks.random_masks):
        with pytest.raises(ValueError, match=match.format(r"tensors\[0\]")):
            make([tensor], 2 / 3, structure="1:3")
    assert optimizer.masks == {}


def masks_of_tensors(folder):
    """`magnitude_masks` and `random_masks` of DTensors are those of whole tensors."""
    model, expected = fsdp(Branches()), Branches()
    tensors, wholes = list(model.parameters()), list(expected.parameters())
    for make in (
        lambda t: masks.magnitude_masks(t, 0.4),
        lambda t: masks.magnitude_masks(t, 0.4, "global"),
        lambda t: masks.magnitude_masks([t[0]] * 2, [0.2, 0.9]),
        lambda t: masks.magnitude_masks([t[0]], 0.5, structure="2:4"),
        lambda t: masks.random_masks(t, 0.4, generator(3)),
        lambda t: masks.random_masks([t[0]], 0.5, generator(3), structure="2:4"),
    ):
        assert all(mask.full_tensor().equal(other) for mask, other in zip(make(tensors), make(wholes), strict=True))


def broken_shards(folder):
    """What one rank finds broken in its shard, all ranks say, with the counts of all."""
    (model, optimizer), _ = trained(fsdp)
    own = model.even.weight.detach().to_local()
    if dist.get_rank() == 1:
        own[~optimizer.masks[model.even.weight].to_local()] = 1.0
    n_broken = torch.tensor(int(((own == 1) & ~optimizer.masks[model.even.weight].to_local()).sum()))
    dist.all_reduce(n_broken)
    assert n_broken > 0
    with pytest.raises(RuntimeError, match=rf"params\[0\] of param_groups\[0\]: {n_broken} pruned weights are not"):
        optimizer.verify()


def replicas_that_differ(folder):
    """A rank chose another mask: every rank says so and names it; a broadcast brings the masks of one rank to all."""
    model = DistributedDataParallel(Branches())
    optimizer = MaskedSGD(model.parameters(), **OPTIONS)
    distributed.verify(optimizer)
    optimizer.prune(0.5)
    distributed.verify(optimizer)
    chosen = named_masks(model, optimizer)
    last = dist.get_rank() == dist.get_world_size() - 1
    weight = model.module.odd.weight
    if last:
        mask = optimizer.masks[weight]
        mask.view(-1)[5] ^= True
        optimizer.set_masks({weight: mask})
    with pytest.raises(RuntimeError, match=r"first that of params\[2\] of param_groups\[0\], 1 of \d+ parameters"):
        distributed.verify(optimizer)
    if last:
        optimizer.densify([model.module.even.weight])
        optimizer.set_masks({model.module.even.bias: torch.ones(8) > 0})
    with pytest.raises(RuntimeError, match=r"first that of params\[0\] of param_groups\[0\], 3 of"):
        distributed.verify(optimizer)
    distributed.broadcast(optimizer)
    distributed.verify(optimizer)
    found = named_masks(model, optimizer)
    assert found.keys() == chosen.keys()
    assert all(found[name].equal(chosen[name]) for name in chosen)
    optimizer.verify()


def replicas_whose_words_changed_places(folder):
    """The same 64 bits in other places are another mask."""
    p = torch.zeros(2, 64)
    optimizer = MaskedSGD([p], lr=0.1)
    mask = torch.rand(2, 64, generator=generator(0)) > 0.5
    optimizer.set_masks({p: mask.flip(0) if dist.get_rank() == 0 else mask})
    with pytest.raises(RuntimeError, match="masks differ between ranks"):
        distributed.verify(optimizer)


def masks_of_one_rank_load(folder):
    """A mask that prunes weights of one rank only is loaded as a mask on all of them."""
    model = fsdp(Branches())
    p = model.even.weight
    mask = torch.ones(p.shape, dtype=torch.bool)
    mask[0, :5] = False
    optimizer, loaded = (MaskedSGD(model.parameters(), lr=0.1, full_state_dict=True) for _ in range(2))
    optimizer.set_masks({p: mask})
    loaded.load_state_dict(optimizer.state_dict())
    assert list(loaded.masks) == [p]
    assert loaded.masks[p].full_tensor().equal(mask)


def replicas_of_shards_that_differ(folder):
    """HSDP: two ranks hold the same shard; the ranks of the other shard raise with them."""
    if dist.get_world_size() < 4:
        return
    model = fsdp(Branches(), mesh=mesh_of(2, 2))
    optimizer = MaskedSGD(model.parameters(), **OPTIONS)
    optimizer.prune(0.5)
    distributed.verify(optimizer)
    mask = optimizer.masks[model.odd.weight]
    if dist.get_rank() == 3:
        mask.to_local().view(-1)[2] ^= True
    optimizer.set_masks({model.odd.weight: mask})
    with pytest.raises(RuntimeError, match=r"first that of params\[2\] of param_groups\[0\], 1 of"):
        distributed.verify(optimizer)
    with pytest.raises(TypeError, match=r"optimizer: expected plain parameters, params\[0\].*is a DTensor"):
        distributed.broadcast(optimizer)


def what_selection_sends(folder):
    """One set of all-reduces for all parameters, whatever their number; none for what ranks have whole."""
    (model, optimizer), _ = twins(fsdp)
    for p in model.parameters():
        p.detach().to_local().fill_(0.5)
    with distributed.count_traffic() as sent:
        optimizer.prune(0.5)  # 4 matrices of float32 where all tie; places below 256
    assert sent == distributed.Traffic(n_messages=4 + 1, n_bytes=4 * 8 * 256 * (4 + 1))
    plain = MaskedSGD(DistributedDataParallel(Branches()).parameters(), lr=0.1)
    with distributed.count_traffic() as sent:
        plain.prune(0.5)
    assert sent == distributed.Traffic(0, 0)


def what_steps_and_checks_send(folder):
    """docs/scaling.md: masks add nothing to a step; a check sends one message for all parameters that it looks at."""
    for lay_out, _ in layouts().values():
        (model, optimizer), _ = twins(lay_out)
        train(model, optimizer, range(1), own_rows())
        optimizer.prune(0.5)
        with CommDebugMode() as sent:
            optimizer.step()
        assert sent.get_total_counts() == 0
    (model, optimizer), _ = twins(fsdp)
    optimizer.prune(0.5)
    for check in (optimizer.sparsity, optimizer.verify):
        with CommDebugMode() as sent:
            check()
        assert sent.get_total_counts() == 1


def test_the_page_s_examples_run(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "distributed.md"
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        failed, attempted = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    finally:
        dist.destroy_process_group()
    assert (failed, attempted) == (0, 14)


CHECKS = (
    training,
    state_dicts_interchange,
    whole_state_loads_into_shards,
    checkpoint_resharded,
    flows,
    given_masks,
    structured,
    structured_on_some_ranks,
    masks_of_tensors,
    broken_shards,
    replicas_that_differ,
    replicas_whose_words_changed_places,
    masks_of_one_rank_load,
    replicas_of_shards_that_differ,
    what_selection_sends,
    what_steps_and_checks_send,
)


@pytest.fixture(scope="module", params=[2, 4])
def failed(request, tmp_path_factory):
    return failures(request.param, CHECKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.feature("Ranks and shards", "DDP: masks are equal by construction; distributed.verify and broadcast")
@pytest.mark.feature("Ranks and shards", "FSDP2 (fully_shard), cut along any dimension, unevenly, offloaded to the CPU")
@pytest.mark.feature("Ranks and shards", "HSDP, tensor parallelism, and FSDP2 over tensor parallelism")
@pytest.mark.feature("Ranks and shards", "torch.distributed.checkpoint saved by some ranks and loaded by others")
@pytest.mark.feature("Ranks and shards", "flows over FSDP2")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_over_ranks(failed, check):
    assert check.__name__ not in failed, failed[check.__name__]
