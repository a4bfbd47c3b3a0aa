"""Every flow, stopped at any position and resumed from three state dicts, is bitwise the run that never stopped."""

import pytest
import torch
from flow_cases import Run, check_resuming_everywhere, equal_snapshots, make_flow, train_epoch

from dsd_kernels.flows import ACDC, DSD, IHT, LLR, Dense, Flow, GaP, Gradual, ParallelGaP, PruneOnce
from dsd_kernels.schedule import Phase, Schedule

RESTORE = {"regrown": "restore"}
RANDOM = {"selection": "random", "seed": 3}
THREE = {"partitions": 3, "exclude_first": False, "grow": 1, "rounds": 2, "final": 1, "sparsity": 0.75}
DSD_LENGTHS = {"dense": 1, "sparse": 2, "redense": 1}
MASTERS = {"dtype": torch.bfloat16, "sgd": {"master_weights": True}}
DOWN_AND_UP = Schedule(
    [Phase("a", 1, 0.75), Phase("b", 1, 0.25, **RESTORE), Phase("c", 2, 0.5), Phase("dense", 1, 0, **RESTORE)]
)
CASES = {
    "DSD, restore": (DSD, {**DSD_LENGTHS, **RESTORE, "iterations": 2, "sparsity": (0.5, 0.25)}),
    "DSD, restore, masters": (DSD, {**DSD_LENGTHS, **RESTORE, **MASTERS, "sparsity": 0.5}),
    "DSD, random": (DSD, {**DSD_LENGTHS, **RANDOM, "iterations": 2, "sparsity": 0.5}),
    "DSD, 2:4": (DSD, {**DSD_LENGTHS, "sparsity": 0.5, "structure": "2:4"}),
    "DSD, 2:4, random, restore": (DSD, {**DSD_LENGTHS, **RANDOM, **RESTORE, "sparsity": 0.5, "structure": "2:4"}),
    "IHT": (IHT, {"warm_start": 1, "sparse": 1, "dense": 2, "iterations": 2, "sparsity": 0.5}),
    "AC/DC": (ACDC, {"warmup": 1, "sparse": 1, "dense": 1, "iterations": 2, "final": 1, "sparsity": 0.5}),
    "gradual, global": (Gradual, {**dict.fromkeys(["dense", "every", "final"], 1), "n_prunes": 3, "sparsity": 0.8}),
    "gradual, random": (
        Gradual,
        {**RANDOM, "dense": 0, "every": 1, "n_prunes": 3, "final": 1, "sparsity": 0.8, "distribution": "erk"},
    ),
    "prune once": (PruneOnce, {"dense": 1, "sparse": 2, "sparsity": 0.5}),
    "dense": (Dense, {"lengths": (1, 2), "lr_factors": (1, 0.1)}),
    "LLR": (LLR, {"dense": 1, "low": 2}),
    "GaP": (GaP, {**THREE, "order": "random"}),
    "GaP, restore": (GaP, {**THREE, **RESTORE}),
    "GaP, random": (GaP, {**THREE, **RANDOM}),
    "GaP, one partition": (GaP, {**THREE, "partitions": 1}),
    "P-GaP": (ParallelGaP, THREE),
    "P-GaP, masters": (ParallelGaP, {**THREE, **MASTERS, "rounds": 1}),
    "down and up, restore": (Flow, {"schedule": DOWN_AND_UP}),
}


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
def test_stop_and_resume_at_every_position(kind, options):
    check_resuming_everywhere(kind, **options)


RESTORING = {**DSD_LENGTHS, **RESTORE, "sparsity": 0.5}


class TestKeptTensors:
    @staticmethod
    def saved_in_the_sparse_phase():
        model, optimizer, flow = make_flow(DSD, **RESTORING)
        train_epoch(model, optimizer, 0)
        flow.step()
        return flow.state_dict()

    @pytest.mark.parametrize(
        ("tensors", "text"),
        [
            ([1], r"tensors: expected a dict with the keys \['pruned_values'\], got \[1\]"),
            ({"other": {}}, r"tensors: expected a dict with the keys \['pruned_values'\], got"),
            ({"pruned_values": {"body.weight": torch.ones(3)}}, "pruned_values: .* 'body.weight' is not one"),
            ({"pruned_values": {"head.weight": torch.ones(3)}}, "pruned_values: .* 'head.weight' is not one"),
            ({"pruned_values": {"head.weight": None}}, "pruned_values: .* 'head.weight' is not one"),
            ({"pruned_values": 3}, "pruned_values: expected a dict"),
        ],
    )
    def test_damaged_ones_are_refused(self, tensors, text):
        run = Run(DSD, **RESTORING)
        run.epoch()
        before = run.snapshot()
        with pytest.raises(ValueError, match=text):
            run.flow.load_state_dict({**self.saved_in_the_sparse_phase(), "tensors": tensors})
        assert equal_snapshots(run.snapshot(), before)

    @pytest.mark.parametrize("tensors", [{"tensors": {"pruned_values": {}}}, {}], ids=["none", "of an earlier version"])
    def test_without_values_to_restore_nothing_is_reborn_from_0_in_silence(self, tensors):
        saved = {key: value for key, value in self.saved_in_the_sparse_phase().items() if key != "tensors"}
        run = Run(DSD, **RESTORING)
        run.epoch()
        before = run.snapshot()
        with pytest.raises(ValueError, match=r"pruned_values: expected the values that phases\[2\] restores, got none"):
            run.flow.load_state_dict({**saved, **tensors})
        assert equal_snapshots(run.snapshot(), before)

    def test_values_are_not_kept_after_the_last_phase_that_restores(self):
        schedule = Schedule([Phase("a", 1, 0.75), Phase("b", 1, 0.25, **RESTORE), Phase("c", 1, 0.5)])
        _, _, flow = make_flow(Flow, schedule=schedule)
        assert flow.kept_tensors()["pruned_values"]
        flow.step()
        assert flow.kept_tensors() == {"pruned_values": {}}
        flow.load_state_dict(flow.state_dict())  # with masks and without values, as nothing is to be restored

    def test_loading_copies(self):
        saved = self.saved_in_the_sparse_phase()
        _, _, flow = make_flow(DSD, **RESTORING)
        flow.load_state_dict(saved)
        before = flow.kept_tensors()["pruned_values"]["head.weight"].clone()
        saved["tensors"]["pruned_values"]["head.weight"].zero_()
        assert torch.equal(flow.kept_tensors()["pruned_values"]["head.weight"], before)

    def test_the_state_dict_of_an_earlier_version_is_loaded(self):
        phase = {"name": "dense", "length": 1, "sparsity": 0.0, "lr_factor": 1.0, "momentum": "keep"}
        sparse = {**phase, "name": "sparse", "length": 2, "sparsity": 0.5}
        earlier = {"position": 2, "unit": "epoch", "phases": [phase, sparse]}
        _, _, flow = make_flow(PruneOnce, dense=1, sparse=2, sparsity=0.5)
        flow.load_state_dict(earlier)
        assert (flow.position, flow.phase.name) == (2, "sparse")
