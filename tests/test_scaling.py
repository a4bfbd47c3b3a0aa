"""docs/scaling.md: its table is what the formulas say, and the simulated selection keeps the promises of a real one."""

import pytest
import torch

from benchmarks import scaling
from benchmarks.scaling import Run, first_ties, share_of_keys, simulate


def test_the_page_shows_what_the_formulas_say():
    page = scaling.PAGE.read_text()
    assert scaling.with_tables(page, {"formulas": scaling.formulas()}) == page, "run: python -m benchmarks.scaling"


def test_the_formulas_by_hand():
    run = Run(n_weights=10**6, n_tensors=10, n_ranks=4)
    assert run.state_bytes == 3_000_000
    assert run.mask_bytes == 31_250
    assert run.step_bytes == 9_000_000
    assert run.gather_bytes == 3_000_000
    assert run.prune_messages == 4 + 3  # places in 100,000 weights: 17 bits
    assert run.prune_bytes == 1.5 * 7 * 10 * 2048


def test_shares_of_keys_are_probabilities():
    assert sum(share_of_keys(digit << 24, 24) for digit in range(128)) == pytest.approx(1)
    one, two = 0x3F800000, 0x40000000
    assert share_of_keys(one, two.bit_length() - 8) == pytest.approx(2 * 0.1359051, rel=1e-6)  # 1 to 2


@pytest.mark.parametrize(("n_weights", "n_ranks"), [(1001, 7), (10**6, 8), (10**12, 3)])
def test_a_simulated_selection_prunes_exactly_half(n_weights, n_ranks):
    found = simulate(n_weights, n_ranks)
    assert len(found.shares) == n_ranks
    assert int(found.shares.sum()) == round(n_weights / 2)
    assert found.threshold == pytest.approx(0.6745, abs=5 / n_weights**0.5 + 1e-4)
    assert found.n_pruned_ties <= found.n_ties == found.candidates[-1]
    assert list(found.candidates) == sorted(found.candidates, reverse=True)


def test_the_first_ties_are_those_of_the_first_ranks():
    assert first_ties(torch.tensor([2, 0, 5, 4]), 6).tolist() == [2, 0, 4, 0]
