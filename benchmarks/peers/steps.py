"""The masked step: this library, and torch's SGD in all its implementations with all the usual masks."""

from collections.abc import Callable

import torch

from dsd_kernels import MaskedSGD

from ..cases import BIT, Moves
from ..workloads import Inputs
from .contender import HYPERPARAMETERS, IMPLEMENTATIONS, Contender, Task, adopt_momentum

Bind = Callable[[Inputs], Task]
UNMASKED = "dsd_kernels, no mask"
# fused reads p, g, m and writes p, m; the others read and write each for weight decay, momentum, Nesterov and update
STEP_MOVES = {"fused": 5, "foreach": 14, "for-loop": 14}
USUAL = ("fused + bool mask on p", "fused + float mask on p", "fused + float masks on p, m")


def masked_sgd(inputs: Inputs) -> Task:
    optimizer = MaskedSGD(inputs.params, **HYPERPARAMETERS)
    optimizer.set_masks(dict(zip(inputs.targets, inputs.masks, strict=True)))
    adopt_momentum(optimizer, inputs)
    return Task(optimizer.step)


def unmasked_sgd(inputs: Inputs) -> Task:
    optimizer = MaskedSGD(inputs.params, **HYPERPARAMETERS)
    adopt_momentum(optimizer, inputs)
    return Task(optimizer.step)


def torch_sgd(**implementation: bool) -> Bind:
    """torch.optim.SGD without a mask, in one of its implementations."""

    def bind(inputs: Inputs) -> Task:
        check_updates(inputs.params[0], implementation)
        optimizer = torch.optim.SGD(inputs.params, **HYPERPARAMETERS, **implementation)
        adopt_momentum(optimizer, inputs)
        return Task(optimizer.step)

    return bind


def check_updates(like: torch.Tensor, implementation: dict[str, bool]) -> None:
    """Refuse an implementation that leaves weights as they are: the fused one does on a CPU in half precision."""
    probe = torch.nn.Parameter(torch.ones(1000, dtype=like.dtype, device=like.device))
    probe.grad = torch.ones_like(probe)
    torch.optim.SGD([probe], lr=0.5, momentum=0.9, **implementation).step()
    if missed := int((probe == 1).sum()):
        raise NotImplementedError(f"leaves {missed} of 1000 weights un-updated in {str(like.dtype)[6:]}")


def masked(inputs: Inputs, *, on_momentum: bool) -> list[torch.Tensor]:
    return inputs.targets + (inputs.target_buffers if on_momentum else [])


def torch_sgd_bool_mask(*, on_momentum: bool = False, **implementation: bool) -> Bind:
    """The step, then `p.mul_(mask)`: on a CPU the faster of the usual ways, though slower than its bytes say.

    torch casts the mask there in small blocks: 8 times the time of a float mask; `masked_fill_` takes 13 times.
    """

    def bind(inputs: Inputs) -> Task:
        step = torch_sgd(**implementation)(inputs).run
        tensors = masked(inputs, on_momentum=on_momentum)
        masks = inputs.masks * (1 + on_momentum)

        @torch.no_grad()
        def run() -> None:
            step()
            for tensor, mask in zip(tensors, masks, strict=True):
                tensor.mul_(mask)

        return Task(run)

    return bind


def torch_sgd_float_masks(*, on_momentum: bool, **implementation: bool) -> Bind:
    """The step, then one multi-tensor product with float masks: one launch or few, where there are launches."""

    def bind(inputs: Inputs) -> Task:
        step = torch_sgd(**implementation)(inputs).run
        tensors = masked(inputs, on_momentum=on_momentum)
        masks = [mask.to(p.dtype) for p, mask in zip(inputs.targets, inputs.masks, strict=True)] * (1 + on_momentum)

        @torch.no_grad()
        def run() -> None:
            step()
            torch._foreach_mul_(tensors, masks)

        return Task(run)

    return bind


def compiled_sgd_bool_masks(inputs: Inputs) -> Task:
    """One graph of the step and the products, which Inductor fuses."""
    torch._dynamo.reset()  # the graphs of earlier cases would count against the limit of recompilations
    return Task(torch.compile(torch_sgd_bool_mask(on_momentum=True)(inputs).run))


def torch_contenders(kind: str) -> list[Contender]:
    """One implementation of torch.optim.SGD: without a mask, with bool and float masks, on weights and on momentum."""
    implementation, moves, plain = IMPLEMENTATIONS[kind], STEP_MOVES[kind], f"torch {kind}, no mask"
    found = [Contender(plain, torch_sgd(**implementation), Moves(moves), is_usual=True)]
    for on_momentum, where in ((False, "mask on p"), (True, "masks on p, m")):
        n = 1 + on_momentum  # each product reads and writes what is masked, and reads the mask
        bools = torch_sgd_bool_mask(on_momentum=on_momentum, **implementation)
        floats = torch_sgd_float_masks(on_momentum=on_momentum, **implementation)
        for mask, bind, own in (("bool", bools, Moves(moves + 2 * n, n)), ("float", floats, Moves(moves + 3 * n))):
            name = f"{kind} + {mask} {where}"
            is_usual = name in USUAL or name == "foreach + float masks on p, m"
            found.append(Contender(f"torch {name}", bind, own, plain, is_usual))
    return found


STEPS = (
    Contender("dsd_kernels, masked", masked_sgd, Moves(5, BIT), UNMASKED, is_usual=True),
    Contender(UNMASKED, unmasked_sgd, Moves(5), is_usual=True),
    *(contender for kind in IMPLEMENTATIONS for contender in torch_contenders(kind)),
    Contender("torch.compile'd SGD + bool masks on p, m", compiled_sgd_bool_masks, is_slow=True, compiles=True),
)
