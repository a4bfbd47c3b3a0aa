"""Promises of DSD: its trace, masks and momentum at phase changes, the scheduler left alone, bitwise resuming."""

import copy

import pytest
import torch
from cases import bits_equal
from flow_cases import (
    Net,
    Run,
    check_resuming_everywhere,
    equal_snapshots,
    make_flow,
    momentum_of,
    n_pruned,
    sgd,
    train_epoch,
)
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from dsd_kernels import MaskedSGD, masks
from dsd_kernels.flows import DSD, Flow
from dsd_kernels.schedule import Phase, Schedule

LENGTHS = {"dense": 2, "sparse": 3, "redense": 2}


def make(model: nn.Module | None = None, **options) -> tuple[nn.Module, MaskedSGD, DSD]:
    return make_flow(DSD, model, **{**LENGTHS, "sparsity": 0.5, **options})


class TestTrace:
    def test_dense_sparse_dense(self):
        model, optimizer, dsd = make()
        n = [model.conv.weight.numel(), model.head.weight.numel()]
        assert n == [288, 160]
        trace = []
        for epoch in range(7):
            lr_factor = optimizer.param_groups[0]["lr_factor"]
            trace.append((dsd.position, dsd.phase.name, dsd.phase.sparsity, lr_factor, n_pruned(optimizer)))
            train_epoch(model, optimizer, epoch)
            optimizer.verify()
            dsd.step()
        assert trace == [
            (0, "dense", 0.0, 1.0, []),
            (1, "dense", 0.0, 1.0, []),
            (2, "sparse", 0.5, 1.0, [144, 80]),
            (3, "sparse", 0.5, 1.0, [144, 80]),
            (4, "sparse", 0.5, 1.0, [144, 80]),
            (5, "redense", 0.0, 0.1, []),
            (6, "redense", 0.0, 0.1, []),
        ]
        assert dsd.finished
        assert optimizer.masks == {}
        assert model.conv.weight.count_nonzero() == 288

    def test_iterations_with_their_own_sparsity_length_and_learning_rate(self):
        _, _, dsd = make(
            dense=20, sparse=20, redense=20, iterations=2, sparsity=(0.5, 0.25), lr_factors=(1, 1, 0.1, 0.1, 0.02)
        )
        assert dsd.phases == (
            Phase("dense", 20),
            Phase("sparse", 20, 0.5, 1.0),
            Phase("redense", 20, 0.0, 0.1),
            Phase("sparse", 20, 0.25, 0.1),
            Phase("redense", 20, 0.0, 0.02),
        )
        _, _, dsd = make(dense=1, sparse=(3, 2), redense=[2, 1], iterations=2, sparsity=0.5, momentum="zero_all")
        assert dsd.phases == (
            Phase("dense", 1),
            Phase("sparse", 3, 0.5, 1.0),
            Phase("redense", 2, 0.0, 0.1, "zero_all"),
            Phase("sparse", 2, 0.5, 1.0),
            Phase("redense", 1, 0.0, 0.1, "zero_all"),
        )

    def test_the_mask_is_that_of_the_smallest_magnitudes_and_does_not_change_within_the_phase(self):
        model, optimizer, dsd = make()
        for epoch in range(2):
            train_epoch(model, optimizer, epoch)
            expected = masks.magnitude_masks([model.conv.weight, model.head.weight], 0.5)
            dsd.step()
        for epoch in range(2, 5):
            assert all(torch.equal(a, b) for a, b in zip(optimizer.masks.values(), expected, strict=True))
            train_epoch(model, optimizer, epoch)
            for weight, mask in zip((model.conv.weight, model.head.weight), expected, strict=True):
                assert bits_equal(weight[~mask], torch.zeros(int((~mask).sum())))
            dsd.step()

    def test_a_kept_weight_that_happens_to_be_0_is_not_lost(self):
        model, optimizer, dsd = make(dense=0)
        kept = optimizer.masks[model.head.weight].nonzero()[0]
        with torch.no_grad():
            model.head.weight[tuple(kept)] = 0.0
        dsd.step()
        train_epoch(model, optimizer, 0)
        assert model.head.weight[tuple(kept)] != 0
        assert n_pruned(optimizer) == [144, 80]

    @pytest.mark.parametrize("value", [0.0, 0.02])
    def test_a_constant_layer_loses_exactly_its_share(self, value):
        model = Net()
        nn.init.constant_(model.head.weight, value)
        _, optimizer, _ = make(model, dense=0, sparsity=0.3)
        assert n_pruned(optimizer) == [86, 48]

    def test_without_a_dense_phase_it_starts_sparse(self):
        _, optimizer, dsd = make(dense=0)
        assert (dsd.phase.name, dsd.position, dsd.finished) == ("sparse", 0, False)
        assert n_pruned(optimizer) == [144, 80]

    def test_a_length_of_0_leaves_a_phase_out(self):
        _, optimizer, dsd = make(redense=0)
        for _ in range(5):
            dsd.step()
        assert (dsd.phase.name, dsd.finished, n_pruned(optimizer)) == ("sparse", True, [144, 80])
        _, _, lower_rate = make(sparse=0)
        assert [phase.name for phase in lower_rate.phases] == ["dense", "redense"]

    def test_after_the_end_nothing_happens(self):
        model, optimizer, dsd = make()
        for _ in range(7):
            dsd.step()
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), dsd.state_dict()))
        dsd.step()
        assert dsd.finished
        assert dsd.phase.name == "redense"
        assert dsd.state_dict() == before[2]
        assert optimizer.state_dict()["param_groups"] == before[1]["param_groups"]
        assert all(torch.equal(before[0][name], tensor) for name, tensor in model.state_dict().items())

    def test_it_reads_well(self):
        _, _, dsd = make()
        assert repr(dsd) == "DSD(epoch 0 of 7, in dense: length 2, sparsity 0, lr factor 1, momentum keep)"


class TestWhatIsPruned:
    @pytest.mark.parametrize(("distribution", "total"), [("global", 224), ("erk", 224), ({"head.weight": 0.5}, 80)])
    def test_options_go_to_the_plan(self, distribution, total):
        sparsity = None if isinstance(distribution, dict) else 0.5
        _, optimizer, dsd = make(dense=0, sparsity=sparsity, distribution=distribution)
        assert sum(n_pruned(optimizer)) == total == dsd.plan.n_pruned
        assert dsd.phase.sparsity == 0.5
        _, optimizer, _ = make(dense=0, exclude="head.*", include="norm.weight", exclude_first=False, min_weights=300)
        assert n_pruned(optimizer) == [4]

    def test_the_plan_is_the_last_one(self):
        _, _, dsd = make(iterations=2, sparsity=(0.5, 0.25))
        assert dsd.plan is None
        seen = []
        while not dsd.finished:
            dsd.step()
            seen.append(dsd.plan and dsd.plan.sparsity)
        assert seen == [None, *[0.5] * 5, *[0.25] * 6]

    def test_frozen_and_foreign_parameters_are_left_alone(self):
        model = Net()
        model.head.weight.requires_grad_(False)
        optimizer = MaskedSGD([model.conv.weight, model.head.weight], lr=0.1)
        before = model.head.weight.clone()
        dsd = DSD(optimizer, model, **{**LENGTHS, "dense": 0}, sparsity=0.5, exclude_first=False)
        assert list(optimizer.masks) == [model.conv.weight]
        assert torch.equal(model.head.weight, before)
        found = {row.name: row.reason for row in dsd.plan.rows}
        assert found["stem.weight"] == "parameter is not among the given ones"
        assert found["head.weight"] == "frozen (requires_grad is False)"

    def test_nothing_to_prune_is_an_error_with_the_reasons(self):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        with pytest.raises(ValueError, match=r"(?s)model: expected a parameter to prune.*first convolution"):
            make(model)


class TestMomentum:
    @staticmethod
    def to_redense(mask_momentum: str, policy: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Momentum of the head before and after the start of re-dense, and its mask before; some kept weights are 0."""
        model, optimizer, dsd = make(momentum=policy, sgd={"mask_momentum": mask_momentum})
        for epoch in range(5):
            train_epoch(model, optimizer, epoch)
            mask = optimizer.masks.get(model.head.weight)
            before = momentum_of(optimizer, model.head.weight).clone()
            if epoch == 4:
                nn.init.zeros_(model.head.weight.data[:5])
            dsd.step()
        assert dsd.phase.name == "redense"
        return before, momentum_of(optimizer, model.head.weight), mask

    @pytest.mark.parametrize("policy", ["keep", "zero_regrown"])
    def test_reborn_weights_have_no_momentum_under_zero(self, policy):
        before, after, mask = self.to_redense("zero", policy)
        assert bits_equal(before, after)
        assert not after[~mask].any()
        assert after[mask].all()

    def test_keep_keeps_all(self):
        before, after, mask = self.to_redense("keep", "keep")
        assert bits_equal(before, after)
        assert after[~mask].all()

    def test_zero_regrown_zeroes_the_reborn_and_only_these(self):
        before, after, mask = self.to_redense("keep", "zero_regrown")
        assert before[~mask].all()
        assert not after[~mask].any()
        assert bits_equal(before[mask], after[mask])

    def test_zero_all(self):
        before, after, _ = self.to_redense("zero", "zero_all")
        assert before.any()
        assert not after.any()

    def test_zero_regrown_from_sparse_to_less_sparse(self):
        model = Net()
        optimizer = sgd(model, mask_momentum="keep")
        schedule = Schedule([Phase("sparse", 1, 0.8), Phase("sparser", 1, 0.4, momentum="zero_regrown")])
        flow = Flow(optimizer, model, schedule)
        train_epoch(model, optimizer, 0)
        old_mask, old = optimizer.masks[model.head.weight], momentum_of(optimizer, model.head.weight).clone()
        flow.step()
        regrown = ~old_mask & optimizer.masks[model.head.weight]
        assert int(regrown.sum()) == 64
        new = momentum_of(optimizer, model.head.weight)
        assert not new[regrown].any()
        assert bits_equal(new[~regrown], old[~regrown])

    def test_momentum_is_zeroed_in_place(self):
        model, optimizer, dsd = make(dense=0, sparse=1, momentum="zero_all")
        train_epoch(model, optimizer, 0)
        address = momentum_of(optimizer, model.conv.weight).data_ptr()
        dsd.step()
        assert momentum_of(optimizer, model.conv.weight).data_ptr() == address

    @pytest.mark.parametrize("policy", ["keep", "zero_regrown", "zero_all"])
    def test_without_momentum_no_policy_matters(self, policy):
        model, optimizer, dsd = make(momentum=policy, sgd={"momentum": 0, "nesterov": False})
        for epoch in range(7):
            train_epoch(model, optimizer, epoch)
            dsd.step()
        assert dsd.finished


class TestLearningRate:
    def test_a_scheduler_of_torch_runs_as_without_dsd(self):
        model, optimizer, dsd = make(lr_factors=(1, 0.5, 0.1))
        scheduler = CosineAnnealingLR(optimizer, T_max=7)
        alone = torch.optim.SGD([torch.ones(1)], lr=0.1)
        scheduler_alone = CosineAnnealingLR(alone, T_max=7)
        factors = []
        for epoch in range(7):
            train_epoch(model, optimizer, epoch)
            assert optimizer.param_groups[0]["lr"] == alone.param_groups[0]["lr"]
            factors.append(optimizer.param_groups[0]["lr_factor"])
            alone.step()
            scheduler_alone.step()
            for part in (scheduler, dsd) if epoch % 2 else (dsd, scheduler):
                part.step()
        assert factors == [1, 1, 0.5, 0.5, 0.5, 0.1, 0.1]

    def test_the_factor_scales_the_update(self):
        model, optimizer, _ = make(nn.Linear(16, 16), dense=1, lr_factors=(0.25, 1, 1))
        alone = copy.deepcopy(model)
        plain = torch.optim.SGD(alone.parameters(), lr=0.025, momentum=0.9, weight_decay=1e-3, nesterov=True)
        for net, opt in ((model, optimizer), (alone, plain)):
            net(torch.ones(1, 16)).sum().backward()
            opt.step()
        assert bits_equal(model.weight, alone.weight)

    def test_groups_added_later_get_the_factor(self):
        _, optimizer, dsd = make(dense=1, lr_factors=(0.5, 0.25, 0.1))
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
        dsd.step()
        assert [group["lr_factor"] for group in optimizer.param_groups] == [0.25, 0.25]


class TestResume:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"dense": 0, "sgd": {"mask_momentum": "keep"}, "momentum": "zero_regrown"},
            {"sparse": (2, 1), "redense": 1, "iterations": 2, "sparsity": (0.5, 0.25), "distribution": "global"},
            {"dense": 1, "momentum": "zero_all"},
        ],
        ids=["default", "from-sparse", "iterative", "zero-all"],
    )
    def test_stop_and_resume_at_every_position_is_bitwise_the_run_that_never_stopped(self, options):
        check_resuming_everywhere(DSD, **{**LENGTHS, "sparsity": 0.5, **options})

    def test_loading_does_not_prune_again(self):
        model, optimizer, dsd = make(dense=1)
        dsd.step()
        before = optimizer.masks
        nn.init.zeros_(model.head.weight)
        dsd.load_state_dict(dsd.state_dict())
        assert all(torch.equal(optimizer.masks[p], mask) for p, mask in before.items())

    def test_the_state_dict_is_plain(self):
        _, _, dsd = make(unit="step")
        dsd.step()
        rest = {"momentum": "keep", "regrown": "zero", "grown": None}
        assert dsd.state_dict() == {
            "position": 1,
            "unit": "step",
            "phases": [
                {"name": "dense", "length": 2, "sparsity": 0.0, "lr_factor": 1.0, **rest},
                {"name": "sparse", "length": 3, "sparsity": 0.5, "lr_factor": 1.0, **rest},
                {"name": "redense", "length": 2, "sparsity": 0.0, "lr_factor": 0.1, **rest},
            ],
            "choices": {
                "selection": "magnitude",
                "seed": 0,
                "partitions": [],
                "distribution": "uniform",
                "exclude_first": True,
                "include": [],
                "exclude": [],
                "min_weights": 64,
                "structure": "unstructured",
            },
            "tensors": {"pruned_values": {}},
        }

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"sparse": 4}, ValueError, r"phases\[1\]: expected .*length=3.*, got .*length=4"),
            ({"sparsity": 0.500000001}, ValueError, r"phases\[1\]: expected .*y=0.5,.*, got .*y=0.500000001"),
            ({"lr_factors": (1, 1, 0.2)}, ValueError, r"phases\[2\]: expected .*lr_factor=0.1.*, got .*lr_factor=0.2"),
            ({"momentum": "zero_all"}, ValueError, r"phases\[2\]: expected .*'keep'.*, got .*'zero_all'"),
            ({"iterations": 2}, ValueError, "expected 3 phases, got 5"),
            ({"unit": "step"}, ValueError, "expected unit 'epoch', got 'step'"),
            ({"seed": 5}, ValueError, "state_dict: expected seed 0, got 5$"),
            ({"selection": "random"}, ValueError, "expected selection 'magnitude', got 'random'"),
            ({"structure": "2:4", "seed": 1}, ValueError, "seed 0, got 1; structure 'unstructured', got '2:4'"),
            ({"distribution": "erk"}, ValueError, "expected distribution 'uniform', got 'erk'"),
            ({"exclude": ["conv*"]}, ValueError, r"expected exclude \[\], got \['conv\*'\]"),
            ({"min_weights": 200}, ValueError, "expected min_weights 64, got 200"),
        ],
    )
    def test_a_state_dict_of_another_schedule_is_refused(self, change, error, text):
        _, _, other = make(**change)
        for _ in range(3):
            other.step()
        self.refuse(other.state_dict(), error, text)

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"position": 8}, ValueError, r"position: expected an integer in \[0, 7\], got 8"),
            ({"position": "3"}, TypeError, r"position: expected an integer in \[0, 7\], got '3'"),
            ({"phases": None}, TypeError, "phases: expected a list of dicts, got None"),
            ({"more": 1}, ValueError, "expected the keys .*, got .*'more'"),
            ({"choices": None}, ValueError, r"choices: expected a dict with the keys \['selection', .*, got None"),
            ({"choices": {"sed": 1}}, ValueError, r"choices: expected a dict with the keys .*, got \{'sed': 1\}"),
        ],
    )
    def test_a_damaged_state_dict_is_refused(self, change, error, text):
        self.refuse({**make()[2].state_dict(), **change}, error, text)

    def test_what_is_no_state_dict_is_refused(self):
        self.refuse({}, ValueError, r"state_dict: expected the keys \['position', .*, got \[\]")
        self.refuse([1, 2], TypeError, "state_dict: expected a dict, got list")
        self.refuse(sgd(Net()).state_dict(), ValueError, "state_dict: expected the keys")

    @staticmethod
    def refuse(state_dict: object, error: type[Exception], text: str) -> None:
        run = Run(DSD, **LENGTHS, sparsity=0.5)
        run.epoch()
        before = run.snapshot()
        with pytest.raises(error, match=text):
            run.flow.load_state_dict(state_dict)
        assert equal_snapshots(run.snapshot(), before)


class TestBadArguments:
    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"sparsity": -0.1}, ValueError, r"sparsity: expected a number in \[0, 1\), got -0.1"),
            ({"sparsity": 1.0}, ValueError, r"sparsity: expected a number in \[0, 1\), got 1.0"),
            ({"sparsity": float("nan")}, ValueError, r"sparsity: expected a number in \[0, 1\), got nan"),
            ({"sparsity": "half"}, TypeError, r"sparsity: expected a number in \[0, 1\), got 'half'"),
            ({"sparsity": True}, TypeError, r"sparsity: expected a number in \[0, 1\), got True"),
            ({"sparsity": None}, TypeError, r"sparsity: expected a number in \[0, 1\), got None"),
            ({"sparsity": (0.5, 1.5), "iterations": 2}, ValueError, r"sparsity\[1\]: expected .* got 1.5"),
            ({"sparsity": (0.5,), "iterations": 2}, ValueError, "sparsity: expected 2 values, one per iteration"),
            ({"sparsity": 0.5, "distribution": {"head.weight": 0.5}}, ValueError, "sparsity: expected None beside"),
            ({"dense": -1}, ValueError, "dense: expected an integer, 0 or more, got -1"),
            ({"sparse": 1.5}, TypeError, "sparse: expected an integer, 0 or more, got 1.5"),
            ({"redense": (1, -2), "iterations": 2}, ValueError, r"redense\[1\]: expected an integer, .* got -2"),
            ({"sparse": (1, 2)}, ValueError, "sparse: expected 1 values, one per iteration, got 2"),
            ({"dense": 0, "sparse": 0, "redense": 0}, ValueError, "phases: expected a total length above 0"),
            ({"iterations": 0}, ValueError, "iterations: expected an integer, 1 or more, got 0"),
            ({"iterations": 1.0}, TypeError, "iterations: expected an integer"),
            ({"lr_factors": (1, 1)}, ValueError, "lr_factors: expected 3 values, got 2"),
            ({"lr_factors": 0.1}, TypeError, "lr_factors: expected a sequence of numbers, got 0.1"),
            ({"lr_factors": (1, -1, 1)}, ValueError, r"lr_factors\[1\]: expected a finite number, 0 or more, got -1"),
            ({"unit": "batch"}, ValueError, "unit: expected epoch or step, got 'batch'"),
            ({"momentum": "drop"}, ValueError, "momentum: expected one of keep, zero_regrown, zero_all, got 'drop'"),
            ({"distribution": "layerwise"}, ValueError, "distribution: expected uniform, erk, global or"),
            ({"include": "fc.weight"}, ValueError, "include: .* 'fc.weight' matches none"),
            ({"distrbution": "erk"}, TypeError, "distrbution: DSD has no such argument, got 'erk'; its options are"),
            ({"selectoin": "random"}, TypeError, "selectoin: DSD has no such argument, .* unit, selection, seed"),
        ],
    )
    def test_each_is_named_and_nothing_has_changed(self, options, error, text):
        model = Net()
        optimizer = sgd(model)
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        with pytest.raises(error, match=text):
            DSD(optimizer, model, **{"dense": 0, "sparse": 3, "redense": 2, "sparsity": 0.5, **options})
        assert all(torch.equal(before[0][name], tensor) for name, tensor in model.state_dict().items())
        assert optimizer.state_dict() == before[1]

    def test_optimizer_and_model(self):
        model = Net()
        with pytest.raises(TypeError, match="optimizer: expected a MaskedSGD, got SGD"):
            DSD(torch.optim.SGD(model.parameters()), model, **LENGTHS, sparsity=0.5)
        with pytest.raises(TypeError, match="model: expected a Module, got dict"):
            DSD(sgd(model), {}, **LENGTHS, sparsity=0.5)
        optimizer = sgd(model)
        optimizer.prune(0.5, [model.conv.weight])
        with pytest.raises(ValueError, match="optimizer: expected one without masks, 1 parameters have one"):
            DSD(optimizer, model, **LENGTHS, sparsity=0.5)


def test_a_flow_of_one_s_own_is_a_schedule():
    """Sparse and dense in turn, all momentum zeroed at dense starts, a threshold at the very end."""
    model = Net()
    optimizer = sgd(model)
    dense = Phase("dense", 1, momentum="zero_all")
    sparse = Phase("sparse", 1, sparsity=0.75)
    flow = Flow(optimizer, model, Schedule([sparse, dense, sparse, dense, Phase("threshold", 0, 0.75)]), unit="step")
    trace = []
    while not flow.finished:
        train_epoch(model, optimizer, flow.position)
        flow.step()
        has_momentum = bool(momentum_of(optimizer, model.conv.weight).any())
        trace.append((flow.phase.name, n_pruned(optimizer), has_momentum))
    assert trace == [
        ("dense", [], False),
        ("sparse", [216, 120], True),
        ("dense", [], False),
        ("threshold", [216, 120], True),
    ]
