"""Training over ranks is that of one process, to the bit: DDP, FSDP2, HSDP, tensor parallelism, and both of these.

Gradients do not depend on the weights and are small integers, so that every order of adding them up is exact; what
remains is the arithmetic of the update, which is the same for each weight wherever it lies.
"""

import copy
import itertools

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
from torch.distributed.tensor import DTensor, Shard
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
        assert all(bits_equal(whole(ours[key]), expected[key]) for key in expected), name
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
    parallelize_module(model.even, mesh, ColwiseParallel(output_layouts=whole_output()))
    return parallelize_module(model, mesh, {"flat": RowwiseParallel(input_layouts=whole_output())})


def whole_output():
    from torch.distributed.tensor import Replicate

    return Replicate()


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


CHECKS = (training,)


@pytest.fixture(scope="module", params=[2, 4])
def failed(request, tmp_path_factory):
    return failures(request.param, CHECKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_over_ranks(failed, check):
    assert check.__name__ not in failed, failed[check.__name__]
