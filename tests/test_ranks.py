"""What ranks do of a batch together: the gradient of one process, the same masks, and one answer to what is wrong."""

import hashlib

import click
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import generator
from cli_cases import tiny_config
from torch import nn

from dsd_kernels.cli.errors import RankError
from dsd_kernels.cli.launch import agree, from_first, naming_lost_ranks
from dsd_kernels.cli.run import Run
from dsd_kernels.tasks.digits import digits
from dsd_kernels.training.arm import Unwatched
from dsd_kernels.training.ranks import Ranks

SIZE = 3
BATCHES = (8, 3, 2, 1)  # rows: divided evenly or not, and with nothing for one or two of the ranks


def network(dtype):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 33), nn.Tanh(), nn.Linear(33, 3)]
    return nn.Sequential(*layers).to(dtype)


def gradients(ranks, model, n, dtype):
    """Of the mean loss over a batch of n rows, of which this rank has its share."""
    rows, weight = ranks.share(torch.arange(n))
    x = torch.randn(n, 5, generator=generator(n)).to(dtype)[rows]
    model.zero_grad()
    (model(x).square().mean() * weight).backward()
    return [p.grad.clone() for p in model.parameters()]


def refused(action):
    with pytest.raises(RankError) as refusal:
        action()
    return str(refusal.value), refusal.value.speaks


def fail(text):
    raise click.UsageError(text)


def masks_after(ranks):
    """Digests of what a run of DSD has on this rank after its sparse phase began."""
    run = Run(tiny_config(dense=1, sparse=1, redense=0, batch_size=512), digits(), ranks)
    run.dsd.train_epoch(Unwatched(), stop=lambda: False)
    own = [*run.dsd.model.parameters(), *run.dsd.optimizer.masks.values()]
    return [hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest() for tensor in own]


def rank_of_three(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=SIZE)
    ranks = Ranks(rank, SIZE)
    exact, fast = ranks.parallel(network(torch.float64)), ranks.parallel(network(torch.float32))
    found = {
        "gradients": [gradients(ranks, exact, n, torch.float64) for n in BATCHES],
        "repeated": [gradients(ranks, fast, 8, torch.float32) for _ in range(3)],
        "own errors": refused(lambda: agree(ranks, lambda: fail("bad") if rank == 2 else None)),
        "first's error": refused(lambda: from_first(ranks, lambda: fail("no folder"))),
        "first's value": from_first(ranks, lambda: f"of rank {rank}"),
        "largest": ranks.largest(10 * rank),
        "sum": ranks.sum(torch.tensor(rank)).item(),
        "state": masks_after(ranks),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()  # a rank that leaves while another still sends takes it along
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_of_three, args=(str(folder),), nprocs=SIZE)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(SIZE)]


def test_the_gradient_is_that_of_one_process_however_a_batch_is_divided(three):
    model = network(torch.float64)
    for found in three:
        for n, own in zip(BATCHES, found["gradients"], strict=True):
            expected = gradients(Ranks(), model, n, torch.float64)
            torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-15)


def test_the_order_of_sums_is_the_same_in_every_batch(three):
    """DDP fills its buckets in another order from the second batch on, which a resumed run takes for its first."""
    for found in three:
        first, *later = found["repeated"]
        assert all(all(map(torch.equal, first, again)) for again in later)


def test_all_ranks_have_the_same_weights_and_masks(three):
    assert three[0]["state"] == three[1]["state"] == three[2]["state"]
    assert len(three[0]["state"]) == 14 + 4


def test_an_error_of_one_rank_is_that_of_all_and_said_once(three):
    assert [found["own errors"] for found in three] == [("rank 2: bad", True), *[("rank 2: bad", False)] * 2]
    assert [found["first's error"] for found in three] == [("no folder", True), *[("no folder", False)] * 2]


def test_values_of_all_ranks(three):
    assert [(found["first's value"], found["largest"], found["sum"]) for found in three] == [("of rank 0", 20, 3)] * 3


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_row_of_a_batch_is_one_rank_s(n, size):
    rows = torch.arange(10, 10 + n)
    shares = [Ranks(rank, size).share(rows) for rank in range(size)]
    assert torch.cat([own for own, weight in shares if weight]).tolist() == rows.tolist()
    assert [weight for _, weight in shares] == [len(own) / n if weight else 0.0 for own, weight in shares]
    assert all(len(own) for own, _ in shares)


def test_random_numbers_differ_between_ranks_and_are_one_process_s_on_the_first():
    assert [Ranks(rank, 2).purpose("dropout") for rank in range(2)] == ["dropout", "dropout of rank 1"]


def test_a_gpu_for_each_rank_of_a_host():
    assert [Ranks(3, 4, local_rank=1).device(name) for name in ("cuda", "cpu")] == ["cuda:1", "cpu"]
    assert Ranks().device("cuda") == "cuda"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_state_of_two_ranks_within_an_epoch_is_resumed_by_any_number(size):
    config, task = tiny_config(), digits()
    run = Run(config, task)
    state = run.state_dict()
    [first] = state["ranks"]
    second = {**first, "random": torch.Generator().manual_seed(5).get_state(), "arms": {}}
    for arm in run:
        second["arms"][arm.name] = {"loss_sum": torch.tensor(2.5).double(), "n_right": torch.tensor(3)}
        first["arms"][arm.name] = {"loss_sum": torch.tensor(0.25).double(), "n_right": torch.tensor(1)}
    state["ranks"] = [first, second]
    sums = []
    for rank in range(size):
        resumed = Run(config, task)
        resumed.ranks = Ranks(rank, size)
        resumed.load_state_dict(state)
        sums.append((resumed.dsd.loss_sum.item(), resumed.baseline.n_right.item()))
        assert torch.equal(torch.get_rng_state(), state["ranks"][rank % 2]["random"])
    assert sums == {1: [(2.75, 4)], 2: [(0.25, 1), (2.5, 3)], 3: [(0.25, 1), (2.5, 3), (0.0, 0)]}[size]


def test_a_state_of_version_3_is_resumed():
    run = Run(tiny_config(), digits())
    state = run.state_dict()
    [own] = state.pop("ranks")
    run.load_state_dict({**state, "random": own["random"], "random_cuda": None})
    assert torch.equal(torch.get_rng_state(), own["random"])


@pytest.mark.parametrize(
    ("ranks", "error", "speaks"),
    [
        (Ranks(2, 4, local_rank=0), RuntimeError("[/src/gloo/pair.cc:12] Read error [::1]: reset. GLHF"), True),
        (Ranks(3, 4, local_rank=1), dist.DistNetworkError("Read error [::1]: reset"), False),
    ],
)
def test_a_lost_rank_is_named_once_on_every_host(ranks, error, speaks, capsys):
    with pytest.raises(RankError) as refusal, naming_lost_ranks(ranks, lambda: "nothing was written"):
        raise error
    reason = "lost another one, or the network to it; nothing was written (Read error [::1]: reset)"
    line = f"rank {ranks.rank} of 4 {reason}"
    assert str(refusal.value) == line
    assert capsys.readouterr().err == (f"error: {line}\n" if speaks else "")
    assert (refusal.value.speaks, refusal.value.code) == (False, 1), "it is said already"


@pytest.mark.parametrize(
    ("ranks", "text"), [(Ranks(1, 2), "CUDA out of memory"), (Ranks(), "gloo is not what one process uses")]
)
def test_other_errors_are_not_taken_for_a_lost_rank(ranks, text):
    with pytest.raises(RuntimeError, match=text), naming_lost_ranks(ranks, lambda: ""):
        raise RuntimeError(text)
