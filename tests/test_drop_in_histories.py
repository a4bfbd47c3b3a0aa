"""P1: whatever a training program does between two steps, and in any order, the bits are torch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from side_by_side import give_grads, parameters, side_by_side

SHAPES = ((3, 7), (65,), (), (0, 4), (1,))


def act(optimizer, params, action, seed):
    """One thing that a training program may do between two steps."""
    group = optimizer.param_groups[seed % len(optimizer.param_groups)]
    chosen = params[seed % len(params)]
    if action == "step":
        optimizer.step()
    elif action == "gradients":
        give_grads(params, seed)
    elif action == "no gradient":
        chosen.grad = None
    elif action == "options":
        group.update(lr=0.01 * (seed + 1), momentum=(0.0, 0.5, 0.9)[seed % 3], dampening=(0.0, 0.3)[seed % 2])
    elif action == "group":
        params += parameters((seed, 3))
        optimizer.add_param_group({"params": params[-1:], "momentum": 0.9, "weight_decay": 0.1})
    elif action == "write":
        with torch.no_grad():
            chosen.mul_(2)
    elif action == "move":
        chosen.data = chosen.data.clone()
    elif action == "momentum" and "momentum_buffer" in optimizer.state.get(chosen, {}):
        optimizer.state[chosen]["momentum_buffer"] = 2 * optimizer.state[chosen]["momentum_buffer"]
    elif action == "forget":
        optimizer.state.pop(chosen, None)
    elif action == "remove":
        for p in group["params"][-1:]:
            optimizer.state.pop(p, None)  # or torch could save no state dict
        group["params"] = group["params"][:-1]
    elif action == "reload":
        optimizer.load_state_dict(optimizer.state_dict())


ACTIONS = (
    *("step", "step", "step", "gradients", "no gradient", "options", "group", "write", "move", "momentum"),
    *("forget", "remove", "reload"),
)


@pytest.mark.feature("Arguments", "any order of steps, changes of options, groups and state, reloads")
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=30), st.booleans())
def test_any_history_gives_torchs_bits(history, masked):
    def train(optimizer, params):
        give_grads(params, 0)
        for action, seed in history:
            act(optimizer, params, action, seed)

    side_by_side(train, lambda: parameters(*SHAPES), masked, momentum=0.9)
