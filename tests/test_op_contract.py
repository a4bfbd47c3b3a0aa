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
        "masked_sgd_": ((params, grads, buffers, packed), SGD),
        "kth_magnitude": ((params, k), {}),
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
    return getattr(torch.ops.dsd_kernels, op)(*args, **(SGD if op == "masked_sgd_" else {}))


FLAT = torch.ones(64)
BITS = pack_mask([FLAT > 0])[0]
UNSAFE_CALLS = {
    "overlapping parameter": lambda: direct("masked_sgd_", [overlapping()], [overlapping()], [overlapping()], []),
    "overlapping gradient": lambda: direct("masked_sgd_", [FLAT], [overlapping(64)], [FLAT], []),
    "short momentum": lambda: direct("masked_sgd_", [FLAT], [FLAT], [FLAT[:5]], []),
    "another dtype": lambda: direct("masked_sgd_", [FLAT], [FLAT.bfloat16()], [FLAT], []),
    "mask of another dtype": lambda: direct("masked_sgd_", [FLAT], [FLAT], [FLAT], [torch.ones(8, dtype=torch.int64)]),
    "overlapping mask": lambda: direct("masked_sgd_", [FLAT], [FLAT], [FLAT], [BITS[:1].expand(8)]),
    "sparse parameter": lambda: direct("masked_sgd_", [FLAT.to_sparse()], [FLAT], [FLAT], []),
    "overlapping k": lambda: direct("kth_magnitude", [FLAT, FLAT], torch.tensor([2]).expand(2)),
    "overlapping tensor": lambda: direct("kth_magnitude", [overlapping()], torch.tensor([2])),
    "overlapping weight": lambda: direct("prune_", [overlapping()], [], [BITS.repeat(1 << 18)], torch.tensor([2])),
    "overlapping bools": lambda: direct("pack_mask", [(torch.ones(1) > 0).expand(1 << 24)]),
    "short bits": lambda: direct("unpack_mask", [BITS], [torch.ones(65)]),
    "overlapping like": lambda: direct("unpack_mask", [BITS], [torch.ones(1).expand(64)]),
}


@pytest.mark.parametrize("case", UNSAFE_CALLS)
def test_the_compiled_ops_guard_memory_when_called_directly(case):
    if "compiled" not in {row.backend for row in backends() if row.active}:
        pytest.skip("the compiled backend is not there")
    with pytest.raises(RuntimeError):
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
