"""What only the Triton backend promises: chunks, alignment, tables, launches, and rounding in integers.

The kernels run on the GPU if there is one, else in Triton's interpreter; the reference runs on the CPU. What the ops
mean is tested for all backends in test_masked_sgd.py, test_selection.py and test_pack_mask.py.
"""

import sys
from collections import Counter
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import DTYPES, awkward, bits_equal, mostly_nan, normal, stable_sort_keep

triton = pytest.importorskip("triton")

import triton.language as tl
from triton.runtime import interpreter

from dsd_kernels import MaskedSGD, use_backend
from dsd_kernels.ops import reference
from dsd_kernels.ops import triton as kernels
from dsd_kernels.ops.triton.bracket import AT_HI, BELOW, HI, MISSED, RECORD, STATUS
from dsd_kernels.ops.triton.formats import FORMATS, encode
from dsd_kernels.ops.triton.tables import IS_ALIGNED, START, AddressTable, address_table, scratch_table, tile_size

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SGD = import_module("dsd_kernels.ops.triton.masked_sgd")
LAUNCH = import_module("dsd_kernels.ops.triton.launch")
SELECT = import_module("dsd_kernels.ops.triton.selection")
DEFAULTS = {
    "lr": 0.1,
    "momentum": 0.0,
    "dampening": 0.0,
    "weight_decay": 0.0,
    "nesterov": False,
    "maximize": False,
    "mask_momentum": True,
}
OPTIONS = {
    "plain": {},
    "decay-maximize": {"weight_decay": 0.01, "maximize": True},
    "momentum": {"momentum": 0.9, "dampening": 0.3, "mask_momentum": False},
    "nesterov": {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
    "device-scalars": {
        "momentum": 0.9,
        "maximize": True,
        "lr_tensor": torch.tensor(0.037),
        "grad_scale": torch.tensor([3.0], dtype=torch.float64),
        "found_inf": torch.tensor(0.0),
    },
}


@pytest.fixture(autouse=True)
def undefined_lanes(monkeypatch):
    """A predicated load leaves the lanes it skips undefined on a GPU; the interpreter would make them zero."""
    builder, load = interpreter.InterpreterBuilder, interpreter.InterpreterBuilder.create_masked_load

    def load_with_ones(self, pointers, mask, other, *options):
        if other is None:
            dtype = pointers.get_element_ty()
            ones = np.full(pointers.data.shape, -1).astype(interpreter._get_np_dtype(dtype))
            other = interpreter.TensorHandle(ones, dtype)
        return load(self, pointers, mask, other, *options)

    monkeypatch.setattr(builder, "create_masked_load", load_with_ones)


def to(device, value):
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    return [to(device, v) for v in value] if isinstance(value, list) else value


def on_both(op, *lists, **options):
    """The lists after the op ran in the reference and in the kernels, both on the CPU."""
    results = []
    for backend, device in ((reference, "cpu"), (kernels, DEVICE)):
        arguments = [to(device, values) for values in lists]
        getattr(backend, op)(*arguments, **{name: to(device, value) for name, value in options.items()})
        results.append([to("cpu", values) for values in arguments])
    return results


def assert_same(expected, actual):
    for a, b in zip(expected, actual, strict=True):
        for x, y in zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]:
            assert x.dtype == y.dtype
            assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))


def random_masks(sizes):
    return reference.pack_mask([normal(n, torch.float32, seed=n) > 0 for n in sizes])


def around(boundary, chunk):
    return [boundary - 1, boundary, boundary + 1, 3 * chunk + 5]


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_update_is_bitwise_the_reference_at_tile_and_chunk_boundaries(dtype, options, masked):
    tile = tile_size(dtype.itemsize)
    chunk = tile * SGD.TILES_PER_CHUNK
    sizes = [0, 1, 63, tile - 1, tile, tile + 1, chunk - 1, chunk, chunk + 1, 3 * chunk + 5]
    params, grads, buffers = ([normal(n, dtype, seed=n + i) for n in sizes] for i in range(3))
    masks = random_masks(sizes) if masked else []
    options = DEFAULTS | options
    assert_same(*on_both("masked_sgd_", params, grads, buffers if options["momentum"] else [], masks, [], **options))


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("dtypes", "seed"),
    [
        ((BF16, BF16, F32, None), None),
        ((F32, BF16, F32, BF16), None),
        ((BF16, F32, BF16, None), 5),
        ((F16, F16, F16, None), -5),
    ],
    ids=["wide-momentum", "copies", "bfloat16-stochastic", "float16-stochastic"],
)
def test_mixed_dtypes_are_bitwise_the_reference_at_tile_and_chunk_boundaries(dtypes, seed):
    tile = tile_size(max(dtype.itemsize for dtype in dtypes if dtype))
    chunk = tile * SGD.TILES_PER_CHUNK
    sizes = [0, 1, 63, tile - 1, tile, tile + 1, chunk - 1, chunk, chunk + 1, 3 * chunk + 5]
    params, grads, buffers, copies = (
        [normal(n, dtype, seed=n + i) for n in sizes] if dtype else [] for i, dtype in enumerate(dtypes)
    )
    seed = None if seed is None else torch.tensor(seed)
    lists = (params, grads, buffers, random_masks(sizes), copies)
    assert_same(*on_both("masked_sgd_", *lists, **DEFAULTS | {"momentum": 0.9, "rounding_seed": seed}))


@pytest.mark.parametrize(
    "options", [{}, {"lr": 0.0}, {"lr_tensor": torch.tensor(0.0)}], ids=["lr", "lr0", "lr-tensor0"]
)
@pytest.mark.parametrize("maximize", [False, True])
def test_zeros_keep_their_signs(options, maximize):
    zeros = torch.tensor([0.0, -0.0])
    params, grads, buffers = (t.flatten() for t in torch.meshgrid(zeros, zeros, zeros, indexing="ij"))
    for lists in (([params.clone()], [grads], []), ([params], [grads], [buffers])):
        options = DEFAULTS | {"maximize": maximize, "momentum": 0.9 if lists[2] else 0.0} | options
        assert_same(*on_both("masked_sgd_", *lists, [], [torch.ones(8, dtype=torch.bfloat16)], **options))


@pytest.mark.parametrize("found_inf", [1.0, 2.0, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_found_inf_leaves_everything_as_it_was(dtype, found_inf):
    lists = [[normal(100, dtype, seed=i)] for i in range(3)]
    options = DEFAULTS | {"momentum": 0.9, "found_inf": torch.tensor(found_inf, dtype=dtype)}
    _, after = on_both("masked_sgd_", *lists, random_masks([100]), [], **options)
    assert_same(lists, after[:3])


@triton.jit
def encode_kernel(values, out, dtype: tl.constexpr, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(out + i, encode(tl.load(values + i), dtype))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # numpy's, in the interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_a_half_is_torchs_and_a_nan_stays_a_nan(dtype):
    """In integers, a NaN with every payload bit set, as GPUs make them, would carry over into -0."""
    bits = torch.randint(-(2**31), 2**31, (4096,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    bits[:2048] = bits[:2048] & ~0x7FFF | 0x8000  # halfway between two bfloat16
    bits[:6] = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7F800000, 0x7F7FFFFF, 1])
    values, out = bits.view(torch.float32), torch.empty(4096, dtype=dtype, device=DEVICE)
    encode_kernel[(1,)](values.to(DEVICE), out.view(torch.int16), FORMATS[dtype].dtype, 4096)
    expected, out = values.to(dtype), out.cpu()
    assert torch.equal(out.isnan(), expected.isnan())
    assert bits_equal(out.nan_to_num(0.0), expected.nan_to_num(0.0))


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_views_are_updated_and_nothing_around_them(dtype, offset):
    n = tile_size(dtype.itemsize) + 37
    storages = [normal(n + 2 * offset, dtype, seed=i) for i in range(3)]
    mask_storage = torch.full((offset + (n + 63) // 64 * 8 + offset,), 0xAB, dtype=torch.uint8)
    mask_storage[offset:-offset] = random_masks([n])[0]
    results = []
    for backend, device in ((reference, "cpu"), (kernels, DEVICE)):
        moved = [to(device, storage) for storage in (*storages, mask_storage)]
        param, grad, buffer, mask = ([storage[offset:-offset]] for storage in moved)
        backend.masked_sgd_(param, grad, buffer, mask, [], **DEFAULTS | {"momentum": 0.9})
        backend.prune_(grad, buffer, mask, torch.tensor([n // 2], device=device))
        results.append(to("cpu", moved))
    assert_same(*results)


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_unaligned_masks_pack_and_unpack(offset):
    sizes = [1, 64, *around(4096, 4096)]
    storages = [normal(n + offset, torch.float32, seed=n) > 0 for n in sizes]
    masks = [storage[offset:] for storage in to(DEVICE, storages)]
    packed = kernels.pack_mask(masks)
    assert_same(reference.pack_mask([storage[offset:] for storage in storages]), to("cpu", packed))
    shifted = [torch.cat([bits[:offset], bits])[offset:] for bits in packed]
    assert_same(to("cpu", masks), to("cpu", kernels.unpack_mask(shifted, masks)))


def test_masks_take_the_layout_of_their_tensor():
    like = torch.empty(2, 3, 5, 7, device=DEVICE).to(memory_format=torch.channels_last)
    packed = [torch.full((32,), 0b01010101, dtype=torch.uint8, device=DEVICE)]
    (mask,) = kernels.unpack_mask(packed, [like])
    assert mask.stride() == like.stride()
    assert_same(reference.unpack_mask(to("cpu", packed), [like.cpu()]), [mask.cpu()])


def all_equal(n, dtype, seed):
    return torch.full((n,), -1.5, dtype=dtype)


@pytest.fixture
def small_samples(monkeypatch):
    """Brackets of tensors that the interpreter can go through; returns how many tensors each selection has missed."""
    n_missed = []

    def select_missed(table, records, *arguments):
        n_missed.append(int((records[:, STATUS.value] == MISSED.value).sum()))
        return radix(table, records, *arguments)

    radix = SELECT.select_missed
    monkeypatch.setattr(SELECT, "select_missed", select_missed)
    monkeypatch.setattr(SELECT, "SAMPLE", 256)
    monkeypatch.setattr(SELECT, "SHARE", 3)
    return n_missed


def assert_stable_sort(params, k):
    buffers = [p.clone() for p in params]
    masks = [torch.full(((len(p) + 63) // 64 * 8,), 0xAB, dtype=torch.uint8) for p in params]
    expected, actual = on_both("prune_", params, buffers, masks, torch.tensor(k))
    assert_same(expected, actual)
    keep = reference.unpack_mask(actual[2], params)
    assert all(torch.equal(mask, stable_sort_keep(p, n)) for mask, p, n in zip(keep, params, k, strict=True))
    magnitudes = kernels.kth_magnitude(to(DEVICE, params), torch.tensor(k, device=DEVICE))
    assert bits_equal(magnitudes.cpu(), reference.kth_magnitude(params, torch.tensor(k)))


@pytest.mark.parametrize("make", [normal, awkward, mostly_nan, all_equal])
@pytest.mark.parametrize("dtype", DTYPES)
def test_selection_is_a_stable_sort_across_chunks(small_samples, dtype, make):
    chunk = SELECT.chunk_size(FORMATS[dtype])
    sizes = [0, 65, 257, chunk - 1, chunk + 5]
    params = [make(n, dtype, seed=n) for n in sizes]
    into_nans = [min(int((~p.isnan()).sum()) + 2, len(p)) for p in params]
    for k in ([0, 0, 257, 1, chunk + 3], [n // 2 for n in sizes], into_nans):
        assert_stable_sort(params, k)
    assert small_samples == [0] * 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_sample_misses_is_selected_by_radix(monkeypatch, small_samples, dtype):
    """No more is collected than there is room for; beside such tensors stand some that are found."""
    monkeypatch.setattr(SELECT, "SHARE", 64)
    chunk = SELECT.chunk_size(FORMATS[dtype])
    params = [normal(300, dtype), normal(chunk + 5, dtype), all_equal(chunk + 5, dtype, 0)]
    assert_stable_sort(params, [150, chunk // 2, 7])
    assert small_samples == [2, 2]


def sampled_places(n, sample):
    """What `_sampled_places` of bracket.py should be."""
    index = torch.arange(sample)
    return index * n // sample + (reference.lowbias32(index) * (n // sample) >> 32)


def assert_one_threshold(tensors, k):
    sizes = [len(t) for t in tensors]
    lost = [int((~part).sum()) for part in stable_sort_keep(torch.cat(tensors), k).split(sizes)]
    assert kernels.global_counts(to(DEVICE, tensors), torch.tensor(k, device=DEVICE)).tolist() == lost


@pytest.mark.parametrize("make", [normal, awkward, mostly_nan, all_equal])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_threshold_of_many_tensors_is_that_of_a_stable_sort(small_samples, dtype, make):
    sizes = [65, 0, SELECT.chunk_size(FORMATS[dtype]) + 5, 3, 257]
    tensors = [make(n, dtype, seed=n) for n in sizes]
    n, up_to_nan = sum(sizes), sum(int((~t.isnan()).sum()) for t in tensors)
    for k in (0, 1, n // 3, min(up_to_nan + 2, n), n):
        assert_one_threshold(tensors, k)
    assert_one_threshold([t[:40] for t in tensors], 50)  # no more than a sample
    assert small_samples == [0] * 5


@pytest.mark.parametrize(("sampled", "n_missed"), [(1000.0, [1, 0]), (0.0, [1, 1])], ids=["above", "below"])
def test_a_sample_of_many_tensors_that_misleads_is_found_out_by_the_counts(small_samples, sampled, n_missed):
    n = 1001
    weights = normal(n, torch.float32)
    weights[sampled_places(n, SELECT.SAMPLE)] = sampled
    for k in (n // 3, n - 3):
        assert_one_threshold(list(weights.split([400, 1, 600])), k)
    assert small_samples == n_missed


@pytest.mark.parametrize(("sampled", "others"), [(1000.0, normal), (0.0, normal)], ids=["above", "below"])
def test_a_sample_that_misleads_is_found_out_by_the_counts(small_samples, sampled, others):
    n = 1001
    weights = others(n, torch.float32)
    weights[sampled_places(n, SELECT.SAMPLE)] = sampled
    assert_stable_sort([weights], [n // 3])
    assert small_samples == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_of_its_usual_size_brackets_what_is_left_into_another(dtype):
    n = 2 * SELECT.SAMPLE + 77
    levels = SELECT._levels(torch.device(DEVICE), (n, 65), 8192)
    assert [level.sizes for level in levels] == [(-(-n // 16), 0)]
    assert_stable_sort([normal(n, dtype), normal(65, dtype)], [n // 3, 30])


def test_a_k_out_of_range_is_clamped():
    tensors, k = [normal(70, torch.float32), normal(70, torch.float32), torch.empty(0)], torch.tensor([-5, 99, 1])
    assert bits_equal(
        kernels.kth_magnitude(to(DEVICE, tensors), k.to(DEVICE)).cpu(), reference.kth_magnitude(tensors, k)
    )
    masks = [torch.full((n,), 0xAB, dtype=torch.uint8) for n in (16, 16, 0)]
    assert_same(*on_both("prune_", tensors, [], masks, k))


def test_nothing_to_do_is_done():
    k = torch.empty(0, dtype=torch.int64, device=DEVICE)
    kernels.masked_sgd_([], [], [], [], [], **DEFAULTS)
    kernels.prune_([], [], [], k)
    assert kernels.kth_magnitude([], k).shape == (0,)
    assert kernels.pack_mask([]) == kernels.unpack_mask([], []) == []
    empty = [torch.empty(0, device=DEVICE)]
    kernels.masked_sgd_(empty, empty, [], kernels.pack_mask([empty[0].bool()]), [], **DEFAULTS)


def far_table(table, bytes_per_weight, chunk_size):
    """A table of the same memory, seen as the end of a tensor of more than 2**32 weights."""
    start = 2**32 // chunk_size * chunk_size
    rows, chunks = table.rows.clone(), table.chunks.clone()
    rows[:, 0] += start
    for column, n_bytes in enumerate(bytes_per_weight, start=1):
        rows[:, column] -= int(start * n_bytes)
    chunks[:, 1] += start // chunk_size
    return AddressTable(rows, chunks, table.sizes)


@pytest.mark.parametrize(
    ("dtypes", "seed"), [((F32, F32, F32, BF16), None), ((BF16, BF16, F32, None), 5)], ids=["copies", "stochastic"]
)
def test_offsets_beyond_32_bits(monkeypatch, dtypes, seed):
    """Random bits too: weights 2**32 apart share them, and so do the end of a tensor and the reference's beginning."""
    n_bytes = [*(dtype.itemsize if dtype else 0 for dtype in dtypes), 1 / 8]
    monkeypatch.setattr(
        SGD, "address_table", lambda size, *lists: far_table(address_table(size, *lists), n_bytes, size)
    )
    params, grads, buffers, copies = ([normal(5000, dtype, seed=i)] if dtype else [] for i, dtype in enumerate(dtypes))
    seed = None if seed is None else torch.tensor(seed)
    lists = (params, grads, buffers, random_masks([5000]), copies)
    assert_same(*on_both("masked_sgd_", *lists, **DEFAULTS | {"momentum": 0.9, "rounding_seed": seed}))


@pytest.mark.parametrize("n", [2**30 + 77, 2**33 + 77])
def test_a_sample_of_many_tensors_reaches_beyond_32_bits(n):
    """A tensor about the place of one weight of the sample, among so many weights."""
    places = sampled_places(n, SELECT.SAMPLE)
    weights, start = normal(5000, F32), int(places[12_345]) - 678
    table = address_table(8192, to(DEVICE, [weights]))
    table.rows[0, START.value] = start
    sample = torch.zeros(SELECT.SAMPLE, dtype=torch.int32, device=DEVICE)
    SELECT.gather(table, sample, n, FORMATS[F32])
    is_here = (places >= start) & (places < start + len(weights))
    expected = torch.zeros(SELECT.SAMPLE)
    expected[is_here] = weights[places[is_here] - start]
    assert is_here[12_345]
    assert bits_equal(sample.cpu().view(F32), expected)


def test_a_split_counts_beyond_32_bits():
    """The last weights of 2**32, of which all before have been counted; a split goes on from there."""
    chunk = SELECT.chunk_size(FORMATS[F32])
    weights = normal(chunk + 99, F32).to(DEVICE)
    table = far_table(address_table(chunk, [weights]), [4], chunk)
    lo, hi = torch.tensor([0.5, 1.0]).view(torch.int32).tolist()
    counted = [2**33, 2**34, 3, 2**35]  # below, at lo, inside, at hi
    record = torch.zeros(1, RECORD.value, dtype=torch.int64)
    record[0, : AT_HI.value + 1] = torch.tensor([0, 0, 2**32 + len(weights), 0, lo, hi, *counted])
    record = record.to(DEVICE)
    collected = torch.zeros(len(weights) + 3, dtype=torch.int32, device=DEVICE)
    level = scratch_table(weights.device, chunk, (len(collected),))
    search = SELECT._Search(table, torch.zeros(1, dtype=torch.int64, device=DEVICE), FORMATS[F32])
    search.records = record
    search.split(table, None, level, collected, pooled=False)

    sizes = weights.cpu().abs()
    inside = sizes[(sizes > 0.5) & (sizes < 1)].view(torch.int32)
    found = [(sizes < 0.5).sum(), 0, len(inside), 0]
    assert record[0, BELOW.value : AT_HI.value + 1].tolist() == [
        a + int(b) for a, b in zip(counted, found, strict=True)
    ]
    assert collected[:3].tolist() == [0, 0, 0]
    assert torch.equal(collected[3 : 3 + len(inside)].cpu().sort().values, inside.sort().values)
    assert not collected[3 + len(inside) :].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_collected_is_split_by_whole_chunks_too(dtype):
    """There is room for more than was collected: it is not looked at."""
    stored = FORMATS[dtype]
    chunk = SELECT.chunk_size(stored)
    sizes = normal(chunk + 99, dtype).abs()
    bits = sizes.view(stored.integer)
    lo, hi = torch.tensor([0.5, 1.0], dtype=dtype).view(stored.integer).tolist()
    record = torch.zeros(1, RECORD.value, dtype=torch.int64)
    record[0, : HI.value + 1] = torch.tensor([0, 0, len(sizes), 0, lo, hi])
    room = scratch_table(torch.device(DEVICE), chunk, (2 * chunk,))
    source = torch.full((2 * chunk,), (lo + hi) // 2, dtype=stored.integer)
    source[: len(bits)] = bits
    collected = torch.zeros(2 * chunk, dtype=stored.integer, device=DEVICE)
    search = SELECT._Search(room, torch.zeros(1, dtype=torch.int64, device=DEVICE), stored)
    search.records = record.to(DEVICE)
    search.split(room, source.to(DEVICE), room, collected, pooled=False)

    inside = bits[(bits > lo) & (bits < hi)]
    counted = [int((bits < lo).sum()), int((bits == lo).sum()), len(inside), int((bits == hi).sum())]
    assert search.records[0, BELOW.value : AT_HI.value + 1].tolist() == counted
    assert torch.equal(collected.cpu()[: len(inside)].sort().values, inside.sort().values)
    assert not collected[len(inside) :].any()


@pytest.fixture
def launches(monkeypatch):
    """How often each kernel is launched, by Triton or past it."""
    counter = Counter()
    launch = LAUNCH.launch

    def count(kernel, *args, **kwargs):
        counter[kernel.fn.__name__] += 1
        launch(kernel, *args, **kwargs)

    for name, module in list(sys.modules.items()):
        if name.startswith(kernels.__name__) and getattr(module, "launch", None) is launch:
            monkeypatch.setattr(module, "launch", count)
    return counter


class FakeKernel:
    """A kernel as Triton makes them: launched by a grid, it returns what it has compiled."""

    arg_names = ("x", "y", "scale", "n", "SIZE", "FLAG")

    def __init__(self):
        self.compiled = []

    def __getitem__(self, grid):
        def run(*arguments, **options):
            self.compiled.append(FakeCompiled())
            return self.compiled[-1]

        return run


class FakeCompiled:
    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        return lambda *arguments: self.launches.append((grid, arguments))


def test_a_launch_like_one_before_calls_what_that_compiled(monkeypatch):
    monkeypatch.setattr(LAUNCH, "JITFunction", FakeKernel)
    monkeypatch.setattr(LAUNCH, "CompiledKernel", FakeCompiled)
    monkeypatch.setattr(LAUNCH.driver, "_active", SimpleNamespace(get_current_device=lambda: 0))
    kernel, x, y = FakeKernel(), torch.zeros(8), torch.ones(8)
    unaligned = torch.zeros(9)[1:]
    LAUNCH.launch(kernel, 5, x, None, 0.1, 3, SIZE=64, FLAG=True)
    LAUNCH.launch(kernel, 7, y, None, 0.2, 4, SIZE=64, FLAG=True)
    assert len(kernel.compiled) == 1
    [(grid, arguments)] = kernel.compiled[0].launches
    assert grid == (7, 1, 1)
    assert arguments[0] is y
    assert arguments[1:] == (None, 0.2, 4, 64, True)
    others = [(unaligned, None, 0.1, 3), (x.double(), None, 0.1, 3), (x, y, 0.1, 3), (x, None, 0.1, 2**31)]
    for other in others:
        LAUNCH.launch(kernel, 5, *other, SIZE=64, FLAG=True)
    LAUNCH.launch(kernel, 5, x, None, 0.1, 3, SIZE=32, FLAG=True)
    LAUNCH.launch(kernel, 5, x, None, 0.1, 3, SIZE=64, FLAG=True, num_warps=8)
    assert len(kernel.compiled) == 7


@pytest.mark.parametrize("n_tensors", [1, 9])
def test_launches_of_a_selection_depend_on_the_largest_size_only(small_samples, launches, n_tensors):
    tensors = [normal(n, torch.float32).to(DEVICE) for n in (9 * 256 - 5, *[65] * (n_tensors - 1))]
    kernels.kth_magnitude(tensors, torch.full((n_tensors,), 30, device=DEVICE))
    one_read, radix = {"narrow_kernel": 3, "split_kernel": 2}, {"count_missed_kernel": 4, "find_missed_kernel": 1}
    assert launches == one_read | radix | {"magnitude_kernel": 1}


@pytest.mark.parametrize("n_tensors", [1, 9])
def test_launches_do_not_depend_on_the_number_of_tensors(launches, n_tensors):
    sizes = [100 * (i + 1) for i in range(n_tensors)]
    params, grads, buffers = ([normal(n, torch.float32).to(DEVICE) for n in sizes] for _ in range(3))
    masks = to(DEVICE, random_masks(sizes))
    copies = [p.bfloat16() for p in params]
    kernels.masked_sgd_(params, grads, buffers, masks, copies, **DEFAULTS | {"momentum": 0.9})
    assert launches == {"masked_sgd_kernel": 1}
    launches.clear()
    kernels.prune_(params, buffers, masks, torch.tensor([n // 2 for n in sizes], device=DEVICE))
    assert launches == {"narrow_kernel": 1, "count_ties_kernel": 1, "apply_kernel": 1}
    launches.clear()
    kernels.pack_mask(kernels.unpack_mask(masks, params))
    assert launches == {"pack_kernel": 1, "unpack_kernel": 1}


def test_tables_are_kept_for_the_same_addresses_only():
    params, grads = ([normal(100, torch.float32).to(DEVICE)] for _ in range(2))
    table = address_table(4096, params, grads)
    assert address_table(4096, list(params), list(grads)) is table
    moved = address_table(4096, params, [grads[0].clone()])
    assert moved is not table
    assert moved.chunks is table.chunks
    for i in range(300):
        address_table(4096 + 64 * i, params)
    assert address_table(4096, params, grads) is not table


@pytest.mark.parametrize(("offset", "is_aligned"), [(0, 1), (1, 0), (2, 0), (3, 0), (4, 1)])
def test_a_tensor_that_is_not_aligned_costs_no_other_its_wide_accesses(offset, is_aligned):
    aligned, view = torch.zeros(64, device=DEVICE), torch.zeros(64, device=DEVICE)[offset:]
    table = address_table(4096, [aligned, view], [], [aligned, aligned])
    assert table.rows[:, IS_ALIGNED.value].tolist() == [1, is_aligned]
    odd_mask = torch.zeros(64, dtype=torch.uint8, device=DEVICE)[1:]
    assert address_table(4096, [aligned], [odd_mask]).rows[:, IS_ALIGNED.value].tolist() == [0]


def test_a_planned_step_is_one_launch_with_masks_and_without(launches):
    params = [torch.nn.Parameter(normal(n, torch.float32).to(DEVICE)) for n in (65, 7, 300)]
    optimizer = MaskedSGD(params, lr=0.1, momentum=0.9)
    optimizer.prune(0.5, params[2])
    with use_backend("triton"):
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            launches.clear()
            optimizer.step()
    assert launches == {"masked_sgd_kernel": 1}
