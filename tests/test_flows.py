"""Promises of each flow: its literal trace, and the property that defines it."""

import copy

import pytest
import torch
from cases import bits_equal
from flow_cases import Net, Run, make_flow, n_pruned, sgd, train_epoch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from dsd_kernels import MaskedSGD, masks
from dsd_kernels.flows import ACDC, DSD, IHT, LLR, Dense, Flow, Gradual, ParallelGaP, PruneOnce
from dsd_kernels.schedule import Phase, Schedule

HALF = [144, 80]  # of the 288 weights of conv and the 160 of head
IHT_LENGTHS = {"warm_start": 1, "sparse": 2, "dense": 1, "iterations": 2}
ACDC_LENGTHS = {"warmup": 1, "sparse": 1, "dense": 2, "iterations": 2, "final": 2}
GRADUAL_LENGTHS = {"dense": 1, "every": 2, "n_prunes": 2, "final": 1}


def trace(kind: type, **options) -> list[tuple]:
    """At every position, before its epoch: the phase, how many weights are pruned, whether there is momentum."""
    model, optimizer, flow = make_flow(kind, **options)
    found = []
    for epoch in range(flow.schedule.length + 1):
        state = optimizer.state[model.conv.weight]
        has_momentum = bool(state["momentum_buffer"].any()) if state else False
        found.append((flow.phase.name, n_pruned(optimizer), optimizer.param_groups[0]["lr_factor"], has_momentum))
        assert flow.finished == (epoch == flow.schedule.length)
        if not flow.finished:
            train_epoch(model, optimizer, epoch)
            optimizer.verify()
            flow.step()
    return found


class TestIHT:
    def test_trace(self):
        assert trace(IHT, **IHT_LENGTHS, sparsity=0.5, lr_factors=(1, 0.5, 0.25)) == [
            ("warm start", [], 1.0, False),
            ("sparse", HALF, 0.5, True),
            ("sparse", HALF, 0.5, True),
            ("dense", [], 0.25, True),
            ("sparse", HALF, 0.5, True),
            ("sparse", HALF, 0.5, True),
            ("dense", [], 0.25, True),
            ("threshold", HALF, 0.25, True),
        ]

    def test_it_ends_with_the_largest_weights_of_the_last_dense_phase(self):
        model, optimizer, iht = make_flow(IHT, **IHT_LENGTHS, sparsity=0.5)
        for epoch in range(iht.schedule.length):
            train_epoch(model, optimizer, epoch)
            trained = model.head.weight.detach().clone()
            iht.step()
        [mask] = masks.magnitude_masks([trained], 0.5)
        assert bits_equal(model.head.weight, torch.where(mask, trained, 0.0))


class TestACDC:
    def test_trace(self):
        assert trace(ACDC, **ACDC_LENGTHS, sparsity=0.75, lr_factors=(1, 0.5, 0.25, 0.1)) == [
            ("warmup", [], 1.0, False),
            ("sparse", [216, 120], 0.5, True),
            ("dense", [], 0.25, False),
            ("dense", [], 0.25, True),
            ("sparse", [216, 120], 0.5, True),
            ("dense", [], 0.25, False),
            ("dense", [], 0.25, True),
            ("final", [216, 120], 0.1, True),
            ("final", [216, 120], 0.1, True),
            ("final", [216, 120], 0.1, True),
        ]

    def test_all_momentum_is_zero_at_each_dense_start_and_at_no_other(self):
        model, optimizer, acdc = make_flow(ACDC, **ACDC_LENGTHS, sparsity=0.75, sgd={"mask_momentum": "keep"})
        zero_at = []
        for epoch in range(acdc.schedule.length):
            train_epoch(model, optimizer, epoch)
            acdc.step()
            momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
            assert len(momentum) == len(list(model.parameters()))
            if not any(buffer.any() for buffer in momentum):
                zero_at.append((acdc.position, acdc.phase.name))
        assert zero_at == [(2, "dense"), (5, "dense")]

    def test_a_final_phase_of_length_0_prunes_at_the_very_end(self):
        lengths = {"warmup": 1, "sparse": 1, "dense": 1, "iterations": 1, "final": 0}
        assert [(name, pruned) for name, pruned, _, _ in trace(ACDC, **lengths, sparsity=0.5)] == [
            ("warmup", []),
            ("sparse", HALF),
            ("dense", []),
            ("final", HALF),
        ]


class TestGradual:
    def test_trace(self):
        # 0.75 * (1 - (1 - i/2)^3): 0, 0.65625, 0.75
        assert trace(Gradual, **GRADUAL_LENGTHS, sparsity=0.75) == [
            ("dense", [], 1.0, False),
            ("gradual", [], 1.0, True),
            ("gradual", [], 1.0, True),
            ("gradual", [189, 105], 1.0, True),
            ("gradual", [189, 105], 1.0, True),
            ("final", [216, 120], 1.0, True),
            ("final", [216, 120], 1.0, True),
        ]

    def test_the_curve_is_that_of_the_paper(self):
        _, _, flow = make_flow(Gradual, dense=2, every=1, n_prunes=4, final=1, sparsity=0.9, initial_sparsity=0.1)
        expected = [0.0, *(0.9 + (0.1 - 0.9) * (1 - i / 4) ** 3 for i in range(5))]
        assert [phase.sparsity for phase in flow.phases] == pytest.approx(expected, abs=1e-15)
        assert flow.phases[-1].sparsity == 0.9
        assert flow.phases[1].sparsity == pytest.approx(0.1)

    @pytest.mark.parametrize("selection", ["magnitude", "random"])
    @pytest.mark.parametrize("distribution", ["uniform", "global", "erk"])
    def test_what_is_pruned_stays_pruned(self, selection, distribution):
        options = {"selection": selection, "distribution": distribution}
        model, optimizer, flow = make_flow(Gradual, dense=0, every=1, n_prunes=5, final=1, sparsity=0.8, **options)
        counts, before = [], {}
        for epoch in range(6):
            train_epoch(model, optimizer, epoch)
            flow.step()
            now = optimizer.masks
            assert not any((now[p] & ~mask).any() for p, mask in before.items())
            counts.append(sum(n_pruned(optimizer)))
            before = now
        assert counts == [*((174, 281, 336) if distribution == "uniform" else (175, 281, 335)), 356, 358, 358]

    def test_by_erk_a_layer_may_get_a_weight_back_where_sparsity_rises_by_a_few(self):
        """As its docstring says: the total is exact, so its rounding takes from one layer what it gives to another."""
        model = nn.ModuleList([nn.Linear(7, 16), nn.Linear(13, 13), nn.Linear(4, 16)])
        lengths = {"dense": 0, "every": 1, "n_prunes": 17, "final": 1}
        _, optimizer, flow = make_flow(Gradual, model, **lengths, sparsity=0.54, distribution="erk")
        counts = [n_pruned(optimizer)]
        while not flow.finished:
            flow.step()
            counts.append(n_pruned(optimizer))
        first = counts.index([58, 108, 18])
        assert counts[first + 1] == [59, 109, 17]
        assert int(model[2].weight.count_nonzero()) == 64 - 18  # what came back is 0

    def test_a_fall_of_sparsity_frees_no_more_than_it_says(self):
        """All pruned weights tie at 0: a threshold would free them all at once."""
        lengths = {"dense": 0, "every": 1, "n_prunes": 2, "final": 1}
        model, optimizer, flow = make_flow(Gradual, **lengths, initial_sparsity=0.75, sparsity=0.25)
        counts = []
        while not flow.finished:
            counts.append(n_pruned(optimizer))
            before = optimizer.masks
            flow.step()  # without training all freed weights stay 0, so that they tie too
            assert all((optimizer.masks[p] | ~mask).all() for p, mask in before.items())
        assert counts == [[216, 120], [90, 50], [72, 40]]
        assert all(model.conv.weight.flatten()[~before[model.conv.weight].flatten()] == 0)


class TestPruneOnce:
    def test_trace(self):
        assert trace(PruneOnce, dense=2, sparse=2, sparsity=0.5, lr_factors=(1, 0.1)) == [
            ("dense", [], 1.0, False),
            ("dense", [], 1.0, True),
            ("sparse", HALF, 0.1, True),
            ("sparse", HALF, 0.1, True),
            ("sparse", HALF, 0.1, True),
        ]

    @pytest.mark.parametrize("lengths", [{"dense": 0, "sparse": 1}, {"dense": 1, "sparse": 0}])
    def test_it_prunes_at_the_beginning_or_at_the_end_too(self, lengths):
        assert [pruned for _, pruned, _, _ in trace(PruneOnce, **lengths, sparsity=0.5)][-1] == HALF


class TestControls:
    def test_dense_has_the_learning_rates_of_the_other_and_no_mask(self):
        assert trace(Dense, lengths=(1, 2, 1), lr_factors=(1, 0.5, 0.1)) == [
            ("dense", [], 1.0, False),
            ("dense", [], 0.5, True),
            ("dense", [], 0.5, True),
            ("dense", [], 0.1, True),
            ("dense", [], 0.1, True),
        ]

    def test_dense_is_dsd_with_nothing_pruned_to_the_bit(self):
        dsd = Run(DSD, dense=1, sparse=2, redense=1, sparsity=0.0)
        dense = Run(Dense, lengths=[1, 2, 1], lr_factors=(1, 1, 0.1))
        for _ in range(4):
            dsd.epoch()
            dense.epoch()
        assert all(bits_equal(a, b) for a, b in zip(dsd.model.parameters(), dense.model.parameters(), strict=True))

    def test_llr(self):
        assert trace(LLR, dense=1, low=2) == [
            ("dense", [], 1.0, False),
            ("low", [], 0.1, True),
            ("low", [], 0.1, True),
            ("low", [], 0.1, True),
        ]

    def test_controls_need_nothing_to_prune(self):
        model = nn.Linear(2, 2)
        flow = Dense(MaskedSGD(model.parameters(), lr=0.1), model, lengths=(1,))
        flow.step()
        assert flow.finished


class TestRandomMasks:
    def test_exact_counts_and_other_weights_than_magnitude(self):
        options = {"dense": 0, "sparse": 2, "redense": 1, "sparsity": 0.3}
        model, optimizer, _ = make_flow(DSD, **options, selection="random")
        by_magnitude = masks.magnitude_masks([Net().conv.weight, Net().head.weight], 0.3)
        assert n_pruned(optimizer) == [86, 48]
        assert not any(torch.equal(a, b) for a, b in zip(optimizer.masks.values(), by_magnitude, strict=True))
        assert bits_equal(model.head.weight[~optimizer.masks[model.head.weight]], torch.zeros(48))

    def test_the_same_seed_gives_the_same_masks_and_another_one_others(self):
        def chosen(**options):
            _, optimizer, _ = make_flow(PruneOnce, dense=0, sparse=1, sparsity=0.5, selection="random", **options)
            return list(optimizer.masks.values())

        assert all(torch.equal(a, b) for a, b in zip(chosen(), chosen(seed=0), strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(chosen(), chosen(seed=1), strict=True))

    def test_every_sparse_phase_after_a_dense_one_has_its_own(self):
        _, optimizer, flow = make_flow(
            DSD, dense=0, sparse=1, redense=1, iterations=2, sparsity=0.5, selection="random"
        )
        first = list(optimizer.masks.values())
        flow.step()
        flow.step()
        assert flow.phase.name == "sparse"
        assert not any(torch.equal(a, b) for a, b in zip(first, optimizer.masks.values(), strict=True))

    def test_momentum_and_masters_are_selected_as_by_magnitude(self):
        options = {"dense": 1, "sparse": 1, "sparsity": 0.5, "selection": "random"}
        model, optimizer, flow = make_flow(PruneOnce, Net().bfloat16(), **options, sgd={"master_weights": True})
        train_epoch(model, optimizer, 0)
        flow.step()
        pruned = ~optimizer.masks[model.head.weight]
        state = optimizer.state[model.head.weight]
        assert not state["momentum_buffer"][pruned].any()
        assert bits_equal(state["master_weight"][pruned], torch.zeros(80))


class TestRestoredValues:
    @pytest.mark.parametrize("selection", ["magnitude", "random"])
    def test_reborn_weights_have_the_values_from_before_they_were_pruned(self, selection):
        lengths = {"dense": 1, "sparse": 2, "redense": 1}
        model, optimizer, dsd = make_flow(DSD, **lengths, sparsity=0.5, regrown="restore", selection=selection)
        train_epoch(model, optimizer, 0)
        dense = model.head.weight.detach().clone()
        dsd.step()
        mask = optimizer.masks[model.head.weight]
        for epoch in (1, 2):
            train_epoch(model, optimizer, epoch)
            trained = model.head.weight.detach().clone()
            dsd.step()
        assert dsd.phase.name == "redense"
        assert bits_equal(model.head.weight, torch.where(mask, trained, dense))
        assert dense[~mask].all()
        assert dsd.kept_tensors() == {"pruned_values": {}}

    def test_zero_is_the_default(self):
        model, optimizer, dsd = make_flow(DSD, dense=0, sparse=1, redense=1, sparsity=0.5)
        mask = optimizer.masks[model.head.weight]
        dsd.step()
        assert bits_equal(model.head.weight[~mask], torch.zeros(80))
        assert dsd.kept_tensors() == {"pruned_values": {}}

    def test_values_are_dropped_by_a_dense_phase_that_does_not_restore_them(self):
        phases = [Phase("a", 1, 0.5), Phase("dense", 1), Phase("b", 1, 0.5), Phase("dense", 1, regrown="restore")]
        model, optimizer, flow = make_flow(Flow, schedule=Schedule(phases))
        assert flow.kept_tensors()["pruned_values"].keys() == {"conv.weight", "head.weight"}
        flow.step()
        assert flow.kept_tensors() == {"pruned_values": {}}
        train_epoch(model, optimizer, 0)
        second = model.head.weight.detach().clone()
        flow.step()
        flow.step()
        assert bits_equal(model.head.weight, second)

    def test_masters_are_restored_in_full_precision(self):
        model = Net().bfloat16()
        options = {"dense": 1, "sparse": 1, "redense": 1, "sparsity": 0.5, "regrown": "restore"}
        _, optimizer, dsd = make_flow(DSD, model, **options, sgd={"master_weights": True})
        train_epoch(model, optimizer, 0)
        master = optimizer.state[model.head.weight]["master_weight"].clone()
        dsd.step()
        pruned = ~optimizer.masks[model.head.weight]
        assert not bits_equal(master[pruned].bfloat16().float(), master[pruned])
        dsd.step()
        assert bits_equal(optimizer.state[model.head.weight]["master_weight"][pruned], master[pruned])
        assert bits_equal(model.head.weight[pruned], master[pruned].bfloat16())

    def test_weights_pruned_in_two_events_have_the_values_of_each(self):
        model = Net()
        schedule = Schedule(
            [Phase("a", 1, 0.25), Phase("b", 1, 0.5), Phase("dense", 1, regrown="restore")],
        )
        _, optimizer, flow = make_flow(Flow, model, schedule=schedule)
        initial = Net().head.weight.detach()
        first = optimizer.masks[model.head.weight]
        train_epoch(model, optimizer, 0)
        after_a = model.head.weight.detach().clone()
        flow.step()
        second = optimizer.masks[model.head.weight]
        after_b = model.head.weight.detach().clone()
        flow.step()
        expected = torch.where(second, after_b, torch.where(first, after_a, initial))
        assert bits_equal(model.head.weight, expected)
        assert expected.all()

    def test_a_fall_of_sparsity_chooses_among_restored_values(self):
        model = Net()
        schedule = Schedule([Phase("a", 1, 0.75), Phase("b", 1, 0.25, regrown="restore")])
        _, optimizer, flow = make_flow(Flow, model, schedule=schedule)
        flow.step()
        [expected] = masks.magnitude_masks([Net().head.weight], 0.25)
        assert torch.equal(optimizer.masks[model.head.weight], expected)
        assert bits_equal(model.head.weight, torch.where(expected, Net().head.weight, 0.0))


class TestStructure:
    @pytest.mark.parametrize("selection", ["magnitude", "random"])
    def test_sparse_phases_keep_two_of_four_inputs(self, selection):
        options = {"dense": 1, "sparse": 1, "redense": 1, "sparsity": 0.5, "structure": "2:4", "selection": selection}
        model, optimizer, dsd = make_flow(DSD, **options, exclude_first=False)
        train_epoch(model, optimizer, 0)
        dsd.step()
        train_epoch(model, optimizer, 1)
        optimizer.verify()
        assert optimizer.masks.keys() == {model.conv.weight, model.head.weight}
        for weight in (model.conv.weight, model.head.weight):
            groups = optimizer.masks[weight].movedim(1, -1).unflatten(-1, (-1, 4))
            assert (groups.sum(-1) == 2).all()
        assert "input dimension of 1 is not a multiple of 4" in str(dsd.plan)

    def test_another_sparsity_is_refused_before_anything_changes(self):
        model = Net()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(
            ValueError, match=r"sparsity: expected 0 or 0\.5 with structure 2:4, which prunes 144 of 288"
        ):
            make_flow(PruneOnce, model, dense=1, sparse=1, sparsity=0.6, structure="2:4")
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class TestBadArguments:
    @pytest.mark.parametrize(
        ("kind", "options", "error", "text"),
        [
            (IHT, {"iterations": 0}, ValueError, "iterations: expected an integer, 1 or more, got 0"),
            (IHT, {"warm_start": -1}, ValueError, "warm_start: expected an integer, 0 or more, got -1"),
            (IHT, {"sparse": 1.5}, TypeError, "sparse: expected an integer, 0 or more, got 1.5"),
            (IHT, {"lr_factors": (1, 1)}, ValueError, "lr_factors: expected 3 values, got 2"),
            (IHT, {"momentum": "drop"}, ValueError, "momentum: expected one of keep, zero_regrown, zero_all"),
            (IHT, {"regrown": "one"}, ValueError, "regrown: expected one of zero, restore, got 'one'"),
            (IHT, {"warm_start": 0, "sparse": 0, "dense": 0}, ValueError, "phases: expected a total length above 0"),
            (ACDC, {"final": -1}, ValueError, "final: expected an integer, 0 or more, got -1"),
            (ACDC, {"iterations": True}, TypeError, "iterations: expected an integer"),
            (ACDC, {"lr_factors": (1, 1, 1)}, ValueError, "lr_factors: expected 4 values, got 3"),
            (ACDC, {"sparsity": 1.0}, ValueError, r"sparsity: expected a number in \[0, 1\), got 1.0"),
            (ACDC, {"distribution": {"head.weight": 0.5}}, ValueError, "sparsity: expected None beside a dict"),
            (Gradual, {"every": 0}, ValueError, "every: expected an integer, 1 or more, got 0"),
            (Gradual, {"n_prunes": 0}, ValueError, "n_prunes: expected an integer, 1 or more, got 0"),
            (Gradual, {"initial_sparsity": 1.5}, ValueError, r"initial_sparsity: expected a number in \[0, 1\)"),
            (Gradual, {"distribution": {"head.weight": 0.5}}, ValueError, "distribution: expected uniform, erk or"),
            (Gradual, {"structure": "2:4"}, ValueError, r"sparsity: expected 0 or 0\.5 with structure 2:4"),
            (PruneOnce, {"sparse": -1}, ValueError, "sparse: expected an integer, 0 or more, got -1"),
            (PruneOnce, {"lr_factors": 0.1}, TypeError, "lr_factors: expected a sequence of numbers, got 0.1"),
            (PruneOnce, {"selection": "best"}, ValueError, "selection: expected one of magnitude, random, got 'best'"),
            (PruneOnce, {"seed": 0.5}, TypeError, "seed: expected an integer, got 0.5"),
            (PruneOnce, {"unit": "day"}, ValueError, "unit: expected epoch or step, got 'day'"),
            (PruneOnce, {"structure": "3:4:5"}, ValueError, "structure: expected unstructured, or N:M"),
            (Dense, {"lengths": 3}, TypeError, "lengths: expected a sequence of integers, got 3"),
            (Dense, {"lengths": (1, -1)}, ValueError, r"lengths\[1\]: expected an integer, 0 or more, got -1"),
            (Dense, {"lr_factors": (1, 2, 3)}, ValueError, "lr_factors: expected 2 values, one per length, got 3"),
            (Dense, {"lengths": ()}, ValueError, "phases: expected a total length above 0"),
            (LLR, {"lr_factor": -1}, ValueError, "lr_factor: expected a finite number, 0 or more, got -1"),
            (LLR, {"low": None}, TypeError, "low: expected an integer, 0 or more, got None"),
        ],
    )
    def test_each_is_named_and_nothing_has_changed(self, kind, options, error, text):
        good = {
            IHT: {**IHT_LENGTHS, "warm_start": 0, "sparsity": 0.5},
            ACDC: {**ACDC_LENGTHS, "warmup": 0, "sparsity": 0.5},
            Gradual: {**GRADUAL_LENGTHS, "dense": 0, "sparsity": 0.75, "initial_sparsity": 0.5},
            PruneOnce: {"dense": 0, "sparse": 1, "sparsity": 0.5},
            Dense: {"lengths": (1, 2)},
            LLR: {"dense": 1, "low": 1},
        }
        model = Net()
        make_flow(kind, **good[kind])
        with pytest.raises(error, match=text):
            make_flow(kind, model, **{**good[kind], **options})
        assert all(bits_equal(a, b) for a, b in zip(model.parameters(), Net().parameters(), strict=True))


class TestLearningRateSchedulers:
    def test_one_that_starts_again_with_each_phase(self):
        model = Net()
        optimizer = sgd(model)
        flow = IHT(optimizer, model, **IHT_LENGTHS, sparsity=0.5)
        scheduler = LambdaLR(optimizer, lambda _: 0.5**flow.phase_position)
        rates = []
        while not flow.finished:
            rates.append(optimizer.param_groups[0]["lr"])
            train_epoch(model, optimizer, flow.position)
            flow.step()
            scheduler.step()
        assert rates == [0.1, 0.1, 0.05, 0.1, 0.1, 0.05, 0.1]

    @pytest.mark.parametrize("kind", [IHT, ParallelGaP])
    def test_a_scheduler_of_torch_runs_as_without_a_flow(self, kind):
        options = IHT_LENGTHS if kind is IHT else {"partitions": 2, "grow": 1, "rounds": 2, "final": 1}
        _, optimizer, flow = make_flow(kind, **options, sparsity=0.5)
        alone = torch.optim.SGD([torch.ones(1)], lr=0.1)
        schedulers = [CosineAnnealingLR(each, T_max=5) for each in (optimizer, alone)]
        while not flow.finished:
            flow.step()
            for each, scheduler in zip((optimizer, alone), schedulers, strict=True):
                each.step()
                scheduler.step()
            assert optimizer.param_groups[0]["lr"] == alone.param_groups[0]["lr"]


def test_a_flow_of_one_s_own_overrides_what_changes():
    """Prune only what the plan says is larger than 200 weights: ten lines."""

    class LargeOnly(Flow):
        def changes(self, phase):
            pruned, grown = super().changes(phase)
            return {p: sparsity for p, sparsity in pruned.items() if p.numel() > 200}, grown

    model, optimizer, flow = make_flow(LargeOnly, schedule=Schedule([Phase("dense", 1), Phase("sparse", 1, 0.5)]))
    flow.step()
    assert list(optimizer.masks) == [model.conv.weight]
