"""P4: nothing in step or pruning makes the host wait for the device, as far as that can be told without one.

The Triton launchers run in the interpreter under a watch over every op that PyTorch dispatches: none may be of the
kind that brings a value or a data-dependent shape to the host. On a GPU the same calls run with
torch.cuda.set_sync_debug_mode("error").
"""

import warnings

import pytest
import torch
from cases import normal
from torch.utils._python_dispatch import TorchDispatchMode

from dsd_kernels import MaskedSGD, kth_magnitude, masked_sgd_, use_backend

READS_BY_THE_HOST = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "unique",
    "equal",
    "is_nonzero",
    "index.Tensor",  # with a bool index it is nonzero
)


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        assert not name.startswith(READS_BY_THE_HOST), f"{name} makes the host wait for the device"
        return func(*args, **(kwargs or {}))


def params_with_gradients(device):
    params = [torch.nn.Parameter(normal(n, torch.float32, seed=n).view(2, -1).to(device)) for n in (64, 1000)]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


def optimizer_of(params, lr):
    return MaskedSGD(params, lr=lr, momentum=0.9, weight_decay=1e-3)


def set_sync_debug_mode(mode):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*prototype", UserWarning)  # torch calls the mode itself one, once
        torch.cuda.set_sync_debug_mode(mode)


def train(optimizer):
    optimizer.step()
    optimizer.prune(0.5)
    optimizer.step()
    optimizer.densify()
    optimizer.step()
    return kth_magnitude([p.detach() for p in optimizer.param_groups[0]["params"]], [3, 4])


def test_the_watch_sees_a_read():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Watch():
        torch.ones(1).item()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the test below sees it on the device itself")
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_no_op_that_waits_is_dispatched(lr):
    optimizer = optimizer_of(params_with_gradients("cpu"), lr)
    with use_backend("triton"), Watch():
        train(optimizer)


def step_mixed(device):
    """float32 masters with copies, then halves rounded stochastically by a seed of the host and one of the device."""
    param, grad, buffer = (normal(1000, torch.float32, seed=i).to(device) for i in range(3))
    copy, seed = param.bfloat16(), torch.zeros((), dtype=torch.int64, device=device)
    masked_sgd_([param], [grad], [buffer], copies=[copy], lr=0.1, momentum=0.9)
    for rounding_seed in (7, seed):
        masked_sgd_([copy], [grad], [buffer], lr=0.1, momentum=0.9, rounding_seed=rounding_seed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the test below sees it on the device itself")
def test_mixed_dtypes_and_rounding_seeds_dispatch_nothing_that_waits():
    with use_backend("triton"), Watch():
        step_mixed("cpu")


@pytest.mark.feature("torch.compile and CUDA graphs", "no host synchronisation in step, prune and densify")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("gpu_backend")
def test_no_call_waits_for_the_gpu():
    train(optimizer_of(params_with_gradients("cuda"), 0.1))  # compiles the kernels
    step_mixed("cuda")
    optimizer = optimizer_of(params_with_gradients("cuda"), torch.tensor(0.1, device="cuda"))
    set_sync_debug_mode("error")
    try:
        train(optimizer)
        step_mixed("cuda")
    finally:
        set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("gpu_backend")
def test_work_of_a_side_stream_keeps_its_memory_until_it_is_done():
    """What selection allocates there is free when the call returns, but for no other stream before its end."""
    weights = [normal(n, torch.float32, seed=n).cuda() for n in (100_003, 65)]
    expected = kth_magnitude(weights, [50_000, 30])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = [kth_magnitude(weights, [50_000, 30]) for _ in range(20)]
    for _ in range(20):  # on the usual stream meanwhile
        torch.full((200_000,), torch.nan, device="cuda")
    torch.cuda.current_stream().wait_stream(stream)
    for weight in weights:
        weight.record_stream(stream)
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.usefixtures("gpu_backend")
def test_one_optimizer_has_parameters_on_two_gpus():
    """Kernels are launched on the device of their tensors, whichever is the current one."""
    twins = [params_with_gradients(device) for device in ("cuda:0", "cuda:1")]
    both = optimizer_of([p for params in twins for p in params], 0.1)
    both.step()
    both.prune(0.5)
    both.step()
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(*twins, strict=True))
