"""HOW: MaskedSGD, torch.optim.SGD with masks, one op call per device and dtype."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _use_grad_for_differentiable

from dsd_kernels import ops
from dsd_kernels.hyperparameters import OWN_DEFAULTS, check_group, check_new_group, learning_rate
from dsd_kernels.ops.checks import FLOAT_DTYPES, check_prune
from dsd_kernels.ops.layout import restride
from dsd_kernels.ops.reference import follow_copy
from dsd_kernels.packed_masks import PackedMasks
from dsd_kernels.parameters import as_list, check_mask, check_memory, dense, sharing
from dsd_kernels.precision import MASTER_WEIGHT, advance_seed, has_master, master_of
from dsd_kernels.shards import add_up, is_sharded, like, local, local_state, piece_sizes, placed_like, shares
from dsd_kernels.sparsity import check_sparsity, n_pruned
from dsd_kernels.state_dicts import Extracted, add_masks, extract
from dsd_kernels.step import Kept, Scaling, zero_pruned
from dsd_kernels.step_plan import Checked, StepPlan
from dsd_kernels.structure import NM, UNSTRUCTURED, check_count, check_groups, parse_structure, structured_mask
from dsd_kernels.verification import SparsityReport, Verification, check_counts, count_faults, sparsity_report


@dataclass
class _PruneCall:
    owners: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)  # the owners, dense copies of those with gaps, or masters
    momentum_buffers: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    k: list[Any] = field(default_factory=list)  # ints, or tensors on the device

    def k_tensor(self) -> Tensor:
        return torch.stack(self.k) if isinstance(self.k[0], Tensor) else ops.k_on_device(self.k, self.weights)


class MaskedSGD(torch.optim.SGD):
    """torch.optim.SGD whose step keeps masks: weights and momentum of pruned weights are +0 after every step.

    ``g = grad + weight_decay * p;  m = momentum * m + (1 - dampening) * g;  p = select(mask, p - lr * m, +0)``

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize, differentiable: as in torch.optim.SGD.
        foreach: accepted with torch's meaning of the results, which it does not change; every step is one fused call.
        fused: True makes `step` take GradScaler's scale and overflow flag itself, as in torch; the update is the same.
        mask_momentum: "zero" selects the momentum with the mask too, so that a pruned weight's momentum is 0;
            "keep" lets it run as in plain SGD followed by a mask. Default "zero".
        momentum_dtype: torch.float32 keeps the momentum of bfloat16 and float16 parameters in float32. Default None,
            the parameter's own dtype, as torch does.
        master_weights: update float32 master weights of bfloat16 and float16 parameters, and write the parameters,
            rounded to nearest even, in the same pass; their momentum is float32. Default False.
        stochastic_rounding: round updated bfloat16 and float16 parameters up or down at random, so that the expected
            value is exact and small updates are not lost. Default False.
        rounding_seed: what that depends on, beside the step and the place of the weight; give each optimizer of a run
            its own. Default 0.
        full_state_dict: let `state_dict()` have a mask for every parameter, all True where there is none (and load such
            a one as none): torch.distributed.checkpoint loads only what the new optimizer has too. Default False.

    Raises:
        ValueError, TypeError: torch's own texts for negative values; a hyper-parameter that is not a finite number; an
            option of our own with a value that it does not take; stochastic_rounding together with master_weights.

    Notes:
        Without masks, float32 and float64 results are bitwise torch.optim.SGD(foreach=False)'s, and state dicts
        interchange both ways. bfloat16 and float16 are computed in float32 and rounded once. No host synchronisation
        on a GPU, except that a first step with dampening and GradScaler(fused=True) reads the overflow flag.
        Masters, masks and float32 momentum belong together: `prune` selects by master weights where there are some. A
        parameter that is written by others (a checkpoint, an average) gives its new values to its master.
        Each group carries `lr_factor` (default 1): the step uses lr * lr_factor, so that a flow can scale the rate
        without disturbing a scheduler, which owns `lr`. Masks travel in `state_dict()` and survive copy and pickle.

    Source: torch.optim.SGD; Han et al. 2017 (arXiv 1607.04381), algorithm 1, for the mask.

    Example:
        >>> import torch
        >>> from dsd_kernels import MaskedSGD
        >>> layer = torch.nn.Linear(4, 2)
        >>> optimizer = MaskedSGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer.prune(0.5)
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> int((layer.weight == 0).sum())
        4
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        mask_momentum: str = "zero",
        momentum_dtype: torch.dtype | None = None,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        full_state_dict: bool = False,
    ) -> None:
        torchs = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        ours = {
            **OWN_DEFAULTS,
            "mask_momentum": mask_momentum,
            "momentum_dtype": momentum_dtype,
            "master_weights": master_weights,
            "stochastic_rounding": stochastic_rounding,
            "rounding_seed": rounding_seed,
            "full_state_dict": full_state_dict,
        }
        check_new_group(torchs | ours)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self._masks = PackedMasks()
        self._plan: StepPlan | None = None
        self._checked: Checked = {}
        self.defaults |= ours
        self._complete_groups()

    def _complete_groups(self) -> None:
        for group in self.param_groups:
            for name, default in OWN_DEFAULTS.items():
                group.setdefault(name, self.defaults.get(name, default))
            check_group(group)

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Perform one optimization step; with masks, every pruned weight is +0.0 afterwards.

        Args:
            closure: re-evaluates the model and returns the loss, as in torch. Default None.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a parameter whose elements overlap in memory, or a gradient that lies shifted over it; what
                takes torch's own loop (sparse gradients, ...) with fused or an option for half precision.
            TypeError, ValueError: a value that somebody wrote into a group and that cannot be stepped with.

        Notes:
            A step like the one before looks only whether anything but gradients and numbers has changed, and costs a
            fraction of the host's time of a first one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaling = Scaling(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        if not self._repeat(scaling):
            self._step_anew(scaling)
        for group in self.param_groups:
            if group["stochastic_rounding"]:
                advance_seed(group, learning_rate(group), scaling.found_inf)
        return loss

    def _repeat(self, scaling: Scaling) -> bool:
        """Whether the plan of the step before still held, and has been followed."""
        if torch.compiler.is_compiling():
            return False
        plan, self._plan = self._plan, None  # an error drops it
        if plan is None or not plan.repeat(self.param_groups, self._kept(), scaling):
            return False
        self._plan = plan
        return True

    def _step_anew(self, scaling: Scaling) -> None:
        # torch.compile knows a tensor by where it first meets it: that must not be the keys of self.state
        with_grad = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        # all groups are gathered and checked before any is stepped, so that an error leaves everything as it was
        plan = StepPlan(self.param_groups, with_grad, self._kept(), scaling, self._checked)
        plan.run(self.param_groups, self._kept())
        if plan.lasts:
            self._plan = plan

    def _kept(self) -> Kept:
        return Kept(self.state, self._masks)

    @torch.inference_mode(mode=False)  # masks must be writable outside, whatever mode they were made in
    @torch.no_grad()
    def prune(
        self,
        sparsity: float | Mapping[Tensor, float],
        params: Tensor | Iterable[Tensor] | None = None,
        *,
        structure: str = UNSTRUCTURED,
    ) -> None:
        """Prune the smallest magnitudes of each parameter, and keep them at zero from now on.

        ``mask = all but the round(sparsity * n) smallest |p|;  p = select(mask, p, +0)``

        Args:
            sparsity: fraction of weights to prune, in [0, 1): a float, or one per parameter, {parameter: float}.
            params: parameters of this optimizer to prune. Default: every one with two or more dimensions.
            structure: "unstructured", or N:M such as "2:4": of every M weights along the input dimension (dimension 1
                of linear, recurrent and convolution weights) the M - N smallest are pruned; the sparsity must be
                1 - N/M then, or 0. Default "unstructured".

        Raises:
            TypeError, ValueError: a sparsity that is none; a parameter that is not this optimizer's, is listed beside a
                dict, has no floating-point dtype of 16 to 64 bits, or no groups of M. Nothing has changed then.

        Notes:
            Exact: the set that a stable sort gives; ties go by lowest index in memory order. NaN is kept. A parameter
            that has a mask gets a new one; its pruned weights are 0, so they are the first to be pruned again. Momentum
            of pruned weights becomes 0 unless the group's mask_momentum is "keep". No host synchronisation on a GPU.
            N:M: ties go by lowest index in the group; it is selected by a sort in eager PyTorch, on any backend.

        Source: Han et al. 2017 (arXiv 1607.04381), algorithm 1.

        Example:
            >>> weight = torch.nn.Parameter(torch.tensor([[0.5, -0.1], [0.2, -2.0]]))
            >>> optimizer = MaskedSGD([weight], lr=0.1)
            >>> optimizer.prune(0.5)
            >>> weight.detach()
            tensor([[ 0.5000,  0.0000],
                    [ 0.0000, -2.0000]])
        """
        nm = parse_structure(structure)
        targets, groups = self._prune_targets(sparsity, params), self._groups()
        if nm is not None:
            self.set_masks(self._structured_masks(targets, groups, nm))
            return
        buckets: dict[tuple[torch.device, torch.dtype, bool, bool], _PruneCall] = defaultdict(_PruneCall)
        zeroed_after = []  # momentum of another dtype than its weight, after model.half() say
        weights = [self._weight(groups[p], p) for p in targets]
        own_k = shares(list(targets), weights, list(targets.values()))
        for p, weight, own in zip(targets, weights, own_k, strict=True):
            buffer = self._momentum(p) if groups[p]["mask_momentum"] == "zero" else None
            if buffer is not None and buffer.dtype != weight.dtype:
                zeroed_after.append((p, buffer))
                buffer = None
            call = buckets[weight.device, weight.dtype, buffer is not None, own is not None]
            call.owners.append(p)
            call.weights.append(weight)
            call.momentum_buffers += [] if buffer is None else [self._laid_out(p, buffer, weight)]
            call.masks.append(self._masks.writable_bits(p, weight))
            call.k.append(targets[p] if own is None else own)
        calls = [(call, call.k_tensor()) for call in buckets.values()]
        for call, k_tensor in calls:
            check_prune(call.weights, call.momentum_buffers, call.masks, k_tensor)
        for call, k_tensor in calls:
            self._run_prune(call, k_tensor)
        for p, buffer in zeroed_after:
            buffer.masked_fill_(~self._masks.unpacked(p), 0.0)

    def _structured_masks(
        self, targets: Mapping[Tensor, int], groups: Mapping[Tensor, dict[str, Any]], nm: NM
    ) -> dict[Tensor, Tensor]:
        names = self.parameter_names()
        for p, k in targets.items():
            check_groups(names[p], p.shape, nm, partial(piece_sizes, p))
            check_count(f"sparsity of {names[p]}", k, p.numel(), nm)
        return {p: like(p, structured_mask(self._weight(groups[p], p), k, nm)) for p, k in targets.items()}

    def _weight(self, group: dict[str, Any], p: Tensor) -> Tensor:
        """What a parameter is pruned by: itself, its dense copy, or its master weights where it has some."""
        here, entry = local(p), local_state(p, self.state.get(p, {}))
        own = dense(here)
        if has_master(group, p) and MASTER_WEIGHT in entry:
            master = master_of(here, own, entry)
            self._keep(p, MASTER_WEIGHT, master)
            return master.copy_(follow_copy(master, own))
        return own

    def _keep(self, p: Tensor, key: str, value: Tensor) -> None:
        """Put a local tensor into a parameter's state."""
        self.state[p][key] = like(p, value)

    def _momentum(self, p: Tensor) -> Tensor | None:
        """A parameter's momentum buffer, no longer sparse: a mask is kept on a dense one."""
        buffer: Tensor | None = local_state(p, self.state.get(p, {})).get("momentum_buffer")
        if buffer is not None and buffer.layout != torch.strided:
            buffer = buffer.to_dense()
            self._keep(p, "momentum_buffer", buffer)
        return buffer

    def _laid_out(self, p: Tensor, buffer: Tensor, weight: Tensor) -> Tensor:
        """The buffer in its weight's memory order: `model.to(memory_format=...)` changes only the weights."""
        if buffer.stride() != weight.stride():
            buffer = restride(buffer, weight)
            self._keep(p, "momentum_buffer", buffer)
        return buffer

    def _run_prune(self, call: _PruneCall, k: Tensor) -> None:
        # checked already, with the other calls: the public op would do it again
        torch.ops.dsd_kernels.prune_(call.weights, call.momentum_buffers, call.masks, k)
        sharded = filter(is_sharded, call.owners)
        torch.autograd.graph.increment_version([*call.weights, *call.momentum_buffers, *call.masks, *sharded])
        for p, weight, bits in zip(call.owners, call.weights, call.masks, strict=True):
            self._masks.adopt(p, weight, bits)
            here = local(p)
            if weight.data_ptr() != here.data_ptr():
                here.copy_(weight)

    def _prune_targets(
        self, sparsity: float | Mapping[Tensor, float], params: Tensor | Iterable[Tensor] | None
    ) -> dict[Tensor, int]:
        """How many weights each parameter loses; raises before anything changes."""
        argument = "params"
        if isinstance(sparsity, Mapping):
            if params is not None:
                raise ValueError("params: expected None beside a dict of sparsities, which names the parameters itself")
            wanted, argument = dict(sparsity), "sparsity"
            for p, name in self._owned(wanted, argument).items():
                check_sparsity(f"sparsity of {name}", wanted[p])
        else:
            check_sparsity("sparsity", sparsity)
            chosen = [p for p in self._params() if p.dim() >= 2] if params is None else as_list(params)
            wanted = dict.fromkeys(chosen, sparsity)
        for p, name in self._owned(wanted, argument).items():
            if p.dtype not in FLOAT_DTYPES or p.layout != torch.strided:
                expected = "a strided float32, float64, bfloat16 or float16 parameter"
                raise TypeError(f"{argument}: expected {expected}, {name} is {p.dtype} in layout {p.layout}")
            check_memory(name, p)
        self._check_apart(argument, wanted)
        return {p: n_pruned(s, p.numel()) for p, s in wanted.items()}

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def set_masks(self, masks: Mapping[Tensor, Tensor]) -> None:
        """Keep the given masks from now on, whatever they were made by; pruned weights become +0 at once.

        ``p = select(mask, p, +0)``

        Args:
            masks: {parameter: bool tensor of its shape, on its device}, True = keep. Other parameters' masks stay.

        Raises:
            TypeError, ValueError: a mask that is no bool tensor, or has another shape or device than its parameter; a
                parameter that is not this optimizer's. One bad mask among several: nothing has changed at all.

        Example:
            >>> weight = torch.nn.Parameter(torch.ones(2, 2))
            >>> optimizer = MaskedSGD([weight], lr=0.1)
            >>> optimizer.set_masks({weight: torch.eye(2, dtype=torch.bool)})
            >>> weight.detach()
            tensor([[1., 0.],
                    [0., 1.]])
        """
        if not isinstance(masks, Mapping):
            raise TypeError(f"masks: expected a dict {{parameter: bool tensor}}, got {type(masks).__name__}")
        for p, name in self._owned(masks, "masks").items():
            check_mask(name, p, masks[p])
        self._check_apart("masks", masks)
        groups, packed = self._groups(), PackedMasks()
        own = {p: placed_like(p, mask) for p, mask in masks.items()}
        for p, mask in own.items():
            packed.set(p, dense(local(p)), mask)
        self._masks.update(packed)
        for p, mask in own.items():
            zero_pruned(groups[p], p, mask, self.state.get(p, {}))

    @property
    def masks(self) -> dict[Tensor, Tensor]:
        """{parameter: bool mask of its shape, True = keep}: copies, of the masked parameters only."""
        return {p: like(p, self._masks.unpacked(p)) for p in self.masked_parameters}

    @property
    def masked_parameters(self) -> list[Tensor]:
        """The parameters that have a mask; nothing is unpacked."""
        return [p for p in self._params() if p in self._masks]

    def densify(self, params: Tensor | Iterable[Tensor] | None = None) -> None:
        """Drop masks: all weights train again, the pruned ones from 0.

        Args:
            params: parameters of this optimizer. Default: all that have a mask. One without a mask is left as it is.

        Raises:
            ValueError: a parameter that is not this optimizer's; nothing has changed then.

        Notes:
            Weights and momentum are not touched.

        Source: the re-dense phase of Han et al. 2017 (arXiv 1607.04381), algorithm 1.

        Example:
            >>> weight = torch.nn.Parameter(torch.ones(2, 2))
            >>> optimizer = MaskedSGD([weight], lr=0.1)
            >>> optimizer.prune(0.5)
            >>> optimizer.densify()
            >>> optimizer.masks
            {}
        """
        params = self.masked_parameters if params is None else as_list(params)
        for p in self._owned(params, "params"):
            self._masks.drop(p)

    def sparsity(self) -> SparsityReport:
        """The actual sparsity by the masks, per parameter and overall; synchronises with the device.

        Example:
            >>> weight = torch.nn.Parameter(torch.ones(10, 3))
            >>> optimizer = MaskedSGD([weight], lr=0.1)
            >>> optimizer.prune(0.3)
            >>> optimizer.sparsity().overall
            0.3
        """
        params = self.masked_parameters
        counts = add_up(params, [[int((~self._masks.unpacked(p)).sum())] for p in params])
        return sparsity_report(self.parameter_names(), {p: n for p, [n] in zip(params, counts, strict=True)})

    @torch.no_grad()
    def verify(self) -> Verification:
        """Check every promise about masks; synchronises with the device.

        Returns:
            A `Verification`; `str()` of it is a table of each parameter's counts, of values that are not finite too.

        Raises:
            RuntimeError: a pruned weight is not +0.0, a pruned weight has momentum (unless mask_momentum is "keep"), or
                a packed mask is damaged; with the table, and the parameters by name.

        Example:
            >>> weight = torch.nn.Parameter(torch.ones(2, 2))
            >>> optimizer = MaskedSGD([weight], lr=0.1)
            >>> optimizer.prune(0.5)
            >>> print(optimizer.verify())
            parameter                     weights  pruned  sparsity  not finite  verdict
            params[0] of param_groups[0]        4       2    0.5000           0  ok
        """
        params, names, groups, faults = self.masked_parameters, self.parameter_names(), self._groups(), []
        for p in params:
            group, entry = groups[p], local_state(p, self.state.get(p, {}))
            buffer = self._momentum(p) if group["mask_momentum"] == "zero" else None
            master = entry.get(MASTER_WEIGHT) if has_master(group, p) else None
            mask, intact = self._masks.unpacked(p), self._masks.is_intact(p)
            faults.append(count_faults(local(p), mask, buffer, master, intact))
        counts = zip(params, add_up(params, faults), strict=True)
        verification = Verification(tuple(check_counts(names[p], p.numel(), found) for p, found in counts))
        if verification.errors:
            raise RuntimeError(f"masks are broken: {'; '.join(verification.errors)}\n{verification}")
        return verification

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict, with each mask as a bool tensor of its parameter's shape under `state[i]["mask"]`."""

        def emit(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            add_masks(state_dict, self.param_groups, self.masks)

        with self.register_state_dict_post_hook(emit, prepend=True):  # before the user's own hooks
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of torch.optim.SGD; the masks become those of the state dict, or none.

        Args:
            state_dict: as `state_dict()` returns it.

        Raises:
            ValueError: groups, momentum or masks that do not match the parameters, by name; nothing has changed then.

        Notes:
            Weights are not touched: load the model too, in either order. Loading a state without masks drops the masks.
        """
        packed, extracted = PackedMasks(), Extracted()

        def split(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            nonlocal extracted
            stripped, extracted = extract(state_dict, self.param_groups, self.parameter_names())
            for p, mask in extracted.masks.items():
                packed.set(p, dense(local(p)), mask)
            return stripped

        def adopt(_: torch.optim.Optimizer) -> None:
            self._masks.replace(packed)
            for p, entry in extracted.wide.items():
                self.state[p].update(entry)

        # after the user's pre-hooks, which may reorder parameters, and before the user's post-hooks
        with (
            self.register_load_state_dict_pre_hook(split),
            self.register_load_state_dict_post_hook(adopt, prepend=True),
        ):
            super().load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the group's own hyper-parameters are checked first."""
        if isinstance(param_group, dict):
            check_new_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if "mask_momentum" in self.defaults:  # torch's __init__ adds the first groups before there are ours
            self._complete_groups()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_masks": self._masks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_masks", PackedMasks())
        self._plan = None
        self._checked = {}
        self._complete_groups()
        # torch.optim.SGD forgets it in copies
        self._step_supports_amp_scaling = any(group["fused"] for group in self.param_groups)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _groups(self) -> dict[Tensor, dict[str, Any]]:
        return {p: group for group in self.param_groups for p in group["params"]}

    def parameter_names(self) -> dict[Tensor, str]:
        """{parameter: its name, as errors and tables call it}: the user's own, where the groups have names."""
        return {
            p: group["param_names"][i] if "param_names" in group else f"params[{i}] of param_groups[{g}]"
            for g, group in enumerate(self.param_groups)
            for i, p in enumerate(group["params"])
        }

    def _owned(self, params: Iterable[object], argument: str) -> dict[Tensor, str]:
        """Parameters with their names; one that is not this optimizer's is an error of the named argument."""
        names, owned = self.parameter_names(), {}
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"{argument}: expected a parameter of this optimizer, got {type(p).__name__}")
            if p not in names:
                raise ValueError(
                    f"{argument}: expected parameters of this optimizer, got another of shape {tuple(p.shape)}"
                )
            owned[p] = names[p]
        return owned

    def _check_apart(self, argument: str, params: Iterable[Tensor]) -> None:
        shared = set(map(id, sharing(list(dict.fromkeys(self._params())))))
        if any(id(p) in shared for p in params):
            raise RuntimeError(
                f"{argument}: two parameters share memory, so that each would get the other's mask; make them one "
                "parameter, or clone() one"
            )
