"""Selection over shards is bit for bit that of one process: every layout, dtype, tie, on 2 and 4 ranks."""

import itertools
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from cases import DTYPES, awkward

from benchmarks.scaling import Run, payload_bytes
from dsd_kernels import masks, prune_, unpack_mask
from dsd_kernels.distributed import Traffic, count_traffic
from dsd_kernels.ops import shard_selection
from dsd_kernels.ops.global_selection import global_counts
from dsd_kernels.ops.shard_selection import pooled_counts, shard_counts
from dsd_kernels.shards import check_shard, like, shard_of

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)
from rank_cases import failures
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

# even, uneven, fewer rows than ranks, one row, none
SHAPES = ((8, 12), (7, 5), (3, 6), (1, 9), (0, 4), (5, 4, 3), (64,), ())


def layouts():
    """{name: (mesh, placements)} of a mesh of all ranks, in one dimension and in two."""
    n = dist.get_world_size()
    line = dist.init_device_mesh("cpu", (n,), mesh_dim_names=("line",))
    found = {
        "rows": (line, [Shard(0)]),
        "columns": (line, [Shard(1)]),
        "last": (line, [Shard(-1)]),
        "replicated": (line, [Replicate()]),
    }
    if n == 4:
        square = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        found |= {
            "rows by columns": (square, [Shard(0), Shard(1)]),
            "columns by rows": (square, [Shard(1), Shard(0)]),
            "rows twice": (square, [Shard(0), Shard(0)]),
            "columns twice": (square, [Shard(1), Shard(1)]),
            "HSDP": (square, [Replicate(), Shard(0)]),
            "columns, replicated": (square, [Shard(1), Replicate()]),
        }
    return found


def is_cut_by(shape, placements):
    """Whether the shape has the dimensions that placements cut."""
    return all(p.is_replicate() or -len(shape) <= p.dim < len(shape) for p in placements)


def whole_tensors(dtype, placements):
    """Each shape with few distinct magnitudes and all special values; then with one value, where all weights tie."""
    for seed, shape in enumerate(SHAPES):
        if is_cut_by(shape, placements):
            values = awkward(torch.Size(shape).numel(), dtype, seed) if shape else torch.ones(1, dtype=dtype)
            yield values.view(shape)
            yield torch.full(shape, -0.5, dtype=dtype)


def counts_of(n):
    return sorted({0, min(1, n), n // 3, n // 2, n})


def kept(whole, k):
    """The mask that one process makes."""
    return unpack_mask(prune_([whole.clone()], k=[k]), [whole])[0]


def every_layout(folder):
    """All shapes and counts of a layout and dtype in one call, tensors in two memory orders among them."""
    for name, (mesh, placements) in layouts().items():
        for dtype in DTYPES if name in ("rows", "rows by columns") else (torch.float32, torch.bfloat16):
            wholes = list(whole_tensors(dtype, placements))
            wanted = [(whole, k) for whole in wholes for k in counts_of(whole.numel())]
            tensors = [distribute_tensor(whole, mesh, placements) for whole, _ in wanted]
            shards = [shard_of(tensor, tensor.to_local()) for tensor in tensors]
            counts = shard_counts(shards, [k for _, k in wanted])
            for (whole, k), shard, count in zip(wanted, shards, counts, strict=True):
                expected = distribute_tensor(kept(whole, k), mesh, placements).to_local()
                mask = unpack_mask(prune_([shard.local.clone()], k=count[None]), [shard.local])[0]
                assert mask.equal(expected), (name, dtype, tuple(whole.shape), k)


def ties_that_the_host_does_not_read(folder):
    """What a GPU does, where the host would have to wait to know which tensors have ties to break: all take part."""
    with unread():
        every_layout(folder)
        mesh, placements = layouts()["rows"]
        distinct = distribute_tensor(torch.arange(32.0).view(8, 4), mesh, placements)  # one digit tells places apart
        with count_traffic() as sent:
            shard_counts([shard_of(distinct, distinct.to_local())], [7])
        assert sent.n_messages == 4 + 1


def unread():
    return patch.object(shard_selection, "_is_read_at_once", lambda _: False)


def another_memory_order(folder):
    """Ties go by memory, not by index: a weight in channels_last, cut along every dimension in turn."""
    whole = torch.ones(4, 6, 3, 5).to(memory_format=torch.channels_last)
    mesh, _ = layouts()["rows"]
    for dim in range(4):
        tensor = distribute_tensor(whole, mesh, [Shard(dim)])
        own = tensor.to_local().contiguous(memory_format=torch.channels_last)
        count = shard_counts([shard_of(tensor, own)], [100])
        mask = unpack_mask(prune_([own.clone()], k=count), [own])[0]
        expected = torch.ones(whole.numel(), dtype=torch.bool)
        expected[:100] = False
        expected = expected.view(4, 3, 5, 6).permute(0, 3, 1, 2)  # memory order
        assert mask.equal(distribute_tensor(expected.contiguous(), mesh, [Shard(dim)]).to_local()), dim


def fsdp_over_tensor_parallel(folder):
    """FSDP2 cuts the shard of tensor parallelism again, along the same dimension or another; sizes that do not fit."""
    if dist.get_world_size() < 4:
        return
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    for style, shape in itertools.product((ColwiseParallel, RowwiseParallel), ((8, 12), (16, 4), (7, 3), (5, 4))):
        model = torch.nn.Sequential(torch.nn.Linear(*reversed(shape), bias=False))
        whole = awkward(shape[0] * shape[1], torch.float32).view(shape)
        model[0].weight.data.copy_(whole)
        parallelize_module(model, mesh["tp"], {"0": style()})
        fully_shard(model, mesh=mesh["fsdp"])
        weight = model[0].weight
        check_shard("weight", weight)
        own = weight.detach().to_local()
        for k in counts_of(whole.numel()):
            count = shard_counts([shard_of(weight, own)], [k])
            mask = like(weight, unpack_mask(prune_([own.clone()], k=count), [own])[0])
            assert mask.full_tensor().equal(kept(whole, k)), (style, shape, k)


def one_threshold_for_all(folder):
    """As `global_counts` of the whole tensors, over layouts that differ; one of them is whole on every rank."""
    for dtype in DTYPES:
        wholes = [awkward(n, dtype, seed=n).view(shape) for n, shape in ((96, (8, 12)), (35, (7, 5)), (64, (64, 1)))]
        wholes.append(torch.full((4, 4), 0.5, dtype=dtype))
        shards = []
        for whole, (mesh, placements) in zip(wholes, itertools.cycle(layouts().values()), strict=False):
            tensor = distribute_tensor(whole, mesh, placements)
            shards.append(shard_of(tensor, tensor.to_local()))
        for k in counts_of(sum(map(torch.Tensor.numel, wholes))):
            assert pooled_counts(shards, k).tolist() == global_counts(wholes, k).tolist(), (dtype, k)


def traffic(folder):
    """Bytes depend on tensors, rounds and groups, never on weights; ties are asked about only where there are some."""
    mesh, placements = layouts()["rows"]
    for n_rows, n_tensors, dtype, rounds in (
        (8, 1, torch.float32, 4),
        (800, 3, torch.float32, 4),
        (8, 2, torch.bfloat16, 2),
    ):
        whole = (torch.arange(1, n_rows * 4 + 1).double() ** -1).to(dtype).view(n_rows, 4)  # 1/1, 1/2, ...: no ties
        tensor = distribute_tensor(whole, mesh, placements)
        shards = [shard_of(tensor, tensor.to_local())] * n_tensors
        with count_traffic() as sent, count_traffic() as same:
            shard_counts(shards, [n_rows] * n_tensors)
        assert sent == same == Traffic(n_messages=rounds, n_bytes=8 * 256 * n_tensors * rounds)
    for n_tensors, n_rows in ((1, 800), (3, 70)):  # docs/scaling.md
        tied = distribute_tensor(torch.ones(n_rows, 4), mesh, placements)
        with count_traffic() as sent:
            shard_counts([shard_of(tied, tied.to_local())] * n_tensors, [7] * n_tensors)
        run = Run(n_weights=n_tensors * n_rows * 4, n_tensors=n_tensors, n_ranks=mesh.size())
        assert sent == Traffic(run.prune_messages, payload_bytes(n_tensors, run.prune_messages))
        assert run.prune_bytes == 2 * (1 - 1 / mesh.size()) * sent.n_bytes
    ties = distribute_tensor(torch.ones(800, 4), mesh, placements)  # 3,200 places: two digits
    with count_traffic() as sent:
        shard_counts([shard_of(ties, ties.to_local())], [7])
    assert sent == Traffic(n_messages=4 + 2, n_bytes=8 * 256 * (4 + 2))


def traffic_of_two_mesh_dimensions(folder):
    """docs/scaling.md: twice the messages where both cut, no more than in one where the other replicates."""
    if dist.get_world_size() < 4:
        return
    for name, factor in (("rows by columns", 2), ("rows twice", 2), ("HSDP", 1), ("columns, replicated", 1)):
        tied = distribute_tensor(torch.ones(800, 4), *layouts()[name])
        with count_traffic() as sent:
            shard_counts([shard_of(tied, tied.to_local())], [7])
        messages = factor * Run(n_weights=3200, n_tensors=1, n_ranks=2).prune_messages
        assert sent == Traffic(messages, payload_bytes(1, messages)), name


def misplaced(folder):
    mesh, _ = layouts()["rows"]
    partial = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
    with pytest.raises(TypeError, match=r"w: expected a DTensor placed by Shard and Replicate, got .*Partial"):
        check_shard("w", partial)
    short = DTensor.from_local(torch.ones(3, 4), mesh, [Shard(0)], shape=(100, 4), stride=(4, 1))
    with pytest.raises(ValueError, match=r"w: expected a local shard of shape \(\d+, 4\), got \(3, 4\)"):
        check_shard("w", short)
    rows = -(-8 // mesh.size())
    turned = DTensor.from_local(torch.ones(4, rows).t(), mesh, [Shard(0)], shape=(8, 4), stride=(4, 1))
    with pytest.raises(ValueError, match=r"memory order of the whole, of strides \(4, 1\), got strides"):
        check_shard("w", turned)


def no_masks_of_misplaced(folder):
    """Not from the functions of `masks` either, which would else give one rank's answer, or that of another order."""
    mesh, _ = layouts()["rows"]
    fits = distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)])
    partial = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
    whole = torch.ones(8, 4, 3, 5).to(memory_format=torch.channels_last)
    turned = distribute_tensor(whole, mesh, [Shard(0)])
    for bad, error, why in ((partial, TypeError, "got a DTensor placed by Partial"), (turned, ValueError, "order")):
        for make in (
            lambda t: masks.magnitude_masks(t, 0.5),
            lambda t: masks.magnitude_masks(t, 0.5, "global"),
            lambda t: masks.magnitude_masks(t, 0.5, structure="2:4"),
            lambda t: masks.random_masks(t, 0.5),
            masks.masks_from_zeros,
        ):
            with pytest.raises(error, match=rf"^tensors\[1\]: .*{why}"):
                make([fits, bad])
        model = torch.nn.Module()
        model.layer = torch.nn.Module()
        model.layer.weight = torch.nn.Parameter(bad)
        with pytest.raises(error, match=rf"^layer\.weight: .*{why}"):
            masks.plan(model, 0.5, "global", min_weights=1)


CHECKS = (
    every_layout,
    ties_that_the_host_does_not_read,
    another_memory_order,
    fsdp_over_tensor_parallel,
    one_threshold_for_all,
    traffic,
    traffic_of_two_mesh_dimensions,
    misplaced,
    no_masks_of_misplaced,
)


@pytest.fixture(scope="module", params=[2, 4])
def failed(request, tmp_path_factory):
    return failures(request.param, CHECKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.feature("Ranks and shards", "exact selection over shards of DTensors: any Shard and Replicate, 2-D meshes")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_over_ranks(failed, check):
    assert check.__name__ not in failed, failed[check.__name__]
