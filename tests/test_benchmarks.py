"""The benchmark measures what it says: real shapes, honest bytes, and peers that do the same job."""

import pytest
import torch
from cases import bits_equal

from benchmarks import gate
from benchmarks.cases import (
    DTYPES,
    JOBS,
    NETWORKS,
    SPARSITIES,
    Case,
    fits,
    grid,
    is_possible,
    usual_cases,
)
from benchmarks.peers import CONTENDERS, LARGE, contenders
from benchmarks.peers.steps import torch_sgd
from benchmarks.shapes import INPUTS, gpt2_shapes, lstm_shapes, n_weights, resnet50_shapes
from benchmarks.values import STRIPE, VALUES
from benchmarks.workloads import make_inputs, make_training

SHAPES = [(8, 8), (5, 13), (64,), (3, 2, 7, 7)]
MATRICES = [(8, 8), (5, 13), (40, 3)]
# literal, from counting what each kernel reads and writes in float32
BYTES_PER_WEIGHT = {
    "dsd_kernels, masked": 20.125,
    "dsd_kernels, no mask": 20,
    "torch fused, no mask": 20,
    "torch fused + bool mask on p": 29,
    "torch fused + float mask on p": 32,
    "torch fused + bool masks on p, m": 38,
    "torch fused + float masks on p, m": 44,
    "torch foreach, no mask": 56,
    "torch foreach + bool mask on p": 65,
    "torch foreach + float mask on p": 68,
    "torch foreach + bool masks on p, m": 74,
    "torch foreach + float masks on p, m": 80,
    "torch for-loop, no mask": 56,
    "torch for-loop + bool mask on p": 65,
    "torch for-loop + float mask on p": 68,
    "torch for-loop + bool masks on p, m": 74,
    "torch for-loop + float masks on p, m": 80,
    "torch.compile'd SGD + bool masks on p, m": None,
}
FLOORS = [("step", 20.125), ("select", 4), ("prune", 20.125), ("train", None)]
TORCHAO = "torchao"


def names(job):
    return [contender.name for contender in CONTENDERS[job] if "cpu" in contender.devices and not contender.compiles]


def find(job, name):
    return next(c for c in CONTENDERS[job] if c.name == name)


def bound(job, name, shapes=SHAPES):
    if TORCHAO in name:
        pytest.importorskip("torchao")
        shapes = MATRICES
    inputs = make_inputs(shapes, "cpu")
    return inputs, find(job, name).bind(inputs)


def test_resnet50_has_its_161_parameters():
    shapes = resnet50_shapes()
    assert len(shapes) == 161
    assert sum(torch.Size(shape).numel() for shape in shapes) == 25_557_032
    assert sum(len(shape) >= 2 for shape in shapes) == 54
    assert shapes[:5] == [(64, 3, 7, 7), (64,), (64,), (64, 64, 1, 1), (64,)]
    assert shapes[12] == (256, 64, 1, 1)  # the first shortcut
    assert shapes[-5:] == [(2048, 512, 1, 1), (2048,), (2048,), (1000, 2048), (1000,)]


def test_gpt2_small_has_its_148_parameters():
    assert (len(gpt2_shapes()), n_weights(gpt2_shapes())) == (148, 124_439_808)


def test_gpt2_shapes_are_those_of_the_model_itself():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=12, n_layer=2, n_head=2, vocab_size=31, n_positions=7)
    model = transformers.GPT2LMHeadModel(config)
    assert gpt2_shapes(12, 2, 31, 7) == [tuple(p.shape) for p in model.parameters()]


def test_lstm_shapes_are_those_of_the_module_itself():
    lstm = torch.nn.LSTM(6, 6, num_layers=2)
    model = torch.nn.ModuleList([torch.nn.Embedding(9, 6), lstm, torch.nn.Linear(6, 9)])
    assert lstm_shapes(6, 2, 9) == [tuple(p.shape) for p in model.parameters()]
    assert (len(lstm_shapes()), n_weights(lstm_shapes())) == (11, 19_780_400)


@pytest.mark.parametrize("name", [f"1e{n}" for n in range(3, 10)])
def test_single_tensors_have_the_size_of_their_name(name):
    assert n_weights(INPUTS[name]) == float(name)


def test_bytes_per_weight_are_those_of_the_literal_table():
    float32 = torch.float32
    assert {c.name: c.moves and c.moves.bytes(float32) for c in CONTENDERS["step"]} == BYTES_PER_WEIGHT
    assert [(name, job.floor and job.floor.bytes(float32)) for name, job in JOBS.items()] == FLOORS


def test_half_precision_halves_the_weights_and_not_the_masks():
    moves = find("step", "torch fused + bool mask on p").moves
    assert (moves.bytes(torch.bfloat16), moves.bytes(torch.float64)) == (15, 57)


def test_the_full_run_has_everything_and_the_quick_one_takes_its_part():
    full, quick = (usual_cases(full=full, jobs=list(JOBS)) for full in (True, False))
    assert len(full) == len(set(full))
    assert set(quick) < set(full)
    assert {case.inputs for case in full} == {*INPUTS, *NETWORKS}
    assert {case.values for case in full} == set(VALUES)
    assert {case.sparsity for case in full if case.inputs == "resnet50"} == set(SPARSITIES)
    assert {case.dtype_name for case in full} == {"float32", "bfloat16"}
    assert all(map(is_possible, full))


def test_what_cannot_be_is_no_case():
    float32 = [torch.float32]
    assert grid(["train"], ["1e6", "cnn"]) == [Case("train", "cnn")]
    assert grid(["train"], ["cnn"], values=["zeros"]) == []
    assert grid(["step", "select"], ["tiny"], float32, [0.0]) == [Case("step", "tiny", sparsity=0.0)]
    one_weight = grid(["step", "prune"], ["mine"], model=[(1, 1), (7,)])
    assert [case.job for case in one_weight] == ["step"]  # half of one weight is none


def test_selection_works_on_what_loses_weights_alone():
    case = Case("select", "mine", model=((1, 1), (64,), (8, 8)))
    assert case.shapes == [(8, 8)]
    assert Case("step", "mine", model=((1, 1), (64,), (8, 8))).shapes == [(1, 1), (64,), (8, 8)]


def test_only_the_usual_contenders_over_the_largest_inputs(monkeypatch):
    def offered(inputs, **options):
        return {contender.name for contender in contenders(Case("step", inputs), "cpu", **options)}

    everyone = {contender.name for contender in CONTENDERS["step"]}
    compiled = {contender.name for contender in CONTENDERS["step"] if contender.compiles}
    assert offered("1e7") == everyone - compiled
    assert offered("1e7", compiled=True) == everyone
    assert n_weights(INPUTS["1e8"]) > LARGE
    assert offered("1e8") == offered("1e7", full=False) < everyone
    assert not compiled & offered("1e8", compiled=True)  # minutes over GPT-2


def test_the_slowest_are_left_out_over_the_largest_inputs_and_in_variations():
    def offered(inputs, sparsity=0.5):
        case = Case("select", inputs, sparsity=sparsity)
        return [contender.name for contender in contenders(case, "cpu", full=False)]

    assert [name for name in offered("1e7") if name not in offered("1e8")] == ["torch.sort"]
    assert offered("1e7", 0.3) == offered("1e8")


def test_what_does_not_fit_into_memory_is_known_before():
    assert fits(Case("step", "tiny"), "cpu")
    assert not fits(Case("step", "mine", model=((10**9, 10**3),)), "cpu")


@pytest.mark.parametrize("name", names("step"))
def test_every_step_does_the_same_job(name):
    expected = make_inputs(SHAPES, "cpu")
    torch_sgd(foreach=False)(expected).run()
    if "no mask" not in name:
        with torch.no_grad():
            for p, mask in zip(expected.targets, expected.masks, strict=True):
                p.masked_fill_(~mask, 0.0)

    inputs, task = bound("step", name)
    task.run()

    torch.testing.assert_close(inputs.params, expected.params, rtol=1e-5, atol=1e-7)
    for p, buffer, mask in zip(inputs.targets, inputs.target_buffers, inputs.masks, strict=True):
        assert "no mask" in name or not p[~mask].any()
        assert bool(buffer[~mask].any()) == ("p, m" not in name and name != "dsd_kernels, masked")


@pytest.mark.parametrize("name", names("select"))
def test_every_selection_gives_the_same_thresholds(name):
    inputs, task = bound("select", name)
    expected = [p.abs().flatten().sort().values[k - 1].item() for p, k in zip(inputs.targets, inputs.k, strict=True)]
    assert [float(value) for value in task.run()] == expected


@pytest.mark.parametrize("name", names("prune"))
def test_every_prune_event_zeroes_half_of_the_weights_each_time(name):
    inputs, task = bound("prune", name)
    before = [p.detach().clone() for p in inputs.targets]
    for _ in range(2):
        task.prepare()
        assert all(map(bits_equal, (p.detach() for p in inputs.targets), before))
        pruned = task.run() or inputs.targets
        for original, p, buffer, k in zip(before, pruned, inputs.target_buffers, inputs.k, strict=True):
            assert (p == 0).sum() == k
            assert (buffer == 0).sum() == (0 if "weights only" in name else k)
            assert original.abs()[p == 0].max() < p.abs()[p != 0].min()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", names("train"))
def test_every_training_step_keeps_its_mask_and_trains(network, name):
    training = make_training(network, "cpu", torch.float32, 0.5)
    if TORCHAO in name:
        pytest.importorskip("torchao")
        if network == "cnn":
            pytest.skip("torchao masks no convolution: see below")
    original = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    task = find("train", name).bind(training)
    for _ in range(2):
        model = task.run()
    training.loss(model)  # the forward pass is where torch.nn.utils.prune multiplies
    for path, mask in training.masks(training.model).items():
        module, _, attribute = path.rpartition(".")
        weight = getattr(model.get_submodule(module), attribute).detach()
        assert not torch.equal(weight[mask], original[path][mask])
        assert "no mask" in name or not weight[~mask].any()
    assert all(torch.equal(p, original[n]) for n, p in training.model.named_parameters())


def test_an_implementation_that_updates_nothing_is_refused(monkeypatch):
    inputs = make_inputs(SHAPES, "cpu")
    monkeypatch.setattr(torch.optim.SGD, "step", lambda _: None)
    with pytest.raises(NotImplementedError, match="leaves 1000 of 1000 weights un-updated in float32"):
        torch_sgd(fused=True)(inputs)


def test_torchao_refuses_what_it_would_get_wrong():
    inputs = make_inputs([(8, 8), (3, 2, 7, 7)], "cpu")
    with pytest.raises(NotImplementedError, match="the last two dimensions"):
        find("prune", "torchao WeightNormSparsifier, weights only").bind(inputs)
    with pytest.raises(NotImplementedError, match="the last two dimensions"):
        find("train", "torchao WeightNormSparsifier + torch fused").bind(
            make_training("cnn", "cpu", torch.float32, 0.5)
        )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_inputs_are_the_same_for_the_same_arguments(dtype, sparsity):
    first, second = (make_inputs(SHAPES, "cpu", dtype, sparsity) for _ in range(2))
    first.read()
    for a, b in zip(first.params + first.momentum_buffers, second.params + second.momentum_buffers, strict=True):
        assert bits_equal(a.detach(), b.detach())
        assert a.dtype == dtype
    assert all(map(torch.equal, first.masks, second.masks))
    assert bool(sparsity) == any(not mask.all() for mask in first.masks)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_the_gate_is_green(dtype, sparsity):
    assert gate.problems("cpu", dtype, sparsity) == []


@pytest.mark.parametrize("values", VALUES)
def test_the_gate_is_green_whatever_the_weights_hold(values):
    assert gate.problems("cpu", values=values) == []


def magnitudes(values):
    return make_inputs([(100, 100)], "cpu", values=values).params[0].detach().abs().flatten()


def test_the_values_are_what_their_names_say():
    counts = {name: len(magnitudes(name).unique()) for name in VALUES}
    assert (counts["zeros"], counts["equal"], counts["two-valued"]) == (1, 1, 2)
    assert 4_800 < (magnitudes("half-zeros") == 0).sum() < 5_200
    assert (magnitudes("ascending").diff() >= 0).all()
    assert (magnitudes("descending").diff() <= 0).all()
    assert counts["ascending"] == counts["descending"] == counts["normal"] > 9_900
    large, small = magnitudes("striped")[: 2 * STRIPE].view(2, STRIPE).mean(1)
    assert large > 100 * small
