"""What is measured: jobs with the bytes that they must move, over inputs, dtypes and sparsities."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from dsd_kernels.sparsity import n_pruned

from .shapes import INPUTS, Shape, label, n_weights
from .values import USUAL, VALUES, held

SPARSITY = 0.5
BIT = 1 / 8  # bytes
PEAK_BYTES_PER_WEIGHT = 80  # in float32; 63 measured, most of them the inputs and the copies of torch.sort
DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
SPARSITIES = (0.0, 0.3, 0.5, 0.8, 0.95)
RANKS = (0.01, 0.1, 0.9, 0.99)  # of the k-th magnitude, where a mask of that sparsity is rare
NETWORKS = ("cnn", "char-lstm")


@dataclass(frozen=True)
class Moves:
    """What passes through memory for one weight: so many of its own size, and bytes of masks."""

    weights: float
    mask_bytes: float = 0.0

    def bytes(self, dtype: torch.dtype) -> float:
        return self.weights * dtype.itemsize + self.mask_bytes


@dataclass(frozen=True)
class Job:
    """A job; `floor` is what no implementation can avoid to move, None where it is not memory that counts."""

    title: str
    floor: Moves | None
    reads_only: bool = False


JOBS = {
    # reads weight, gradient, momentum; writes weight, momentum; one bit of mask
    "step": Job("masked SGD step (momentum, Nesterov, weight decay)", Moves(5, BIT)),
    "select": Job("k-th magnitude of each tensor", Moves(1), reads_only=True),
    # one read to select; then weight and momentum are read and written, and the mask is written
    "prune": Job("prune event (select, make masks, zero weights and momentum)", Moves(5, BIT)),
    "train": Job("whole training step (forward, backward, masked SGD)", None),
}
QUICK_INPUTS = ("1e6", "1e7", "resnet50", "tiny", "cnn")
VARIED_INPUTS = ("1e7", "resnet50")


@dataclass(frozen=True)
class Case:
    """A job over inputs: a name of INPUTS, of NETWORKS, or the user's module:callable with its shapes."""

    job: str
    inputs: str
    dtype: torch.dtype = torch.float32
    sparsity: float = SPARSITY
    model: tuple[Shape, ...] | None = None
    values: str = USUAL

    @property
    def shapes(self) -> list[Shape]:
        """The tensors that the job works on: a step updates all, only those of two or more dimensions are pruned."""
        shapes = list(self.model) if self.model else INPUTS.get(self.inputs, [])
        return shapes if self.job == "step" else [shape for shape in shapes if self._loses_some(shape)]

    def _loses_some(self, shape: Shape) -> bool:
        return len(shape) >= 2 and n_pruned(self.sparsity, n_weights([shape])) > 0

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_usual(self) -> bool:
        return self.dtype == torch.float32 and self.sparsity == SPARSITY and self.values == USUAL

    def __str__(self) -> str:
        how = f"{self.dtype_name}, sparsity {self.sparsity:g}"
        return f"{JOBS[self.job].title}, {label(self.inputs)}, {how}{held(self.values)}"


def is_possible(case: Case) -> bool:
    """A network is trained, shapes are not; and where nothing is pruned, there is nothing to select."""
    if case.job == "train" or case.inputs in NETWORKS:
        return case.job == "train" and case.inputs in NETWORKS and case.values == USUAL
    return bool(case.shapes)


def usual_cases(*, full: bool, jobs: Sequence[str]) -> list[Case]:
    """What is measured where nothing is asked for: few inputs; with `full` all, and some of them in all ways."""
    cases = grid(jobs, [*INPUTS, *NETWORKS] if full else QUICK_INPUTS)
    if full:
        cases += grid(
            [job for job in jobs if job != "prune"], ["resnet50"], sparsities=[s for s in SPARSITIES if s != SPARSITY]
        )
        cases += grid(jobs, VARIED_INPUTS, dtypes=[torch.bfloat16])
        selections = [job for job in jobs if job == "select"]
        cases += grid(selections, ["1e7"], sparsities=RANKS)
        cases += grid(selections, ["1e7"], values=[name for name in VALUES if name != USUAL])
    return sorted(cases, key=lambda case: jobs.index(case.job))


def grid(
    jobs: Sequence[str],
    inputs: Sequence[str],
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    sparsities: Sequence[float] = (SPARSITY,),
    model: Sequence[Shape] | None = None,
    values: Sequence[str] = (USUAL,),
) -> list[Case]:
    """Every combination that is possible."""
    cases = (
        Case(job, name, dtype, sparsity, tuple(model) if model else None, own)
        for job, dtype, sparsity, own, name in product(jobs, dtypes, sparsities, values, inputs)
    )
    return [case for case in cases if is_possible(case)]


def fits(case: Case, device: str) -> bool:
    """Whether the inputs and every peer's temporary copies fit into half of the memory; on a GPU, into what is free."""
    needed = n_weights(case.shapes) * PEAK_BYTES_PER_WEIGHT * case.dtype.itemsize / 4
    if device == "cuda":
        return needed < 0.8 * torch.cuda.mem_get_info()[0]
    return needed < 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
