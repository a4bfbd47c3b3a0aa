"""P7 and the op contract: opcheck, torch.compile, and one clear error for bad input, before anything changes."""

import pytest
import torch
from cases import DTYPES, bits_equal, normal

from dsd_kernels import backends, kth_magnitude, masked_sgd_, pack_mask, prune_, unpack_mask

SGD = {
    "lr": 0.1,
    "momentum": 0.9,
    "dampening": 0.0,
    "weight_decay": 0.01,
    "nesterov": True,
    "maximize": False,
    "mask_momentum": True,
}


def op_arguments(dtype):
    params = [normal(n, dtype, seed=n).view(shape) for n, shape in ((12, (3, 4)), (65, (65,)))]
    grads, buffers = [p.clone() for p in params], [p.clone() for p in params]
    masks = [p > 0 for p in params]
    packed = pack_mask(masks)
    k = torch.tensor([4, 60])
    return {
        "masked_sgd_": ((params, grads, buffers, packed, []), SGD),
        "kth_magnitude": ((params, k), {}),
        "global_counts": ((params, torch.tensor(64)), {}),
        "magnitude_histogram": ((params, torch.tensor([1, 2]), 8 if dtype.itemsize > 2 else 0), {}),
        "prune_": ((params, buffers, packed, k), {}),
        "pack_mask": ((masks,), {}),
        "unpack_mask": ((packed, params), {}),
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", op_arguments(torch.float32))
def test_opcheck(backend, op, dtype):
    args, kwargs = op_arguments(dtype)[op]
    torch.library.opcheck(getattr(torch.ops.dsd_kernels, op).default, args, kwargs)


# the dtypes of parameters, gradients, momentum and copies, and what a rounding seed is
MIXTURES = {
    "wide momentum": (torch.bfloat16, torch.float16, torch.float32, None, None),
    "copies": (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16, None),
    "stochastic rounding": (torch.float16, torch.float16, torch.float32, None, torch.tensor),
    "stochastic rounding by an int": (torch.bfloat16, torch.bfloat16, torch.bfloat16, None, int),
}
mixtures = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)


def mixed_arguments(mixture):
    params, grads, buffers, copies = (
        [] if dtype is None else [normal(n, dtype, seed=n + i) for n in (65, 7)] for i, dtype in enumerate(mixture[:4])
    )
    return params, grads, buffers, pack_mask([p > 0 for p in params]), copies


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@mixtures
def test_opcheck_of_mixed_dtypes(backend, mixture):
    options = SGD | {"rounding_seed": torch.tensor(3) if mixture[4] else None}
    torch.library.opcheck(torch.ops.dsd_kernels.masked_sgd_.default, mixed_arguments(mixture), options)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@mixtures
def test_mixed_dtypes_compile_as_one_graph(backend, mixture):
    def step(args, seed):
        masked_sgd_(*args, lr=0.1, momentum=0.9, rounding_seed=seed)

    torch._dynamo.reset()
    compiled_step = torch.compile(step, fullgraph=True)
    for value in (3, 4, 5):
        eager, compiled = mixed_arguments(mixture), mixed_arguments(mixture)
        seed = mixture[4](value) if mixture[4] else None
        step(eager, seed)
        compiled_step(compiled, seed)
        for expected, got in zip(eager, compiled, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_compiles_as_one_graph(backend):
    def prune_and_step(weight, grad, buffer):
        packed = prune_([weight], [buffer], k=[5])
        masked_sgd_([weight], [grad], [buffer], packed, lr=0.1, momentum=0.9)
        mask = unpack_mask(pack_mask(unpack_mask(packed, [weight])), [weight])[0]
        return kth_magnitude([weight], [6]), mask

    eager = [normal(12, torch.float32, seed=i).view(3, 4) for i in range(3)]
    compiled = [t.clone() for t in eager]
    expected = prune_and_step(*eager)
    torch._dynamo.reset()
    got = torch.compile(prune_and_step, fullgraph=True)(*compiled)
    for a, b in zip([*expected[:1], *eager], [*got[:1], *compiled], strict=True):
        assert bits_equal(a, b)
    assert torch.equal(expected[1], got[1])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_for_changing_shapes_and_strides(dynamic):
    def prune_and_step(weight, grad):
        packed = prune_([weight], k=[2])
        masked_sgd_([weight], [grad], (), packed, lr=0.1)
        return unpack_mask(packed, [weight])[0], kth_magnitude([weight], [3])

    torch._dynamo.reset()
    compiled = torch.compile(prune_and_step, fullgraph=True, dynamic=dynamic)
    for make in (lambda t: t[:4], lambda t: t[:9], lambda t: t.view(3, 4), lambda t: t.view(3, 4).t()):
        arguments = [make(normal(12, torch.float32, seed=i)) for i in (0, 1)]
        eager = [t.clone() for t in arguments]
        expected, got = prune_and_step(*eager), compiled(*arguments)
        assert bits_equal(eager[0], arguments[0])
        assert torch.equal(expected[0], got[0])
        assert torch.equal(expected[1], got[1])


def overlapping(n=1 << 24):
    return torch.ones(1).expand(n)


def direct(op, *args):
    return getattr(torch.ops.dsd_kernels, op)(*args)


def step(params, grads, buffers=(), masks=(), copies=(), **options):
    momentum = 0.9 if buffers else 0.0
    torch.ops.dsd_kernels.masked_sgd_(params, grads, buffers, masks, copies, **SGD | {"momentum": momentum} | options)


FLAT = torch.ones(64)
HALF, DOUBLE = FLAT.bfloat16(), FLAT.double()
BITS = pack_mask([FLAT > 0])[0]
UNSAFE_CALLS = {
    "overlapping parameter": lambda: step([overlapping()], [overlapping()], [overlapping()]),
    "overlapping gradient": lambda: step([FLAT], [overlapping(64)], [FLAT]),
    "short momentum": lambda: step([FLAT], [FLAT], [FLAT[:5]]),
    "integer gradient": lambda: step([FLAT], [FLAT.int()]),
    "wide gradient": lambda: step([FLAT], [DOUBLE]),
    "narrow gradient of float64": lambda: step([DOUBLE], [FLAT]),
    "mixed gradients": lambda: step([FLAT, FLAT], [FLAT, HALF]),
    "wide momentum": lambda: step([FLAT], [FLAT], [DOUBLE]),
    "mixed momentum": lambda: step([FLAT, FLAT], [FLAT, FLAT], [FLAT, HALF]),
    "short copy": lambda: step([FLAT], [FLAT], copies=[HALF[:5]]),
    "overlapping copy": lambda: step([FLAT], [FLAT], copies=[HALF[:1].expand(64)]),
    "copies missing": lambda: step([FLAT, FLAT], [FLAT, FLAT], copies=[HALF]),
    "mixed copies": lambda: step([FLAT, FLAT], [FLAT, FLAT], copies=[HALF, FLAT.half()]),
    "integer copy": lambda: step([FLAT], [FLAT], copies=[FLAT.short()]),
    "seed for float32": lambda: step([FLAT], [FLAT], rounding_seed=torch.tensor(0)),
    "seed for float64": lambda: step([DOUBLE], [DOUBLE], rounding_seed=torch.tensor(0)),
    "narrow seed": lambda: step([HALF], [HALF], rounding_seed=torch.tensor(0, dtype=torch.int32)),
    "no seed in its tensor": lambda: step([HALF], [HALF], rounding_seed=torch.empty(0, dtype=torch.int64)),
    "mask of another dtype": lambda: step([FLAT], [FLAT], [FLAT], [torch.ones(8, dtype=torch.int64)]),
    "overlapping mask": lambda: step([FLAT], [FLAT], [FLAT], [BITS[:1].expand(8)]),
    "sparse parameter": lambda: step([FLAT.to_sparse()], [FLAT], [FLAT]),
    "overlapping k": lambda: direct("kth_magnitude", [FLAT, FLAT], torch.tensor([2]).expand(2)),
    "overlapping tensor": lambda: direct("kth_magnitude", [overlapping()], torch.tensor([2])),
    "overlapping tensor of many": lambda: direct("global_counts", [FLAT, overlapping(64)], torch.tensor(2)),
    "two dtypes for one threshold": lambda: direct("global_counts", [FLAT, HALF], torch.tensor(2)),
    "two values of one k": lambda: direct("global_counts", [FLAT], torch.tensor([2, 3])),
    "no tensors for a threshold": lambda: direct("global_counts", [], torch.tensor(0)),
    "overlapping tensor of digits": lambda: direct("magnitude_histogram", [overlapping()], torch.tensor([0]), 0),
    "two prefixes for one tensor": lambda: direct("magnitude_histogram", [FLAT], torch.tensor([0, 0]), 0),
    "a digit beyond the key": lambda: direct("magnitude_histogram", [FLAT], torch.tensor([0]), 32),
    "momentum of another dtype": lambda: direct("prune_", [FLAT], [HALF], [BITS], torch.tensor([2])),
    "overlapping weight": lambda: direct("prune_", [overlapping()], [], [BITS.repeat(1 << 18)], torch.tensor([2])),
    "overlapping bools": lambda: direct("pack_mask", [(torch.ones(1) > 0).expand(1 << 24)]),
    "short bits": lambda: direct("unpack_mask", [BITS], [torch.ones(65)]),
    "overlapping like": lambda: direct("unpack_mask", [BITS], [torch.ones(1).expand(64)]),
}


@pytest.mark.parametrize("case", UNSAFE_CALLS)
def test_the_compiled_ops_guard_memory_when_called_directly(case):
    if "compiled" not in {row.backend for row in backends() if row.active}:
        pytest.skip("the compiled backend is not there")
    with pytest.raises(RuntimeError, match=r"dsd_kernels: |sparse"):
        UNSAFE_CALLS[case]()


def weights(n=6):
    return [torch.arange(1.0, n + 1)]


BAD_CALLS = {
    "k too large": (lambda w: prune_(w, k=[7]), ValueError, r"k\[0\]: expected an integer in \[0, 6\], got 7"),
    "k negative": (lambda w: kth_magnitude(w, [-1]), ValueError, r"k\[0\]: expected an integer in \[0, 6\], got -1"),
    "k tensor out of range": (lambda w: prune_(w, k=torch.tensor([7])), ValueError, r"k\[0\].*got 7"),
    "k of the wrong length": (lambda w: prune_(w, k=[1, 2]), ValueError, "k: expected 1 values"),
    "k no list": (lambda w: prune_(w, k=3), TypeError, "k: expected a list of ints or an int64 tensor, got 3"),
    "k of floats": (lambda w: prune_(w, k=[2.0]), TypeError, r"k\[0\]: expected an int, got 2.0"),
    "k float tensor": (lambda w: prune_(w, k=torch.ones(1)), TypeError, "k: expected dtype torch.int64"),
    "integer weights": (
        lambda w: prune_([w[0].int()], k=[1]),
        TypeError,
        r"params\[0\]: expected dtype float32.*int32",
    ),
    "complex weights": (lambda w: kth_magnitude([w[0] * 1j], [1]), TypeError, r"tensors\[0\]: expected dtype.*complex"),
    "sparse weights": (lambda w: masked_sgd_([w[0].to_sparse()], w, lr=0.1), TypeError, r"params\[0\].*layout"),
    "mixed dtypes": (
        lambda w: masked_sgd_([*w, w[0].double()], [*w, w[0].double()], lr=0.1),
        TypeError,
        r"params\[1\]: expected dtype torch.float32 as params\[0\], got torch.float64",
    ),
    "overlapping weights": (
        lambda w: masked_sgd_([torch.ones(1).expand(6)], w, lr=0.1),
        ValueError,
        r"params\[0\]: expected a dense tensor",
    ),
    "grad missing": (lambda w: masked_sgd_(w, [], lr=0.1), ValueError, "grads: expected 1 tensors.*got 0"),
    "grad of another shape": (
        lambda w: masked_sgd_(w, weights(5), lr=0.1),
        ValueError,
        r"grads\[0\]: expected shape \(6,\)",
    ),
    "grad of another dtype": (
        lambda w: masked_sgd_(w, [w[0].double()], lr=0.1),
        TypeError,
        r"grads\[0\]: expected dtype",
    ),
    "grads of two dtypes": (
        lambda w: masked_sgd_([w[0], w[0]], [w[0], w[0].half()], lr=0.1),
        TypeError,
        r"grads\[1\]: expected dtype torch.float32 as grads\[0\], got torch.float16",
    ),
    "float64 grad of a half": (
        lambda w: masked_sgd_([w[0].half()], [w[0].double()], lr=0.1),
        TypeError,
        r"grads\[0\]: expected dtype float32, bfloat16 or float16 for a parameter of torch.float16, got torch.float64",
    ),
    "float32 grad of float64": (
        lambda w: masked_sgd_([w[0].double()], w, lr=0.1),
        TypeError,
        r"grads\[0\]: expected dtype float64 for a parameter of torch.float64, got torch.float32",
    ),
    "half momentum of float32": (
        lambda w: masked_sgd_(w, w, [w[0].half()], lr=0.1, momentum=0.9),
        TypeError,
        r"momentum_buffers\[0\]: expected dtype float32 for a parameter of torch.float32, got torch.float16",
    ),
    "momentum of the other half": (
        lambda w: masked_sgd_([w[0].half()], w, [w[0].bfloat16()], lr=0.1, momentum=0.9),
        TypeError,
        r"momentum_buffers\[0\]: expected dtype float16 or float32 for a parameter of torch.float16, got.*bfloat16",
    ),
    "pruned momentum of another dtype": (
        lambda w: prune_(w, [w[0].half()], k=[1]),
        TypeError,
        r"momentum_buffers\[0\]: expected dtype float32 for a parameter of torch.float32, got torch.float16",
    ),
    "copies missing": (
        lambda w: masked_sgd_([w[0], w[0]], [w[0], w[0]], copies=[w[0].half()], lr=0.1),
        ValueError,
        "copies: expected 2 tensors, one per parameter, got 1",
    ),
    "copies of halves": (
        lambda w: masked_sgd_([w[0].half()], w, copies=[w[0].half()], lr=0.1),
        TypeError,
        r"copies\[0\]: expected none for a parameter of torch.float16",
    ),
    "copies of float32": (
        lambda w: masked_sgd_(w, w, copies=weights(), lr=0.1),
        TypeError,
        r"copies\[0\]: expected dtype bfloat16 or float16 for a parameter of torch.float32, got torch.float32",
    ),
    "copies of two dtypes": (
        lambda w: masked_sgd_([w[0], w[0]], [w[0], w[0]], copies=[w[0].half(), w[0].bfloat16()], lr=0.1),
        TypeError,
        r"copies\[1\]: expected dtype torch.float16 as copies\[0\], got torch.bfloat16",
    ),
    "copy of another shape": (
        lambda w: masked_sgd_(w, w, copies=[weights(5)[0].half()], lr=0.1),
        ValueError,
        r"copies\[0\]: expected shape \(6,\), got \(5,\)",
    ),
    "copy of other strides": (
        lambda w: masked_sgd_([w[0].view(2, 3)], [w[0].view(2, 3)], copies=[w[0].half().view(3, 2).t()], lr=0.1),
        ValueError,
        r"copies\[0\]: expected strides \(3, 1\) as its parameter, got \(1, 2\)",
    ),
    "a tensor for copies": (
        lambda w: masked_sgd_(w, w, copies=w[0].half(), lr=0.1),
        TypeError,
        r"copies: expected a list.*write \[tensor\]",
    ),
    "seed for float32": (
        lambda w: masked_sgd_(w, w, lr=0.1, rounding_seed=1),
        TypeError,
        "rounding_seed: expected None for torch.float32, only bfloat16 or float16 is rounded by it",
    ),
    "seed a float": (
        lambda w: masked_sgd_([w[0].half()], w, lr=0.1, rounding_seed=1.0),
        TypeError,
        "rounding_seed: expected an int or an int64 tensor, got 1.0",
    ),
    "seed a flag": (
        lambda w: masked_sgd_([w[0].half()], w, lr=0.1, rounding_seed=True),
        TypeError,
        "rounding_seed: expected an int or an int64 tensor, got True",
    ),
    "seed too large": (
        lambda w: masked_sgd_([w[0].half()], w, lr=0.1, rounding_seed=2**63),
        ValueError,
        "rounding_seed: expected an integer of 64 bits, got 9223372036854775808",
    ),
    "seed tensor of another dtype": (
        lambda w: masked_sgd_([w[0].half()], w, lr=0.1, rounding_seed=torch.tensor(1, dtype=torch.int32)),
        ValueError,
        r"rounding_seed: expected one int64 element, got shape \(\) of torch.int32",
    ),
    "two seeds": (
        lambda w: masked_sgd_([w[0].half()], w, lr=0.1, rounding_seed=torch.tensor([1, 2])),
        ValueError,
        r"rounding_seed: expected one int64 element, got shape \(2,\)",
    ),
    "momentum without buffers": (
        lambda w: masked_sgd_(w, w, lr=0.1, momentum=0.9),
        ValueError,
        "momentum_buffers: expected one per parameter for momentum=0.9",
    ),
    "buffer of another shape": (
        lambda w: masked_sgd_(w, w, weights(5), lr=0.1, momentum=0.9),
        ValueError,
        r"momentum_buffers\[0\]: expected shape",
    ),
    "mask not packed": (
        lambda w: masked_sgd_(w, w, (), [w[0] > 2], lr=0.1),
        TypeError,
        r"masks\[0\]: expected packed bits",
    ),
    "mask of another size": (
        lambda w: masked_sgd_(w, w, (), pack_mask([torch.ones(65) > 0]), lr=0.1),
        ValueError,
        r"masks\[0\]: expected 8 contiguous bytes for 6 weights",
    ),
    "buffers without momentum": (lambda w: masked_sgd_(w, w, w, lr=0.1), ValueError, "expected none for momentum=0"),
    "lr a string": (lambda w: masked_sgd_(w, w, lr="fast"), TypeError, "lr: expected a number, got 'fast'"),
    "lr nan": (lambda w: masked_sgd_(w, w, lr=float("nan")), ValueError, "lr: expected a finite number, got nan"),
    "momentum none": (lambda w: masked_sgd_(w, w, lr=0.1, momentum=None), TypeError, "momentum: expected a number"),
    "a tensor for a list": (lambda w: prune_(w[0], k=[1]), TypeError, r"params: expected a list.*write \[tensor\]"),
    "a tensor for tensors": (lambda w: kth_magnitude(w[0], [1]), TypeError, "tensors: expected a list of tensors"),
    "lr of two elements": (
        lambda w: masked_sgd_(w, w, lr=torch.ones(2)),
        ValueError,
        "lr_tensor: expected one float32",
    ),
    "mask of floats": (lambda w: pack_mask(w), TypeError, r"masks\[0\]: expected dtype torch.bool, got torch.float32"),
    "masks on two devices": (
        lambda w: pack_mask([w[0] > 1, torch.ones(3, dtype=torch.bool, device="meta")]),
        ValueError,
        r"masks\[1\]: expected device cpu as masks\[0\], got meta",
    ),
    "likes on two devices": (
        lambda w: unpack_mask(pack_mask([w[0] > 1]) * 2, [w[0], torch.ones(3, device="meta")]),
        ValueError,
        r"like\[1\]: expected device cpu as like\[0\], got meta",
    ),
    "no tensor": (lambda w: pack_mask([[True]]), TypeError, r"masks\[0\]: expected a tensor, got list"),
    "unpack without like": (lambda w: unpack_mask(pack_mask([w[0] > 1]), []), ValueError, "packed: expected 0 tensors"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_one_clear_error_and_changes_nothing(case):
    call, error, text = BAD_CALLS[case]
    arguments = weights()
    with pytest.raises(error, match=text) as raised:
        call(arguments)
    assert "\n" not in str(raised.value)
    assert torch.equal(arguments[0], weights()[0])
