"""What the tests of saved, skipped and resumed runs compare: every bit of an optimizer's weights and state."""

import torch
from cases import generator
from torch import Tensor


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def raw_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def snapshot(optimizer):
    """{(index of the parameter, "weight" or key of its state, mask included): bytes}."""
    state = optimizer.state_dict()["state"]
    return {
        (i, name): raw_bytes(value)
        for i, p in enumerate(params_of(optimizer))
        for name, value in {"weight": p, **state.get(i, {})}.items()
        if isinstance(value, Tensor)
    }


def mlp(dtype=torch.float32, seed=0):
    """A small network with the same weights every time, of sizes that fill no vector."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 33), torch.nn.Tanh(), torch.nn.Linear(33, 5))
    random = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random) / 3)
    return model.to(dtype)


def batch(step: int):
    random = generator(1000 + step)
    return torch.randn(16, 6, generator=random), torch.randint(5, (16,), generator=random)


def loss_of(model, step: int) -> Tensor:
    inputs, labels = batch(step)
    return torch.nn.functional.cross_entropy(model(inputs.to(next(model.parameters()).dtype)).float(), labels)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
