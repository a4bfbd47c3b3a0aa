"""What weights looked like where phases met: histograms of |w|, thresholds, and how much masks have in common."""

import math
from typing import Any

import torch
from torch import Tensor

from dsd_kernels.flows.base import Flow

N_BINS = 60


class WeightHistory:
    """Keeps, at each change of phase, a histogram of |w| per layer before it, and what the change pruned.

    Attributes:
        snapshots: one per phase end: `when`, and for each layer `counts` of the weights that no mask prunes in `N_BINS`
            equal bins from 0 to `largest` (larger ones in the last), `n_masked`, and `threshold`: the largest magnitude
            that was pruned right after, None if nothing was, or if it was not the smallest ones.
        overlaps: one per new mask that follows an older one: `phase`, and for each layer `again`, the share of what it
            pruned that the older one had pruned too, and `chance`, what a random mask would share.
    """

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Any]] = []
        self.overlaps: list[dict[str, Any]] = []
        self._pruned: dict[str, Tensor] = {}
        self._magnitudes: dict[str, Tensor] = {}

    def has_end_of(self, stage: str) -> bool:
        """Whether the last snapshot is that of the end of a phase."""
        return bool(self.snapshots) and self.snapshots[-1]["when"] == end_of(stage)

    def before_phase_change(self, flow: Flow, when: str) -> None:
        """Look at the weights at the end of a phase."""
        layers: dict[str, dict[str, Any]] = {}
        masks = flow.optimizer.masks
        for row in flow.make_plan(0.0).prunable:
            magnitudes = row.parameter.detach().abs()
            mask = masks.get(row.parameter)
            kept = magnitudes if mask is None else magnitudes[mask]
            first = self.snapshots[0]["layers"][row.name] if self.snapshots else {}
            largest = first.get("largest", magnitudes.max().item())
            layers[row.name] = {
                "largest": largest,
                "counts": _counts(kept, largest),
                "n_masked": magnitudes.numel() - kept.numel(),
                "threshold": None,
            }
            self._magnitudes[row.name] = magnitudes
            if mask is not None:
                self._pruned[row.name] = ~mask
        self.snapshots.append({"when": when, "layers": layers})

    def after_phase_change(self, flow: Flow) -> None:
        """Look at what the new phase prunes, if it does."""
        again: dict[str, dict[str, float]] = {}
        masks = flow.optimizer.masks
        for row in flow.make_plan(0.0).prunable:
            mask = masks.get(row.parameter)
            if mask is None or bool(mask.all()):
                continue
            self.snapshots[-1]["layers"][row.name]["threshold"] = _threshold(self._magnitudes[row.name], mask)
            if (older := self._pruned.get(row.name)) is not None:
                shared = (older & ~mask).sum() / (~mask).sum()
                again[row.name] = {"again": shared.item(), "chance": older.double().mean().item()}
        self._magnitudes.clear()
        if again:
            self.overlaps.append({"phase": flow.phase.name, "layers": again})

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {"snapshots": self.snapshots, "overlaps": self.overlaps}

    def state_dict(self) -> dict[str, Any]:
        return {**self.to_dict(), "pruned": self._pruned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.snapshots, self.overlaps = state["snapshots"], state["overlaps"]
        self._pruned = dict(state["pruned"])


def end_of(stage: str) -> str:
    return f"end of {stage}"


def _counts(magnitudes: Tensor, largest: float) -> list[int]:
    finite = magnitudes[magnitudes.isfinite()].float().clamp(max=largest).cpu()
    if not largest or not math.isfinite(largest):  # all zero, or a training that diverged
        return [len(finite)] + [0] * (N_BINS - 1)
    return [int(n) for n in torch.histc(finite, N_BINS, min=0.0, max=largest)]


def _threshold(magnitudes: Tensor, mask: Tensor) -> float | None:
    largest_pruned, kept = magnitudes[~mask].max(), magnitudes[mask]
    is_threshold = not kept.numel() or bool(largest_pruned <= kept.min())
    return largest_pruned.item() if is_threshold else None
