"""Promises of masks.py: which parameters are pruned and why not, exact counts for every distribution, exact masks."""

import math

import pytest
import torch
from cases import DTYPES, SIZES, awkward, bits_equal, generator, in_memory_order, normal, stable_sort_keep
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsd_kernels import MaskedSGD, masks, use_backend
from dsd_kernels.distributions import _erk_counts
from dsd_kernels.ops import global_selection, reference
from dsd_kernels.sparsity import check_sparsity, n_pruned

BAD_SPARSITIES = [(-0.1, ValueError), (1.0, ValueError), (2, ValueError), (math.nan, ValueError)]
BAD_SPARSITIES += [("half", TypeError), (True, TypeError), (None, TypeError), (torch.tensor(0.5), TypeError)]

SHAPES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1)
TIED_TENSORS = st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, math.inf, math.nan])), min_size=1)

LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, 3),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "with gaps": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda t: t[:, :1].expand(-1, 3, -1, -1),
}


def small_cnn() -> nn.Module:
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 16, 3),
            "norm": nn.BatchNorm2d(16),
            "conv": nn.Conv2d(16, 8, 3),
            "embed": nn.Embedding(50, 8),
            "head": nn.Linear(8, 10),
            "tiny": nn.Linear(9, 7),
        }
    )


def reasons(model: nn.Module, **options) -> dict[str, str]:
    return {row.name: row.reason for row in masks.plan(model, 0.5, **options).rows}


def prunable(model: nn.Module, **options) -> list[str]:
    return [row.name for row in masks.plan(model, 0.5, **options).prunable]


def counts(model: nn.Module, sparsity: float | None, distribution, **options) -> dict[str, int]:
    return {row.name: row.n_pruned for row in masks.plan(model, sparsity, distribution, **options).prunable}


def linears(*tensors: torch.Tensor) -> nn.Module:
    """A model whose weights are the given matrices, all prunable."""
    model = nn.Module()
    for i, tensor in enumerate(tensors):
        model.register_parameter(f"w{i}", nn.Parameter(tensor))
    return model


class TestRules:
    def test_literal_plan_of_a_small_cnn(self):
        rows = [(r.name, r.shape, r.n, r.prunable, r.reason, r.n_pruned) for r in masks.plan(small_cnn(), 0.3).rows]
        assert rows == [
            ("stem.weight", (16, 3, 3, 3), 432, False, "first convolution", 0),
            ("stem.bias", (16,), 16, False, "bias", 0),
            ("norm.weight", (16,), 16, False, "normalisation", 0),
            ("norm.bias", (16,), 16, False, "normalisation", 0),
            ("conv.weight", (8, 16, 3, 3), 1152, True, "", 346),
            ("conv.bias", (8,), 8, False, "bias", 0),
            ("embed.weight", (50, 8), 400, False, "embedding", 0),
            ("head.weight", (10, 8), 80, True, "", 24),
            ("head.bias", (10,), 10, False, "bias", 0),
            ("tiny.weight", (7, 9), 63, False, "fewer than 64 weights", 0),
            ("tiny.bias", (7,), 7, False, "bias", 0),
        ]

    def test_the_table_is_readable_and_has_totals(self):
        model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 100))
        assert str(masks.plan(model, 0.25)).splitlines() == [
            "parameter     shape  weights  pruned  sparsity  note",
            "0.weight      10x8        80       -         -  embedding",
            "1.weight      100x8      800     200    0.2500",
            "1.bias        100        100       -         -  bias",
            "all prunable             800     200    0.2500",
            "all                      980     200    0.2041",
        ]

    @pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
    def test_the_first_convolution_in_order_of_registration(self, conv):
        model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(conv(8, 8, 2)), conv(8, 8, 2))
        assert prunable(model) == ["0.weight", "2.weight"]
        assert prunable(model, exclude_first=False) == ["0.weight", "1.0.weight", "2.weight"]

    def test_without_convolutions_no_layer_is_first(self):
        assert prunable(nn.Sequential(nn.ConvTranspose2d(8, 8, 2), nn.Linear(8, 8))) == ["0.weight", "1.weight"]

    def test_recurrent_and_attention_weights_are_matrices_and_their_biases_are_not(self):
        model = nn.ModuleList([nn.LSTM(8, 8, proj_size=4), nn.GRU(8, 8), nn.MultiheadAttention(8, 2, add_bias_kv=True)])
        assert prunable(model, min_weights=1) == [
            "0.weight_ih_l0",
            "0.weight_hh_l0",
            "0.weight_hr_l0",
            "1.weight_ih_l0",
            "1.weight_hh_l0",
            "2.in_proj_weight",
            "2.out_proj.weight",
        ]
        assert reasons(model)["2.bias_k"] == "bias"

    def test_norms_of_any_shape_and_embedding_bags_are_left_out(self):
        model = nn.ModuleList([nn.LayerNorm((8, 16)), nn.GroupNorm(2, 128), nn.RMSNorm((8, 16))])
        model.extend([nn.InstanceNorm2d(128, affine=True), nn.EmbeddingBag(20, 8)])
        assert set(reasons(model).values()) == {"normalisation", "embedding"}
        assert prunable(model) == []

    def test_tied_parameters_are_named_once_with_their_other_name(self):
        model = nn.ModuleDict({"encoder": nn.Linear(16, 16, bias=False), "decoder": nn.Linear(16, 16, bias=False)})
        model["decoder"].weight = model["encoder"].weight
        assert reasons(model) == {"encoder.weight": "tied to decoder.weight"}
        for name in ("encoder.weight", "decoder.weight"):
            assert prunable(model, include=name) == ["encoder.weight"]
            assert counts(model, None, {name: 0.5}) == {"encoder.weight": 128}
        with pytest.raises(ValueError, match=r"got 'encoder.weight', but decoder.weight is the same parameter"):
            masks.plan(model, None, {"encoder.weight": 0.5, "decoder.weight": 0.5})

    def test_frozen_foreign_and_parametrized_weights_are_left_out(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
        model[0].weight.requires_grad_(False)
        nn.utils.parametrizations.weight_norm(model[2])
        owned = [p for layer in (model[0], model[2], model[3]) for p in layer.parameters()]
        found = reasons(model, parameters=owned)
        assert found["0.weight"] == "frozen (requires_grad is False)"
        assert found["1.weight"] == "parameter is not among the given ones"
        assert found["2.parametrizations.weight.original1"] == "parametrized: the weight is computed from it"
        assert prunable(model, parameters=owned) == ["3.weight"]

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool, torch.float8_e4m3fn])
    def test_no_option_prunes_an_unsupported_dtype(self, dtype):
        model = nn.Module()
        model.w = nn.Parameter(torch.zeros(16, 16, dtype=dtype), requires_grad=False)
        assert reasons(model) == {"w": f"dtype {dtype} cannot be pruned"}
        with pytest.raises(ValueError, match=f"include or distribution: 'w' names w, but its dtype {dtype}"):
            masks.plan(model, 0.5, include=("w",))

    def test_every_rule_can_be_overridden_by_name(self):
        model = small_cnn()
        model["head"].weight.requires_grad_(False)
        everything = masks.plan(model, 0.5, include="*")
        assert all(row.prunable for row in everything.rows)
        assert everything.rows[0].reason == "included by '*'"
        assert prunable(model, include=("embed.weight", "st*.weight")) == ["stem.weight", "conv.weight", "embed.weight"]
        assert prunable(model, min_weights=0) == ["conv.weight", "tiny.weight"]

    def test_exclude_wins(self):
        assert prunable(small_cnn(), exclude=("conv.*",), include="conv.weight") == ["head.weight"]
        assert reasons(small_cnn(), exclude="conv.weight")["conv.weight"] == "excluded by 'conv.weight'"

    @pytest.mark.parametrize("argument", ["include", "exclude"])
    def test_a_pattern_that_matches_nothing_is_an_error(self, argument):
        with pytest.raises(ValueError, match=f"^{argument}: .* 'fc.weight' matches none"):
            masks.plan(small_cnn(), 0.5, **{argument: ("head.weight", "fc.weight")})
        with pytest.raises(TypeError, match=f"^{argument}: .* got 3"):
            masks.plan(small_cnn(), 0.5, **{argument: (3,)})

    def test_lazy_parameters_are_named(self):
        with pytest.raises(ValueError, match=r"model: expected initialised parameters, 0\.weight is not yet"):
            masks.plan(nn.Sequential(nn.LazyLinear(4)), 0.5)

    def test_planning_changes_nothing_and_plans_compare_by_content(self):
        model = small_cnn()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        plans = [masks.plan(model, 0.5, distribution) for distribution in ("uniform", "erk", "global")]
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert plans[0] == masks.plan(small_cnn(), 0.5)
        assert plans[0] != plans[1]


class TestDistributions:
    def test_uniform_rounds_each_layer(self):
        model = linears(*(torch.ones(n, 1) for n in (65, 66, 67, 70)))
        assert list(counts(model, 0.5, "uniform").values()) == [32, 33, 34, 35]

    def test_explicit_sparsities_by_name(self):
        plan = masks.plan(small_cnn(), None, {"head.weight": 0.9, "stem.weight": 0.1})
        assert {row.name: row.n_pruned for row in plan.prunable} == {"stem.weight": 43, "head.weight": 72}
        assert {row.name: row.reason for row in plan.rows}["conv.weight"] == "not named in distribution"
        assert {row.name: row.reason for row in plan.rows}["norm.weight"] == "normalisation"

    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"distribution": {"fc": 0.5}}, ValueError, "distribution: .* the model has no 'fc'"),
            ({"distribution": {"*": 0.5}}, ValueError, r"distribution: .* the model has no '\*'"),
            ({"distribution": {"head.weight": 1.0}}, ValueError, r"distribution\['head.weight'\]: .* got 1.0"),
            ({"distribution": {"head.weight": "half"}}, TypeError, r"distribution\['head.weight'\]: .* got 'half'"),
            ({"distribution": {"head.weight": 0.5}, "sparsity": 0.5}, ValueError, "sparsity: expected None beside"),
            (
                {"distribution": {"head.weight": 0.5}, "exclude": "head.*"},
                ValueError,
                "distribution: .* got 'head.weight', but it is excluded by 'head",
            ),
            ({"distribution": {"head.weight": 0.5}, "include": "embed.*"}, ValueError, "include: expected none beside"),
            ({"distribution": "layerwise", "sparsity": 0.5}, ValueError, "distribution: .* got 'layerwise'"),
            ({"distribution": 3, "sparsity": 0.5}, ValueError, "distribution: .* got 3"),
            ({"min_weights": "few", "sparsity": 0.5}, TypeError, "min_weights: expected an integer, got 'few'"),
        ],
    )
    def test_bad_options(self, options, error, text):
        with pytest.raises(error, match=text):
            masks.plan(small_cnn(), **options)

    def test_no_model(self):
        with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got list"):
            masks.plan([torch.ones(8, 8)], 0.5)

    @pytest.mark.parametrize(("sparsity", "error"), BAD_SPARSITIES)
    @pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
    def test_bad_sparsity(self, sparsity, error, distribution):
        with pytest.raises(error, match=r"^sparsity: expected a number in \[0, 1\), got "):
            masks.plan(small_cnn(), sparsity, distribution)

    def test_erk_by_hand(self):
        # 2,900 kept over scores 200, 70, 20 would be 2000, 700, 200; the last has only 100 weights and is kept whole,
        # so 2,800 over 200, 70: 2074.07 and 725.93
        assert _erk_counts([(100, 100), (20, 50), (10, 10)], total=11_100 - 2_900) == [7_926, 274, 0]

    def test_erk_gives_the_rest_to_the_largest_remainders_earlier_layers_first(self):
        # 30 kept over scores 20, 20, 20, 40: exactly 6, 6, 6, 12; 31: 6.2, 6.2, 6.2, 12.4; 33: 6.6, 6.6, 6.6, 13.2
        shapes = [(10, 10), (10, 10), (10, 10), (20, 20)]
        for kept, expected in ((30, [6, 6, 6, 12]), (31, [6, 6, 6, 13]), (33, [7, 7, 6, 13])):
            pruned = _erk_counts(shapes, total=700 - kept)
            assert [math.prod(s) - p for s, p in zip(shapes, pruned, strict=True)] == expected

    @settings(deadline=None)
    @given(SHAPES, st.floats(0, 1, exclude_max=True))
    def test_erk_total_is_exact_and_in_proportion(self, shapes, sparsity):
        n = [math.prod(shape) for shape in shapes]
        total = n_pruned(sparsity, sum(n))
        pruned = _erk_counts(shapes, total)
        assert sum(pruned) == total
        assert all(0 <= p <= n_l for p, n_l in zip(pruned, n, strict=True))
        open_layers = [(n_l - p, sum(shape)) for p, n_l, shape in zip(pruned, n, shapes, strict=True) if p > 1]
        for kept, score in open_layers:
            for other_kept, other_score in open_layers:
                assert abs(kept * other_score - other_kept * score) <= score + other_score

    @settings(deadline=None)
    @given(st.data())
    def test_sparsities_give_back_exactly_the_counts(self, data):
        n = data.draw(st.integers(1, 10**9))
        count = data.draw(st.integers(0, n) | st.just(n))
        row = masks.LayerPlan("w", torch.zeros(0), (n,), n, True, "", count)
        [sparsity] = masks.PruningPlan((row,)).sparsities().values()
        check_sparsity("sparsity", sparsity)
        assert n_pruned(sparsity, n) == count


def global_oracle(tensors: list[torch.Tensor], k: int) -> list[torch.Tensor]:
    """Flat keep masks in memory order by a stable sort of the concatenation."""
    flat = torch.cat([in_memory_order(t.detach()).double() for t in tensors])
    return list(stable_sort_keep(flat, k).split([t.numel() for t in tensors]))


class TestGlobal:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.999, 0.99999])
    def test_the_set_is_that_of_a_stable_sort_of_the_concatenation(self, dtype, sparsity):
        tensors = [awkward(n, dtype, seed) for seed, n in enumerate((65, 1000, 7, 0, 4097))]
        keep = masks.magnitude_masks(tensors, sparsity, "global")
        oracle = global_oracle(tensors, n_pruned(sparsity, 5169))
        assert all(torch.equal(a, b) for a, b in zip(keep, oracle, strict=True))

    @settings(deadline=None)
    @given(TIED_TENSORS, st.data())
    def test_counts_with_ties_everywhere(self, values, data):
        tensors = [torch.tensor(v) for v in values]
        k = data.draw(st.integers(0, sum(len(v) for v in values)))
        expected = [int((~keep).sum()) for keep in global_oracle(tensors, k)]
        assert global_selection.global_counts(tensors, k).tolist() == expected

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("n", [1, 1000, 70_000, 300_001])
    def test_one_tensor_loses_all_that_is_asked_for(self, n, dtype):
        tensors = [awkward(n, dtype, seed=3)]
        ks = (0, 1, n // 2, n)
        assert [global_selection.global_counts(tensors, k).tolist() for k in ks] == [[k] for k in ks]

    def test_a_constant_model_loses_the_earlier_layers_first(self):
        model = linears(torch.ones(10, 10), torch.full((10, 10), -1.0), torch.ones(10, 10))
        assert list(counts(model, 0.5, "global").values()) == [100, 50, 0]

    def test_a_layer_that_loses_all_can_be_pruned(self):
        model = linears(torch.full((10, 10), 1e-3), torch.ones(10, 10))
        optimizer = MaskedSGD(model.parameters(), lr=0.1)
        optimizer.prune(masks.plan(model, 0.5, "global").sparsities())
        assert [int(p.count_nonzero()) for p in model.parameters()] == [0, 100]

    def test_different_dtypes_are_compared_by_value(self):
        sizes = (63, 640, 65, 66)
        tensors = [normal(n, dtype, seed=n) for n, dtype in zip(sizes, DTYPES, strict=True)]
        keep = masks.magnitude_masks(tensors, 0.6, "global")
        assert all(torch.equal(a, b) for a, b in zip(keep, global_oracle(tensors, 500), strict=True))

    @pytest.mark.parametrize(("narrow", "wide"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
    def test_values_that_only_the_wider_dtype_tells_apart(self, narrow, wide):
        below = 1 - torch.finfo(wide).eps
        tensors = [torch.ones(2, dtype=narrow), torch.tensor([below, 2.0], dtype=wide)]
        assert global_selection.global_counts(tensors, 1).tolist() == [0, 1]
        assert global_selection.global_counts(tensors, 2).tolist() == [1, 1]

    def test_chunks_do_not_show(self, monkeypatch):
        tensors = [awkward(1000, torch.float32), awkward(33, torch.float32, 1)]
        whole = global_selection.global_counts(tensors, 400)
        monkeypatch.setattr(reference, "_GLOBAL_CHUNK", 64)
        with use_backend("reference"):
            assert torch.equal(global_selection.global_counts(tensors, 400), whole)

    def test_plan_and_prune_agree_with_the_masks(self):
        model = linears(normal(4097, torch.float32).view(17, 241), normal(1000, torch.float32, 1).view(10, 100) * 2)
        expected = masks.magnitude_masks(list(model.parameters()), 0.7, "global")
        optimizer = MaskedSGD(model.parameters(), lr=0.1)
        optimizer.prune(masks.plan(model, 0.7, "global").sparsities())
        assert all(torch.equal(optimizer.masks[p], mask) for p, mask in zip(model.parameters(), expected, strict=True))


class TestMagnitudeMasks:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("n", SIZES)
    def test_the_set_is_that_of_a_stable_sort_and_the_tensor_is_untouched(self, dtype, n):
        tensor = awkward(n, dtype)
        before = tensor.clone()
        for sparsity in (0.0, 0.3, 0.5, 0.999):
            [mask] = masks.magnitude_masks([tensor], sparsity)
            assert torch.equal(mask, stable_sort_keep(tensor, round(sparsity * n)))
        assert bits_equal(tensor, before)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_any_strides(self, layout):
        tensor = LAYOUTS[layout](normal(4 * 3 * 5 * 2, torch.float32).round(decimals=1).view(4, 3, 5, 2))
        parameter = nn.Parameter(tensor)
        version, strides = parameter._version, tensor.clone().stride()
        for made in (masks.magnitude_masks, masks.random_masks):
            [mask] = made([parameter], 0.35)
            assert mask.dtype == torch.bool
            assert mask.shape == tensor.shape
            assert mask.stride() == strides
            assert int((~mask).sum()) == 42
        [mask] = masks.magnitude_masks([parameter], 0.35)
        assert torch.equal(in_memory_order(mask), stable_sort_keep(tensor.clone(), 42))
        assert masks.masks_from_zeros([parameter])[0].stride() == strides
        assert parameter._version == version

    @pytest.mark.parametrize("value", [0.0, 0.02, -1.0, math.inf, math.nan])
    def test_a_constant_tensor_loses_what_was_asked_lowest_index_first(self, value):
        [mask] = masks.magnitude_masks([torch.full((10, 10), value)], 0.3)
        assert torch.equal(mask.flatten(), torch.arange(100) >= 30)

    def test_a_million_bfloat16_weights_are_exact(self):
        tensor = (normal(1_000_000, torch.float64) * 0.02).bfloat16()
        assert tensor.abs().unique().numel() < 3000
        [mask] = masks.magnitude_masks([tensor], 0.3)
        assert torch.equal(mask, stable_sort_keep(tensor, 300_000))

    def test_magnitudes_whose_squares_underflow_keep_their_order(self):
        tensor = torch.tensor([4e-6, 1e-6, 3e-6, 2e-6], dtype=torch.float16)
        assert masks.magnitude_masks([tensor], 0.5)[0].tolist() == [True, False, True, False]

    def test_one_sparsity_per_tensor_and_no_tensors(self):
        keep = masks.magnitude_masks([torch.ones(10), torch.ones(10)], [0.2, 0.7])
        assert [int(mask.sum()) for mask in keep] == [8, 3]
        assert masks.magnitude_masks([], 0.5) == masks.magnitude_masks([], 0.5, "global") == []


class TestRandomMasks:
    @pytest.mark.parametrize("n", SIZES)
    def test_exact_counts(self, n):
        for sparsity in (0.0, 0.3, 0.5, 0.999):
            [mask] = masks.random_masks([torch.zeros(n)], sparsity, generator())
            assert int((~mask).sum()) == round(sparsity * n)

    def test_reproducible_from_the_generator_whatever_the_layout_and_dtype(self):
        tensor = normal(120, torch.float32).view(4, 3, 5, 2)
        others = [tensor.contiguous(memory_format=torch.channels_last), torch.zeros(4, 3, 5, 2, dtype=torch.bfloat16)]
        expected = masks.random_masks([tensor], 0.5, generator(3))[0]
        for other in others:
            assert torch.equal(masks.random_masks([other], 0.5, generator(3))[0], expected)
        again = generator(3)
        assert not torch.equal(*(masks.random_masks([tensor], 0.5, again)[0] for _ in range(2)))

    def test_without_a_generator_torch_s_own_seed_counts(self):
        torch.manual_seed(0)
        first = masks.random_masks([torch.zeros(100)], 0.5)[0]
        torch.manual_seed(0)
        assert torch.equal(masks.random_masks([torch.zeros(100)], 0.5)[0], first)

    def test_every_choice_is_equally_likely(self):
        source = generator()
        n_draws = 3000
        drawn = torch.stack([masks.random_masks([torch.zeros(4)], 0.5, source)[0] for _ in range(n_draws)])
        choices, times = drawn.unique(dim=0, return_counts=True)
        assert len(choices) == 6
        chi_square = ((times - n_draws / 6) ** 2 / (n_draws / 6)).sum()
        assert chi_square < 20.5  # the 99.9 % point of 5 degrees of freedom; the generator's seed is fixed


def test_masks_from_zeros():
    tensor = torch.tensor([[1.0, 0.0], [-0.0, math.nan]])
    assert masks.masks_from_zeros([tensor])[0].tolist() == [[True, False], [False, True]]
    assert masks.masks_from_zeros([torch.tensor([0, 3])])[0].tolist() == [False, True]


@pytest.mark.parametrize("make", [masks.magnitude_masks, masks.random_masks])
class TestBadInput:
    @pytest.mark.parametrize(("sparsity", "error"), BAD_SPARSITIES)
    def test_sparsity(self, make, sparsity, error):
        with pytest.raises(error, match=r"^sparsity: expected a number in \[0, 1\), got "):
            make([torch.ones(4)], sparsity)
        with pytest.raises(error, match=r"^sparsity\[1\]: expected a number in \[0, 1\), got "):
            make([torch.ones(4), torch.ones(4)], [0.5, sparsity])

    def test_tensors(self, make):
        with pytest.raises(ValueError, match=r"^sparsity: expected 2 values, one per tensor, got 1"):
            make([torch.ones(4), torch.ones(4)], [0.5])
        with pytest.raises(TypeError, match=r"^tensors: expected a list of tensors, got Tensor"):
            make(torch.ones(4), 0.5)
        with pytest.raises(TypeError, match=r"^tensors\[1\]: expected a tensor, got list"):
            make([torch.ones(4), [1.0]], 0.5)


def test_magnitude_masks_refuse_dtypes_and_distributions_they_do_not_know():
    with pytest.raises(TypeError, match=r"^tensors\[0\]: expected dtype float32, .* got torch.int64"):
        masks.magnitude_masks([torch.ones(4, dtype=torch.int64)], 0.5)
    with pytest.raises(ValueError, match=r"^distribution: expected uniform or global, got 'erk'"):
        masks.magnitude_masks([torch.ones(4)], 0.5, "erk")
    with pytest.raises(TypeError, match=r"^sparsity: expected a number in \[0, 1\), got \[0.5\]"):
        masks.magnitude_masks([torch.ones(4)], [0.5], "global")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: masks.random_masks([torch.ones(4)], 0.5, 7), "generator: expected a torch.Generator, got 7"),
        (lambda: masks.random_masks([torch.ones(4).to_sparse()], 0.5), r"tensors\[0\]: expected a strided tensor"),
        (lambda: masks.masks_from_zeros([torch.ones(4).to_sparse()]), r"tensors\[0\]: expected a strided tensor"),
        (lambda: masks.magnitude_masks([torch.ones(4).to_sparse()], 0.5), r"tensors\[0\]: expected a strided tensor"),
        (
            lambda: masks.plan(torch.nn.Linear(9, 9), 0.5, include=3),
            "include: expected names or patterns of parameters, got 3",
        ),
        (lambda: masks.plan(torch.nn.Linear(9, 9), 0.5, exclude=None), "exclude: expected names or patterns"),
    ],
)
def test_what_is_of_another_kind_is_named(call, text):
    with pytest.raises(TypeError, match=text):
        call()
