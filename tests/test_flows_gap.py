"""Promises of grow-and-prune: one partition dense at a time, the target at the end, the same bits by ranks or one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import bits_equal
from flow_cases import Net, equal_snapshots, make_flow, n_pruned, train_epoch
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from dsd_kernels import masks
from dsd_kernels.flows import Flow, GaP, ParallelGaP
from dsd_kernels.schedule import Phase, Schedule

NAMES = ["stem.weight", "conv.weight", "head.weight"]
THREE = {"partitions": 3, "grow": 1, "rounds": 2, "final": 2, "sparsity": 0.75, "exclude_first": False}
TARGET = {"stem.weight": 54, "conv.weight": 216, "head.weight": 120}


def pruned_by_name(model, optimizer) -> dict[str, int]:
    counts = dict(zip(optimizer.masks, n_pruned(optimizer), strict=True))
    return {name: counts[p] for name, p in model.named_parameters() if p in counts}


def without(name: str) -> dict[str, int]:
    return {other: n for other, n in TARGET.items() if other != name}


class TestCyclic:
    def test_trace(self):
        model, optimizer, gap = make_flow(GaP, **THREE, lr_factors=(1, 0.1))
        found = []
        while True:
            momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
            has_momentum = any(buffer.any() for buffer in momentum)
            lr_factor = optimizer.param_groups[0]["lr_factor"]
            found.append((gap.phase.name, pruned_by_name(model, optimizer), lr_factor, has_momentum))
            if gap.finished:
                break
            train_epoch(model, optimizer, gap.position)
            optimizer.verify()
            gap.step()
        steps = [("grow", without(name), 1.0, False) for name in NAMES]
        final = [("final", TARGET, 0.1, has_momentum) for has_momentum in (False, True, True)]
        assert found == [*steps, *steps, *final]

    def test_it_starts_from_random_masks_that_the_seed_chooses(self):
        def start(**options):
            model, optimizer, _ = make_flow(GaP, **THREE, **options)
            assert bits_equal(model.stem.weight[model.stem.weight == 0], torch.zeros(54))  # pruned before it grew
            return optimizer.masks[model.head.weight]

        [by_magnitude] = masks.magnitude_masks([Net().head.weight], 0.75)
        assert torch.equal(start(), start())
        assert not torch.equal(start(), start(seed=1))
        assert not torch.equal(start(), by_magnitude)

    def test_a_partition_is_pruned_by_magnitude_as_the_next_one_grows_and_the_others_stay(self):
        model, optimizer, gap = make_flow(GaP, **THREE)
        stem, conv, head = model.stem.weight, model.conv.weight, model.head.weight
        others = optimizer.masks
        train_epoch(model, optimizer, 0)
        trained = stem.detach().clone()
        with torch.no_grad():
            head[tuple(others[head].nonzero()[0])] = 0.0  # a kept weight that happens to be 0
        gap.step()
        [expected] = masks.magnitude_masks([trained], 0.75)
        assert bits_equal(stem, torch.where(expected, trained, 0.0))
        assert set(optimizer.masks) == {stem, head}
        assert torch.equal(optimizer.masks[head], others[head])
        assert bits_equal(conv[~others[conv]], torch.zeros(216))  # grown weights start at 0

    def test_restored_values(self):
        model, optimizer, gap = make_flow(GaP, **THREE, regrown="restore")
        assert bits_equal(model.stem.weight, Net().stem.weight)
        kept = optimizer.masks[model.conv.weight]
        train_epoch(model, optimizer, 0)
        trained = model.conv.weight.detach().clone()
        gap.step()
        assert bits_equal(model.conv.weight, torch.where(kept, trained, Net().conv.weight))

    def test_one_partition_is_pruned_and_grown_at_the_same_instant(self):
        options = {**THREE, "partitions": 1}
        model, optimizer, gap = make_flow(GaP, **options)
        train_epoch(model, optimizer, 0)
        trained = model.head.weight.detach().clone()
        gap.step()
        [expected] = masks.magnitude_masks([trained], 0.75)
        assert optimizer.masks == {}
        assert bits_equal(model.head.weight, torch.where(expected, trained, 0.0))

    def test_random_selection_is_another_one_in_every_round(self):
        model, optimizer, gap = make_flow(GaP, **THREE, selection="random")
        chosen = []
        while not gap.finished:
            gap.step()
            chosen.append(optimizer.masks.get(model.head.weight))
        first, second = chosen[3], chosen[5]  # pruned as the second round begins, and at the end
        assert int((~first).sum()) == int((~second).sum()) == 120
        assert not torch.equal(first, second)

    def test_random_selection_of_one_partition_is_another_one_at_the_end(self):
        model, optimizer, gap = make_flow(GaP, **{**THREE, "partitions": 1}, selection="random")
        train_epoch(model, optimizer, 0)
        gap.step()
        first = model.head.weight != 0
        train_epoch(model, optimizer, 1)
        gap.step()
        assert gap.phase.name == "final"
        assert not torch.equal(first, optimizer.masks[model.head.weight])

    def test_random_order_is_another_in_each_round_and_depends_on_the_seed(self):
        def order(seed):
            _, _, gap = make_flow(GaP, **{**THREE, "rounds": 40}, order="random", seed=seed)
            return [phase.grown for phase in gap.phases[:-1]]

        rounds = [tuple(order(0)[i : i + 3]) for i in range(0, 120, 3)]
        assert {tuple(sorted(each)) for each in rounds} == {(0, 1, 2)}
        assert len(set(rounds)) == 6
        assert order(0) == order(0) != order(1)

    def test_partitions_by_number_and_by_name(self):
        assert make_flow(GaP, **THREE)[2].partitions == (("stem.weight",), ("conv.weight",), ("head.weight",))
        assert make_flow(GaP, **{**THREE, "partitions": 2})[2].partitions == (("stem.weight",), tuple(NAMES[1:]))
        by_name = {**THREE, "partitions": [["head.*"], ["stem.weight", "conv.weight"]]}
        assert make_flow(GaP, **by_name)[2].partitions == (("head.weight",), ("stem.weight", "conv.weight"))

    def test_a_final_length_of_0_ends_with_the_last_pruning(self):
        model, optimizer, gap = make_flow(GaP, **{**THREE, "final": 0})
        while not gap.finished:
            gap.step()
        assert pruned_by_name(model, optimizer) == TARGET


class TestParallel:
    def test_trace_of_one_process(self):
        """Every worker starts from the same model; the next round starts from what each has grown."""
        model, optimizer, flow = make_flow(ParallelGaP, **THREE)
        phases, starts, results = [], [], []
        while True:
            momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
            phases.append((flow.phase.name, pruned_by_name(model, optimizer), any(b.any() for b in momentum)))
            starts.append({name: p.detach().clone() for name, p in model.named_parameters()})
            if flow.finished:
                break
            train_epoch(model, optimizer, flow.position)
            optimizer.verify()
            results.append({name: p.detach().clone() for name, p in model.named_parameters()})
            flow.step()
        steps = [("grow", without(name), False) for name in NAMES]
        assert phases == [*steps, *steps, ("final", TARGET, False), *[("final", TARGET, True)] * 2]
        for first in (0, 3):
            for worker in (1, 2):
                assert all(bits_equal(starts[first + worker][name], p) for name, p in starts[first].items())
        for round_ in range(2):
            for worker, name in enumerate(NAMES):
                trained = results[3 * round_ + worker][name]
                [mask] = masks.magnitude_masks([trained], 0.75)
                assert bits_equal(starts[3 * round_ + 3][name], torch.where(mask, trained, 0.0))

    def test_what_is_not_pruned_comes_with_the_pruned_parameter_before_it(self):
        model, optimizer, flow = make_flow(ParallelGaP, **{**THREE, "rounds": 1})
        grown = {}
        for worker, prefixes in enumerate([("stem.", "norm."), ("conv.",), ("head.",)]):
            train_epoch(model, optimizer, worker)
            own = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith(prefixes)}
            grown |= {name: tensor for name, tensor in own.items() if name not in TARGET}
            flow.step()
        assert flow.phase.name == "final"
        assert grown.keys() == model.state_dict().keys() - TARGET.keys()
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in grown.items())

    def test_masks_of_the_common_start_are_kept_not_guessed_from_zeros(self):
        model = Net()
        torch.nn.init.zeros_(model.stem.weight)
        _, optimizer, flow = make_flow(ParallelGaP, model, **{**THREE, "partitions": [["conv*"], ["stem*"], ["head*"]]})
        start = optimizer.masks[model.stem.weight]
        flow.step()
        flow.step()
        assert flow.phase.grown == 2
        assert torch.equal(optimizer.masks[model.stem.weight], start)

    def test_masters_start_from_the_combined_weights(self):
        model = Net().bfloat16()
        _, optimizer, flow = make_flow(ParallelGaP, model, **THREE, sgd={"master_weights": True})
        for _ in range(3):
            train_epoch(model, optimizer, flow.position)
            flow.step()
            for p in model.parameters():
                assert bits_equal(optimizer.state[p]["master_weight"], p.float())

    def test_ranks_give_the_bits_of_one_process(self, tmp_path):
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the ranks have: the last bits of a convolution depend on it
        try:
            expected = train_workers(partitions=2, rank=None)
        finally:
            torch.set_num_threads(n_threads)
        for run, n_ranks in ((_rank, 2), (_rank_of_two_groups, 4)):
            mp.spawn(run, args=(str(tmp_path),), nprocs=n_ranks)
            for rank in range(n_ranks):
                found = torch.load(tmp_path / f"{rank} of {n_ranks}.pt", weights_only=True)
                assert equal_snapshots(found, expected)


def train_workers(
    partitions: int,
    rank: int | None,
    workers: dist.ProcessGroup | None = None,
    replicas: dist.ProcessGroup | None = None,
) -> dict[str, torch.Tensor]:
    """Two rounds of two epochs, whose data the round and the worker choose."""
    options = {"partitions": partitions, "grow": 2, "rounds": 2, "final": 1, "sparsity": 0.75}
    model, optimizer, flow = make_flow(ParallelGaP, **options, process_group=workers)
    network = DistributedDataParallel(model, process_group=replicas) if replicas else model
    seen: dict[int | None, int] = {}
    while not flow.finished:
        worker = flow.phase.grown
        epoch = seen[worker] = seen.get(worker, -1) + 1
        train_epoch(network, optimizer, 100 * (9 if worker is None else worker) + epoch)
        flow.step()
    if rank is not None:
        assert {phase.grown for phase in flow.phases} == {rank, None}
        assert flow.schedule.length == 5
    return {**model.state_dict(), **{f"mask {i}": mask for i, mask in enumerate(optimizer.masks.values())}}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    with pytest.raises(ValueError, match="partitions: expected 2, one for each rank, got 3"):
        make_flow(ParallelGaP, **THREE)
    with pytest.MonkeyPatch.context() as patch:
        sent, all_reduce = [], dist.all_reduce
        patch.setattr(
            dist, "all_reduce", lambda tensor, **options: sent.append(tensor) or all_reduce(tensor, **options)
        )
        found = train_workers(partitions=2, rank=rank)
    n_bytes = sum(tensor.nbytes for name, tensor in found.items() if not name.startswith("mask"))
    assert [tensor.nbytes for tensor in sent] == [n_bytes] * 2  # one message a round, of the whole model
    torch.save(found, f"{folder}/{rank} of 2.pt")
    dist.barrier()  # a rank that leaves while another still sends takes it along
    dist.destroy_process_group()


def _rank_of_two_groups(rank: int, folder: str) -> None:
    """Each worker is two ranks that see the same data, so that the mean of their gradients is exactly that of one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous of 4", rank=rank, world_size=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("workers", "replicas"))
    workers, replicas = mesh.get_group("workers"), mesh.get_group("replicas")
    found = train_workers(partitions=2, rank=rank // 2, workers=workers, replicas=replicas)
    torch.save(found, f"{folder}/{rank} of 4.pt")
    dist.barrier()  # a rank that leaves while another still sends takes it along
    dist.destroy_process_group()


class TestResume:
    @pytest.mark.parametrize("kind", [GaP, ParallelGaP])
    def test_other_partitions_are_refused(self, kind):
        _, _, other = make_flow(kind, **{**THREE, "partitions": [["head*"], ["conv*"], ["stem*"]]})
        _, _, flow = make_flow(kind, **THREE)
        with pytest.raises(ValueError, match=r"expected partitions \[\['stem.weight'\], .*, got \[\['head.weight'\]"):
            flow.load_state_dict(other.state_dict())

    def test_another_seed_is_refused(self):
        """Masks of later rounds, and the order where it is random, depend on it."""
        _, _, flow = make_flow(GaP, **THREE)
        _, _, other = make_flow(GaP, **THREE, selection="random", seed=5)
        with pytest.raises(ValueError, match="expected selection 'magnitude', got 'random'; seed 0, got 5"):
            flow.load_state_dict(other.state_dict())


class TestBadArguments:
    @pytest.mark.parametrize("kind", [GaP, ParallelGaP])
    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"partitions": 0}, ValueError, "partitions: expected an integer, 1 or more, got 0"),
            ({"partitions": True}, TypeError, "partitions: expected an integer, 0 or more, got True"),
            ({"partitions": 1.5}, TypeError, "partitions: expected a number, or a list of the names .*, got 1.5"),
            ({"partitions": {"0*"}}, TypeError, r"partitions: expected a number, or a list of .*, got \{'0\*'\}"),
            ({"partitions": [1, 2]}, TypeError, r"partitions\[0\]: expected names or patterns of parameters, got 1"),
            ({"partitions": [["*"], [2]]}, TypeError, r"partitions\[1\]: expected names or patterns .*, got \[2\]"),
            (
                {"partitions": "two"},
                TypeError,
                "partitions: expected a number, or a list of the names of each partition",
            ),
            ({"partitions": 4}, ValueError, "partitions: expected at most 3, one per prunable parameter, got 4"),
            ({"partitions": []}, ValueError, "partitions: expected an integer, 1 or more, got 0"),
            ({"partitions": [["conv.*"], ["head.*"]]}, ValueError, "in one of them, stem.weight is in 0"),
            ({"partitions": [["*"], ["head.*"]]}, ValueError, "in one of them, head.weight is in 2"),
            ({"partitions": [["*"], ["norm.*"]]}, ValueError, r"partitions\[1\]: expected names .* got \['norm"),
            ({"grow": 0}, ValueError, "grow: expected an integer, 1 or more, got 0"),
            ({"rounds": 0}, ValueError, "rounds: expected an integer, 1 or more, got 0"),
            ({"final": -1}, ValueError, "final: expected an integer, 0 or more, got -1"),
            ({"sparsity": 1.5}, ValueError, r"sparsity: expected a number in \[0, 1\), got 1.5"),
            ({"sparsity": None}, TypeError, r"sparsity: expected a number in \[0, 1\), got None"),
            ({"seed": 1.5}, TypeError, "seed: expected an integer, got 1.5"),
            ({"lr_factors": (1,)}, ValueError, "lr_factors: expected 2 values, got 1"),
            ({"distribution": "global"}, ValueError, "distribution: expected uniform, erk or a dict"),
        ],
    )
    def test_each_is_named_and_nothing_has_changed(self, kind, options, error, text):
        model = Net()
        with pytest.raises(error, match=text):
            make_flow(kind, model, **{**THREE, **options})
        assert all(bits_equal(a, b) for a, b in zip(model.parameters(), Net().parameters(), strict=True))

    def test_order(self):
        with pytest.raises(ValueError, match="order: expected one of cyclic, random, got 'best'"):
            make_flow(GaP, **THREE, order="best")

    @pytest.mark.parametrize("option", [{"order": "random"}, {"momentum": "keep"}, {"regrown": "restore"}])
    def test_workers_have_no_choice_of(self, option):
        with pytest.raises(TypeError, match=f"^{next(iter(option))}: ParallelGaP has no such argument, got"):
            make_flow(ParallelGaP, **THREE, **option)

    def test_a_plain_flow_has_no_partitions(self):
        schedule = Schedule([Phase("grow", 1, 0.5, grown=0)])
        with pytest.raises(ValueError, match=r"schedule: phases\[0\]: there are 0 partitions, got grow: .* grown 0"):
            make_flow(Flow, schedule=schedule)
