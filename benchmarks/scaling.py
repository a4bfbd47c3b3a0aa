"""`python -m benchmarks.scaling`: what masks cost on many ranks, on paper: formulas, and a simulation of selection.

Nothing here is measured. The formulas are held to counted traffic by a test; the simulation runs the library's own
search for digits over counts that are drawn, not counted, so that 1e12 weights need no memory.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import torch
from torch import Tensor

from dsd_kernels.ops.digits import N_BINS, find_digits
from dsd_kernels.ops.reference import DIGIT_BITS
from dsd_kernels.sparsity import n_pruned

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
COUNT_BYTES = 8
MODELS = ((10**8, 150), (10**10, 300), (10**12, 900))  # weights, and prunable tensors: 7 a layer of a transformer
RANKS = (8, 1_024, 16_384)
SPARSITY = 0.5
KEY_BITS = 31  # of float32


@dataclass(frozen=True)
class Run:
    """A model of float32 weights, cut evenly over ranks."""

    n_weights: int
    n_tensors: int
    n_ranks: int

    @property
    def weights_per_rank(self) -> float:
        return self.n_weights / self.n_ranks

    @property
    def state_bytes(self) -> float:
        """Weight, gradient and momentum of this rank's weights."""
        return 12 * self.weights_per_rank

    @property
    def mask_bytes(self) -> float:
        return self.weights_per_rank / 8

    @property
    def step_bytes(self) -> float:
        """What FSDP2 sends in a step, of which nothing is ours: two all-gathers of weights, a reduce-scatter."""
        return 3 * 4 * self.n_weights * (self.n_ranks - 1) / self.n_ranks

    @property
    def gather_bytes(self) -> float:
        """What selection would send if it gathered the weights."""
        return 4 * self.n_weights * (self.n_ranks - 1) / self.n_ranks

    @property
    def prune_messages(self) -> int:
        largest = math.ceil(self.n_weights / self.n_tensors)
        return rounds(KEY_BITS) + rounds((largest - 1).bit_length())

    @property
    def prune_bytes(self) -> float:
        """In a ring, an all-reduce sends everything twice, less a share."""
        return 2 * payload_bytes(self.n_tensors, self.prune_messages) * (self.n_ranks - 1) / self.n_ranks


def rounds(n_bits: int) -> int:
    """How many digits a number of so many bits has."""
    return max(-(-n_bits // DIGIT_BITS), 1)


def payload_bytes(n_tensors: int, n_rounds: int) -> int:
    """What a rank puts into the all-reduces of one selection, for every mesh dimension that cuts."""
    return n_tensors * n_rounds * N_BINS * COUNT_BYTES


@dataclass(frozen=True)
class Simulated:
    """One tensor of normally distributed weights, selected.

    Attributes:
        candidates: how many weights share the digits found, after each round.
        n_ties: how many weights equal the threshold; `n_pruned_ties` of them are pruned.
        threshold: as a multiple of the standard deviation.
        shares: how many weights each rank prunes.
    """

    candidates: tuple[int, ...]
    n_ties: int
    n_pruned_ties: int
    threshold: float
    shares: Tensor


class DrawnCounts:
    """Counts of digits as ranks with so many normally distributed weights each would find them.

    Which of a rank's weights share a prefix is drawn once, digit by digit, and kept, as weights would keep it.
    """

    def __init__(self, n_weights: int, n_ranks: int, seed: int) -> None:
        whole, rest = divmod(n_weights, n_ranks)
        self.sharing = whole + (torch.arange(n_ranks) < rest).double()  # each rank's weights with the digits found
        self.below = torch.zeros(n_ranks, dtype=torch.float64)
        self.candidates: list[int] = []
        self._generator = torch.Generator().manual_seed(seed)
        self._counts = torch.zeros(n_ranks, N_BINS, dtype=torch.float64)

    def count(self, found: Tensor, shift: int) -> Tensor:
        self.settle(int(found) & (N_BINS - 1))
        first = int(found) << DIGIT_BITS
        shares = [share_of_keys((first + digit) << shift, shift) for digit in range(N_BINS)]
        self._counts = draw(self.sharing, torch.tensor(shares, dtype=torch.float64), self._generator)
        return self._counts.sum(0, keepdim=True).long()

    def settle(self, digit: int) -> None:
        """Keep the weights with this digit of the round before, if there was one."""
        if not self._counts.any():
            return
        self.below += self._counts[:, :digit].sum(1)
        self.sharing = self._counts[:, digit]
        self.candidates.append(int(self.sharing.sum()))


def draw(n: Tensor, shares: Tensor, generator: torch.Generator) -> Tensor:
    """Of each rank's n weights, how many fall into each bin: a multinomial, one binomial after the other."""
    counts, left, share_left = [], n.clone(), shares.sum()
    for share in shares:
        p = (share / share_left).clamp(0, 1).expand(len(left)) if share_left > 0 else torch.zeros(len(left))
        counts.append(torch.binomial(left, p.double(), generator=generator))
        left, share_left = left - counts[-1], share_left - share
    counts[int(shares.nonzero()[-1])] += left  # what rounding of the shares left over
    return torch.stack(counts, dim=1)


def share_of_keys(first: int, shift: int) -> float:
    """The share of weights whose keys begin like `first`, above the last `shift` bits, of float32 and N(0, 1)."""
    low, high = (value_of(min(key, 0x7F800000)) for key in (first, first + (1 << shift)))
    normal = NormalDist()
    if high < 1:
        return 2 * (normal.cdf(high) - normal.cdf(low))
    return 2 * (normal.cdf(-low) - normal.cdf(-high))  # where the other difference would cancel


def value_of(key: int) -> float:
    return torch.tensor(key, dtype=torch.int32).view(torch.float32).item()


def simulate(n_weights: int, n_ranks: int, seed: int = 0) -> Simulated:
    """Select from one tensor of n_weights, cut over n_ranks."""
    k = n_pruned(SPARSITY, n_weights)
    drawn = DrawnCounts(n_weights, n_ranks, seed)
    # the sums over ranks are drawn with the ranks' counts, so that there is nothing to add up
    keys = find_digits(1, torch.tensor([k]), KEY_BITS, drawn.count)
    drawn.settle(int(keys.found) & (N_BINS - 1))
    n_pruned_ties = int(keys.remaining)
    shares = drawn.below + first_ties(drawn.sharing, n_pruned_ties)
    return Simulated(
        candidates=tuple(drawn.candidates),
        n_ties=int(keys.equal_in_all),
        n_pruned_ties=n_pruned_ties,
        threshold=value_of(int(keys.found)),
        shares=shares.long(),
    )


def first_ties(ties: Tensor, n: int) -> Tensor:
    """How many of the first n ties each rank has: ranks hold consecutive places."""
    before = ties.cumsum(0) - ties
    return (n - before).clamp(min=0).minimum(ties)


def with_tables(text: str, tables: dict[str, str]) -> str:
    """The page with what stands between its markers replaced."""
    for name, content in tables.items():
        begin, end = f"<!-- scaling:{name} -->\n", f"<!-- /scaling:{name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}\n\n{end}{rest.split(end)[1]}"
    return text


def formulas() -> str:
    """The table of what the formulas say."""
    return table(HEADER, map(cells, all_runs()))


def simulations() -> str:
    """The table of what was drawn; it takes a minute."""
    return table(SIMULATED_HEADER, map(simulated_cells, all_runs()))


def all_runs() -> list[Run]:
    return [Run(*model, n_ranks) for model in MODELS for n_ranks in RANKS]


HEADER = (
    "weights",
    "tensors",
    "ranks",
    "weights, gradients, momentum on a rank",
    "masks on a rank",
    "FSDP2 sends a step",
    "masks add to that",
    "all-reduces of a prune",
    "a prune sends",
    "gathering would send",
)


def cells(run: Run) -> list[str]:
    sizes = (run.state_bytes, run.mask_bytes, run.step_bytes)
    return [
        f"{run.n_weights:.0e}".replace("+", ""),
        str(run.n_tensors),
        f"{run.n_ranks:,}",
        *map(size, sizes),
        "0",
        str(run.prune_messages),
        size(run.prune_bytes),
        size(run.gather_bytes),
    ]


SIMULATED_HEADER = ("weights", "ranks", "candidates after each round", "ties", "of them pruned", "threshold", "shares")


def simulated_cells(run: Run) -> list[str]:
    found = simulate(run.n_weights, run.n_ranks)
    return [
        f"{run.n_weights:.0e}".replace("+", ""),
        f"{run.n_ranks:,}",
        ", ".join(f"{n:,}" for n in found.candidates),
        f"{found.n_ties:,}",
        f"{found.n_pruned_ties:,}",
        f"{found.threshold:.6f}",
        f"{found.shares.min():,} to {found.shares.max():,}",
    ]


def size(n_bytes: float) -> str:
    """Three digits, and a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.3g} TB" if n_bytes < 1000 else f"{n_bytes:,.0f} TB"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write both tables into docs/scaling.md."""
    PAGE.write_text(with_tables(PAGE.read_text(), {"formulas": formulas(), "simulated": simulations()}))


if __name__ == "__main__":
    main()
