"""P1: what watches an optimizer sees MaskedSGD as it sees torch.optim.SGD: hooks, the profiler, repr."""

import pytest
import torch
from side_by_side import parameters, take_steps
from torch.optim import optimizer as torch_optimizer

from dsd_kernels import MaskedSGD


@pytest.mark.feature("Arguments", "step hooks")
def test_step_hooks_of_one_and_of_all_optimizers_run_once_in_torchs_order():
    def calls_of(cls):
        params, calls = parameters((3,)), []
        optimizer = cls(params, lr=0.1)
        handles = [
            torch_optimizer.register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
            torch_optimizer.register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
            optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
            optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        ]
        take_steps(optimizer, params, 2)
        for handle in handles:
            handle.remove()
        take_steps(optimizer, params, 1)
        return calls

    calls = calls_of(MaskedSGD)
    assert calls == calls_of(torch.optim.SGD)
    assert len(calls) == 8


@pytest.mark.feature("Arguments", "step hooks")
def test_a_pre_hook_may_replace_the_arguments_of_step():
    optimizer = MaskedSGD(parameters((3,)), lr=0.1)
    optimizer.register_step_pre_hook(lambda optimizer, *_: ((optimizer,), {"closure": lambda: 7.0}))
    assert optimizer.step() == 7.0


@pytest.mark.feature("Arguments", "hooks of state_dict and load_state_dict")
def test_hooks_of_saving_and_loading_run_once_in_torchs_order():
    def calls_of(cls):
        optimizer, calls = cls(parameters((3,)), lr=0.1), []
        optimizer.register_state_dict_pre_hook(lambda o: calls.append("before saving"))
        optimizer.register_state_dict_post_hook(lambda o, state: calls.append(f"saved {sorted(state)}"))
        optimizer.register_load_state_dict_pre_hook(lambda o, state: calls.append(f"before loading {sorted(state)}"))
        optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
        optimizer.load_state_dict(optimizer.state_dict())
        return calls

    calls = calls_of(MaskedSGD)
    assert calls == calls_of(torch.optim.SGD)
    assert len(calls) == 4


@pytest.mark.feature("Arguments", "profiler ranges")
def test_the_profiler_sees_each_step_once():
    optimizer = MaskedSGD(parameters((3,)), lr=0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            optimizer.step()
        optimizer.zero_grad()
    counts = {event.key: event.count for event in profile.key_averages() if event.key.startswith("Optimizer.")}
    assert counts == {"Optimizer.step#MaskedSGD.step": 3, "Optimizer.zero_grad#MaskedSGD.zero_grad": 1}


@pytest.mark.feature("Arguments", "repr")
def test_the_repr_is_torchs_with_our_name_and_options():
    optimizer, torch_sgd = (cls(parameters((3,)), lr=0.25, momentum=0.9) for cls in (MaskedSGD, torch.optim.SGD))
    lines = repr(optimizer).splitlines()
    assert lines[0] == "MaskedSGD ("
    assert set(repr(torch_sgd).splitlines()[1:]) <= set(lines)
    assert "    mask_momentum: zero" in lines
