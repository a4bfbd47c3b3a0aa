"""A captured CUDA graph replays: what it remembers are addresses, so none may change, and nothing may be read back.

Without a GPU the calls of the ops stand for the graph: recorded once, replayed with the same tensors beside an eager
twin. On a GPU the same is done with graphs.
"""

import pytest
import torch
from cases import normal
from state_cases import params_of, snapshot
from torch.utils._python_dispatch import TorchDispatchMode

from dsd_kernels import MaskedSGD, kth_magnitude, pack_mask, prune_, step_plan, unpack_mask

SHAPES = [torch.Size(shape) for shape in ((33, 6), (33,), (5, 33))]
PRECISIONS = {
    "float32": {},
    "master weights": {"dtype": torch.bfloat16, "master_weights": True},
    "stochastic rounding": {"dtype": torch.bfloat16, "stochastic_rounding": True, "momentum_dtype": torch.float32},
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def no_plan_of_addresses_without_a_gpu(monkeypatch):
    """A step is a call of `masked_sgd_` then, whose lists can be seen."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(step_plan, "_planned_calls", lambda snapshots: [])


def build(device, lr, dtype=torch.float32, **options):
    weights = [normal(shape.numel(), dtype, seed=i).view(shape) for i, shape in enumerate(SHAPES)]
    params = [torch.nn.Parameter(weight.to(device)) for weight in weights]
    return MaskedSGD(params, lr=lr, momentum=0.9, weight_decay=0.01, **options)


def set_gradients(optimizer, seed):
    """New values in the old gradients, as a captured backward pass would write them."""
    for i, p in enumerate(params_of(optimizer)):
        grad = normal(p.numel(), p.dtype, seed=100 * seed + i).view_as(p).to(p.device)
        p.grad = grad if p.grad is None else p.grad.copy_(grad)


def random_masks(optimizer, seed):
    params = params_of(optimizer)
    masks = [normal(p.numel(), torch.float32, seed=seed + i).view(p.shape) > 0 for i, p in enumerate(params)]
    return {p: mask.to(p.device) for p, mask in zip(params, masks, strict=True)}


class Addresses(TorchDispatchMode):
    """What the ops are called with, under the names of their arguments."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "dsd_kernels" and func._schema.name.endswith("_"):
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.name != "k":
                    self.note(argument.name, value)
            self.note("lr_tensor", [kwargs["lr_tensor"]] if "lr_tensor" in kwargs else [])
        return func(*args, **kwargs)

    def note(self, name, tensors):
        if tensors:
            self.seen.setdefault(name, []).append([t.data_ptr() for t in tensors])


@pytest.mark.feature("torch.compile and CUDA graphs", "weights, momentum, masks and lr stay where they are in memory")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_step_prune_or_new_mask_moves_a_tensor(backend, device, precision):
    optimizer = build(device, torch.tensor(0.1, device=device), **PRECISIONS[precision])
    params = params_of(optimizer)
    with Addresses() as addresses:
        for seed in range(4):
            set_gradients(optimizer, seed)
            optimizer.step()
            optimizer.param_groups[0]["lr"].mul_(0.5)
            if seed in (0, 2):
                optimizer.prune(0.2 + 0.3 * seed, params)
            elif seed == 1:
                optimizer.set_masks(random_masks(optimizer, seed=7))
    assert set(addresses.seen) >= {"params", "grads", "momentum_buffers", "masks", "lr_tensor"}
    assert [len(addresses.seen[name]) for name in ("params", "masks")] == [6, 5]  # of four steps and two prunes
    for name, calls in addresses.seen.items():
        assert all(call == calls[0] for call in calls), name
    written = addresses.seen["copies" if precision == "master weights" else "params"]
    assert written[0] == [p.data_ptr() for p in params]
    optimizer.verify()


class Recording(TorchDispatchMode):
    """Every op that a function dispatches, to be called again with the same tensors."""

    def __init__(self, function, n_warm_up=3):
        super().__init__()
        self.calls = []
        for _ in range(n_warm_up):
            function()
        with self:
            function()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "profiler":  # step's own range in profiles
            return func(*args, **kwargs or {})
        self.calls.append((func, args, kwargs or {}))  # as in a graph, nothing runs yet
        return None

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def capture(function, n_warm_up=3):
    """A graph of the function, which has run `n_warm_up` times then: capturing itself runs nothing."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(n_warm_up):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def reuse_freed_host_memory():
    """What a graph copies from the host at each replay must still be there, whoever pins memory in between."""
    for size in (1 << bits for bits in range(4, 16)):
        torch.full((size,), -1).pin_memory()


CHANGES = (
    lambda _: None,
    lambda optimizer: optimizer.param_groups[0]["lr"].fill_(0.03),
    lambda optimizer: optimizer.set_masks(random_masks(optimizer, seed=5)),
    lambda optimizer: optimizer.prune(0.7, params_of(optimizer)),
    lambda _: None,
)


def replay_beside_an_eager_twin(make_graph, device, **options):
    replayed, eager = twins = [build(device, torch.tensor(0.1, device=device), **options) for _ in range(2)]
    for optimizer in twins:
        set_gradients(optimizer, seed=0)
        optimizer.prune(0.5, params_of(optimizer))  # a graph captured without masks would not know of them later
    graph = make_graph(replayed.step)
    for _ in range(3):
        eager.step()
    assert snapshot(replayed) == snapshot(eager)
    for seed, change in enumerate(CHANGES, start=1):
        for optimizer in twins:
            set_gradients(optimizer, seed)
            change(optimizer)
        if device == "cuda":
            reuse_freed_host_memory()
        graph.replay()
        eager.step()
        assert snapshot(replayed) == snapshot(eager)
    replayed.verify()
    return graph


@pytest.mark.parametrize("options", [{}, {"fused": True}, PRECISIONS["master weights"]], ids=["", "fused", "master"])
def test_the_one_call_of_a_step_replays_as_the_eager_step(backend, device, options):
    recording = replay_beside_an_eager_twin(Recording, device, **options)
    assert [func._schema.name for func, _, _ in recording.calls] == ["dsd_kernels::masked_sgd_"]


@needs_gpu
@pytest.mark.usefixtures("gpu_backend")
@pytest.mark.feature("torch.compile and CUDA graphs", "CUDA graph of step, lr changed between replays")
@pytest.mark.feature("torch.compile and CUDA graphs", "CUDA graph of step, prune and set_masks between replays")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fused", [None, True])
def test_a_captured_step_replays_as_the_eager_step(fused, precision):
    replay_beside_an_eager_twin(capture, "cuda", fused=fused, **PRECISIONS[precision])


@needs_gpu
@pytest.mark.usefixtures("gpu_backend")
@pytest.mark.feature("torch.compile and CUDA graphs", "CUDA graph of step under GradScaler's overflow flag")
def test_a_captured_step_skips_by_the_flag_on_the_device():
    optimizer = build("cuda", torch.tensor(0.1, device="cuda"), fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.full((), 4.0, device="cuda"), torch.zeros((), device="cuda")
    set_gradients(optimizer, seed=0)
    graph = capture(optimizer.step)
    for found_inf in (1.0, 0.0, 2.0):
        before = snapshot(optimizer)
        optimizer.found_inf.fill_(found_inf)
        graph.replay()
        assert (snapshot(optimizer) == before) == (found_inf != 0)


@needs_gpu
@pytest.mark.usefixtures("gpu_backend")
@pytest.mark.feature("torch.compile and CUDA graphs", "CUDA graph of prune_, k changed on the device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_prune_takes_another_k_at_each_replay(dtype):
    sizes, ks = (1000, 70_001), ((0, 1), (500, 35_000), (1000, 70_000), (17, 70_001))
    originals = [normal(n, dtype, seed=n).cuda() for n in sizes]
    weights, buffers = [[t.clone() for t in originals] for _ in range(2)]
    masks = pack_mask([t > 0 for t in weights])
    k = torch.tensor(ks[0], device="cuda")
    graph = capture(lambda: prune_(weights, buffers, k=k, masks=masks))
    for counts in ks:
        for tensor, original in zip([*weights, *buffers], originals * 2, strict=True):
            tensor.copy_(original)
        k.copy_(torch.tensor(counts))
        reuse_freed_host_memory()
        graph.replay()
        expected = [t.clone() for t in originals]
        expected_masks = prune_(expected, k=list(counts))
        for got in (weights, buffers, unpack_mask(masks, weights)):
            wanted = expected if got[0].dtype == dtype else unpack_mask(expected_masks, weights)
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@needs_gpu
@pytest.mark.usefixtures("gpu_backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_selection_sees_new_weights_and_another_k(dtype):
    """Brackets, what they miss and what they find: the graph has all of these launches, whatever the weights are."""
    weights = [normal(n, dtype, seed=n).cuda() for n in (1000, 70_001)]
    k, out = torch.tensor([1, 2], device="cuda"), torch.empty(2, device="cuda")
    graph = capture(lambda: out.copy_(kth_magnitude(weights, k)))
    for seed, counts in enumerate([(500, 35_000), (0, 70_001), (1000, 1)]):
        for weight in weights:
            weight.copy_(normal(weight.numel(), dtype, seed=seed))
        if seed == 1:
            weights[1].fill_(-1.5)
        k.copy_(torch.tensor(counts))
        reuse_freed_host_memory()
        graph.replay()
        assert torch.equal(out, kth_magnitude(weights, list(counts)))
