"""torch.compile over the optimizer: the bits of the eager step, and no graph more than training needs.

Every compilation takes a second, so that each test here does all that one of them allows.
"""

import pytest
import torch
from state_cases import batch, loss_of, mlp, snapshot
from torch._dynamo.utils import counters

from dsd_kernels import MaskedSGD

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_graphs_before_or_after():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def masked_training(compile_step, dtype=torch.float32, n_steps=8, **options):
    """Dense steps, then masked ones, then others of another mask; how many graphs there were after each step."""
    model = mlp(dtype)
    optimizer = MaskedSGD(model.parameters(), lr=torch.tensor(0.1), momentum=0.9, weight_decay=0.01, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)  # another rate each step, in the same tensor
    step, n_graphs = compile_step(optimizer.step), []
    for i in range(n_steps):
        if i == 3:
            optimizer.prune(0.5)
        elif i == 5:
            optimizer.prune(0.8)
        elif i == 6:
            optimizer.set_masks({p: ~mask for p, mask in optimizer.masks.items()})
        optimizer.zero_grad()
        loss_of(model, i).backward()
        step()
        scheduler.step()
        n_graphs.append(counters["stats"]["unique_graphs"])
    optimizer.verify()
    return snapshot(optimizer), n_graphs


@pytest.mark.feature("torch.compile and CUDA graphs", "torch.compile(optimizer.step)")
@pytest.mark.feature("torch.compile and CUDA graphs", "a tensor lr that changes: no recompiling")
@pytest.mark.feature("torch.compile and CUDA graphs", "masks that change between compiled steps")
def test_a_compiled_step_is_bitwise_the_eager_one_and_recompiles_only_for_new_state():
    expected, _ = masked_training(lambda step: step)
    got, n_graphs = masked_training(torch.compile)
    assert got == expected
    # one graph for the first step, one once there is momentum, one once there are masks
    assert n_graphs == [1, 2, 2, 3, 3, 3, 3, 3]


@pytest.mark.feature("torch.compile and CUDA graphs", "torch.compile with master weights or stochastic rounding")
@pytest.mark.parametrize(
    "options",
    [{"master_weights": True}, {"stochastic_rounding": True, "momentum_dtype": torch.float32}],
    ids=["master weights", "stochastic rounding"],
)
def test_a_compiled_step_of_half_precision_weights_is_bitwise_the_eager_one(options):
    expected, _ = masked_training(lambda step: step, torch.bfloat16, **options)
    got, n_graphs = masked_training(torch.compile, torch.bfloat16, **options)
    assert got == expected
    assert n_graphs[4:] == n_graphs[3:4] * 4


@pytest.mark.feature("torch.compile and CUDA graphs", "a whole train step compiled: forward, backward, step")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's look at the loss
@pytest.mark.parametrize("fused", [None, True])
def test_a_compiled_train_step_is_bitwise_the_eager_one(fused):
    """Compiled without Inductor, whose forward and backward passes round as they like; the step is what it is."""
    runs = []
    for compile_it in (lambda function: function, lambda function: torch.compile(function, backend="aot_eager")):
        model = mlp()
        optimizer = MaskedSGD(model.parameters(), lr=torch.tensor(0.1), momentum=0.9, nesterov=True, fused=fused)

        def train_step(inputs, labels, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            return loss

        compiled, losses = compile_it(train_step), []
        for i in range(5):
            if i == 2:
                optimizer.prune(0.5)
            losses.append(compiled(*batch(i)).item())
        optimizer.verify()
        runs.append((snapshot(optimizer), losses))
    assert runs[0] == runs[1]
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.feature("torch.compile and CUDA graphs", "a compiled model, stepped and pruned outside it")
def test_a_compiled_model_sees_every_step_and_prune():
    """The weights are changed in place, under the graph that reads them."""
    runs = []
    for compile_it in (lambda model: model, lambda model: torch.compile(model, backend="aot_eager")):
        model = mlp()
        optimizer, forward = MaskedSGD(model.parameters(), lr=0.1, momentum=0.9), compile_it(model)
        for i in range(4):
            if i == 2:
                optimizer.prune(0.5)
            optimizer.zero_grad()
            inputs, labels = batch(i)
            torch.nn.functional.cross_entropy(forward(inputs), labels).backward()
            optimizer.step()
        runs.append(snapshot(optimizer))
    assert runs[0] == runs[1]
    assert counters["stats"]["unique_graphs"] == 1
