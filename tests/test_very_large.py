"""More than 2**31 elements: indices, counts and k beyond 32 bits, with real writes on both sides of the border.

On the CPU a tensor of 2**31 + 65 zeros takes 0.1 GB: all its blocks of memory are one and the same, but those around
the few weights that are not zero. As every other weight stays zero, no op can tell. On a GPU it takes 4.3 GB.
"""

import ctypes
import mmap
import os
import sys
from importlib import import_module

import pytest
import torch
from cases import bits_equal, normal

import dsd_kernels
from dsd_kernels import kth_magnitude, masked_sgd_, pack_mask, prune_, unpack_mask, use_backend
from dsd_kernels.ops.layout import packed_bytes

BORDER = 2**31
N = BORDER + 65
POSITIONS = torch.tensor([0, 3, BORDER - 1, BORDER, BORDER + 3, BORDER + 40, N - 1])
BLOCK = 1 << 24
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the interpreter's


def libc_mmap():
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return function


def zeros_in_shared_memory(dtype):
    """N zeros; the blocks of `POSITIONS` have memory of their own, all others share that of one block."""
    n_blocks = -(-N * dtype.itemsize // BLOCK)
    address_space = mmap.mmap(-1, n_blocks * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(address_space, dtype=dtype, count=N)
    own = set((POSITIONS * dtype.itemsize // BLOCK).tolist())
    shared, map_memory = os.memfd_create("zeros"), libc_mmap()
    os.ftruncate(shared, BLOCK)
    for block in set(range(n_blocks)) - own:
        address = tensor.data_ptr() + block * BLOCK
        flags = mmap.MAP_SHARED | 0x10  # MAP_FIXED, which Python does not name
        assert map_memory(address, BLOCK, mmap.PROT_READ | mmap.PROT_WRITE, flags, shared, 0) == address
    os.close(shared)
    return tensor


def zeros(dtype, device):
    return zeros_in_shared_memory(dtype) if device == "cpu" else torch.zeros(N, dtype=dtype, device=device)


def tensor_with(values, dtype, device):
    """Zeros, but for the values at `POSITIONS`."""
    tensor = zeros(dtype, device)
    tensor[POSITIONS.to(device)] = torch.tensor(values, dtype=dtype, device=device)
    return tensor


def at_positions(tensor):
    return tensor[POSITIONS.to(tensor.device)].cpu()


def n_nonzero(tensor):
    """Over all memory that the tensor has: on the CPU every block but those around `POSITIONS` is the second one."""
    parts = [tensor[:BLOCK], tensor[BORDER - BLOCK :]] if tensor.device.type == "cpu" else [tensor]
    return sum(int(torch.count_nonzero(part)) for part in parts)


def free_memory(device):
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(backend):
    return pytest.param((backend, "cuda"), marks=needs_gpu, id=f"{backend}-cuda")


@pytest.fixture(params=[pytest.param(("compiled", "cpu"), id="compiled"), on_gpu("triton"), on_gpu("compiled")])
def place(request):
    """The device of a backend that is fast enough for so many weights, inside its scope."""
    backend, device = request.param
    gigabytes = 24 if device == "cuda" else 4
    if sys.platform != "linux":
        pytest.skip("needs Linux, to give many pages the same memory")
    if free_memory(device) < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of free memory on {device}, has {free_memory(device) / 1e9:.1f}")
    if not any(row.available for row in dsd_kernels.backends() if (row.backend, row.device) == request.param):
        pytest.skip(f"needs the {backend} backend on {device}; the reference takes minutes")
    with use_backend(backend):
        yield device


@pytest.mark.feature("Layouts", "more than 2**31 elements: step")
def test_a_step_reaches_weights_on_both_sides_of_the_border(place):
    """Memory: 0.9 GB, 14 GB on a GPU."""
    weights, grads, momentum = [1.0, -2, 3, 4, 5, 6, 7], [1.0, 1, -2, 2, 4, 8, -8], [0.0, 8, 4, 0, -4, 0, 4]
    keep = torch.tensor([True, False, True, False, True, True, False])
    lists = [[tensor_with(values, torch.bfloat16, place)] for values in (weights, grads, momentum)]
    mask = torch.full((packed_bytes(N),), 0xFF, dtype=torch.uint8, device=place)
    for position in POSITIONS[~keep].tolist():
        mask[position // 8] -= 1 << position % 8
    masked_sgd_(*lists, [mask], lr=0.5, momentum=0.5)

    few = [[torch.tensor(values, dtype=torch.bfloat16)] for values in (weights, grads, momentum)]
    masked_sgd_(*few, pack_mask([keep]), lr=0.5, momentum=0.5)
    for (tensor,), (expected,) in zip(lists, few, strict=True):
        assert bits_equal(at_positions(tensor), expected)
        assert n_nonzero(tensor) == int(torch.count_nonzero(expected))


@pytest.mark.feature("Layouts", "more than 2**31 elements: kth_magnitude")
def test_a_threshold_is_found_among_more_weights_than_32_bits_count(place):
    """Memory: 0.2 GB, 5 GB on a GPU."""
    tensor = tensor_with([-1.0, 2, -3, 4, 5, -6, 7], torch.bfloat16, place)
    n_zeros = N - len(POSITIONS)
    assert kth_magnitude([tensor], [n_zeros]).item() == 0.0
    assert kth_magnitude([tensor], [n_zeros + 1]).item() == 1.0


@pytest.mark.feature("Layouts", "more than 2**31 elements: prune")
def test_ties_are_pruned_in_memory_order_across_the_border(place):
    """Memory: 0.6 GB, 10 GB on a GPU."""
    weight = tensor_with([-1.0, 0, -3, 4, 5, -6, 7], torch.bfloat16, place)
    buffer = tensor_with([1.0, 2, 3, 4, 5, 6, 7], torch.bfloat16, place)
    (mask,) = prune_([weight], [buffer], k=[BORDER + 10])
    # the pruned zeros: those below index BORDER + 14, of which four are weights that are kept
    kept_beyond = torch.arange(65) >= 14
    kept_beyond[[0, 3]] = True
    assert mask[BORDER // 8 :].equal(pack_mask([kept_beyond.to(place)])[0])
    below = mask[: BORDER // 8]
    assert (int(below[0]), int(below[-1]), int(torch.count_nonzero(below))) == (0b1, 0x80, 2)
    assert at_positions(weight).tolist() == [-1.0, 0, -3, 4, 5, -6, 7]
    assert at_positions(buffer).tolist() == [1.0, 0, 3, 4, 5, 6, 7]
    assert (n_nonzero(weight), n_nonzero(buffer)) == (6, 6)


@pytest.mark.feature("Layouts", "more than 2**31 elements: masks packed and unpacked")
def test_masks_are_packed_and_unpacked_across_the_border(place):
    """Memory: 2.8 GB, 5 GB on a GPU."""
    (packed,) = pack_mask([tensor_with([True] * len(POSITIONS), torch.bool, place)])
    expected = torch.zeros(packed_bytes(N), dtype=torch.uint8)
    for position in POSITIONS.tolist():
        expected[position // 8] += 1 << position % 8
    assert packed.cpu().equal(expected)
    (unpacked,) = unpack_mask([packed], [zeros(torch.bool, place)])
    assert at_positions(unpacked).all()
    assert int(torch.count_nonzero(unpacked)) == len(POSITIONS)


@pytest.mark.parametrize("op", ["pack_mask", "unpack_mask"])
def test_triton_reaches_chunks_whose_offsets_need_more_than_32_bits(monkeypatch, op):
    """A table that says its few chunks are the last of 2**32 weights; test_triton.py does the same for the step.

    Not for selection and prune, which look at weights or counts of the first chunks: they need them all, as on a GPU
    above. A split is tried in test_triton.py.
    """
    far_table = pytest.importorskip("test_triton").far_table
    module = import_module(f"dsd_kernels.ops.triton.{op}")
    near_table, starts = module.address_table, []

    def address_table(chunk_size, *lists):
        table = far_table(near_table(chunk_size, *lists), (1, 1 / 8), chunk_size)
        starts.append(int(table.chunks[0, 1]) * chunk_size)
        return table

    monkeypatch.setattr(module, "address_table", address_table)
    weights = normal(40_000, torch.float32)
    keep = weights > 0
    arguments = ([keep],) if op == "pack_mask" else (pack_mask([keep]), [weights])
    on_device = [[t.to(TRITON_DEVICE) for t in tensors] for tensors in arguments]
    got = getattr(module, op)(*on_device)
    expected = getattr(import_module("dsd_kernels.ops.reference"), op)(*arguments)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.cpu(), b)
    assert starts == [2**32]
