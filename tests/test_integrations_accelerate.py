"""MaskedSGD and flows under Accelerate, which wraps the optimizer and sends its state through a round trip."""

import pytest
import torch
from cases import bits_equal, generator, normal

from dsd_kernels import MaskedSGD
from dsd_kernels.flows import DSD

accelerate = pytest.importorskip("accelerate")
from accelerate.state import AcceleratorState, GradientState

STEPS = 12


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerators share their state; the next test must not find this one's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Run:
    """Model, optimizer, scheduler and flow, prepared as the documentation of Accelerate says."""

    def __init__(self, cls=MaskedSGD, seed=0, lengths=None, sparsity=0.0, accumulation=1):
        self.model = torch.nn.Linear(8, 12, bias=False)
        with torch.no_grad():
            self.model.weight.copy_(torch.randn(12, 8, generator=generator(seed)))
        self.inner = cls(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)
        if sparsity:
            self.inner.prune(sparsity)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(self.inner, gamma=0.9)
        self.flow = None
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        if lengths:
            self.flow = DSD(self.inner, self.model, sparsity=0.5, min_weights=1, unit="step", **lengths)
            self.accelerator.register_for_checkpointing(self.flow)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(self.model, self.inner, scheduler)

    def train(self, steps):
        for step in steps:
            with self.accelerator.accumulate(self.model):
                loss = self.model(normal(64, torch.float32, seed=step).view(8, 8)).square().mean()
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
                if self.flow and self.accelerator.sync_gradients:
                    self.flow.step()
        return self

    def assert_same(self, other):
        assert bits_equal(self.model.weight.detach(), other.model.weight.detach())
        ours, theirs = (run.inner.state[run.model.weight]["momentum_buffer"] for run in (self, other))
        assert bits_equal(ours, theirs)


@pytest.mark.feature("Frameworks", "Accelerate: prepare, scheduler, gradient accumulation")
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_prepared_masked_sgd_is_bitwise_torch_sgd(accumulation):
    ours = Run(accumulation=accumulation).train(range(STEPS))
    theirs = Run(torch.optim.SGD, accumulation=accumulation).train(range(STEPS))
    ours.assert_same(theirs)


def test_masks_set_before_prepare_are_kept():
    run = Run(sparsity=0.5)
    before = run.inner.masks[run.model.weight]
    run.train(range(STEPS))
    assert run.optimizer.optimizer is run.inner
    assert torch.equal(run.inner.masks[run.model.weight], before)
    assert run.inner.verify().rows[0].n_pruned == 48


@pytest.mark.feature("Frameworks", "Accelerate: save_state and load_state, masks included")
def test_save_state_and_load_state_are_bitwise_the_run_that_never_stopped(tmp_path):
    reference = Run(sparsity=0.5).train(range(5))
    reference.accelerator.save_state(tmp_path)
    reference.train(range(5, STEPS))
    resumed = Run(seed=9)
    resumed.accelerator.load_state(tmp_path)
    resumed.train(range(5, STEPS)).assert_same(reference)
    assert torch.equal(resumed.inner.masks[resumed.model.weight], reference.inner.masks[reference.model.weight])


@pytest.mark.feature("Frameworks", "Accelerate: a flow in save_state and load_state, in any phase")
@pytest.mark.parametrize("lengths", [{"dense": 3, "sparse": 4, "redense": 3}, {"dense": 0, "sparse": 4, "redense": 3}])
def test_a_flow_registered_for_checkpointing_resumes_bitwise_at_every_step(tmp_path, lengths):
    reference = Run(lengths=lengths)
    for step in range(STEPS):
        reference.accelerator.save_state(tmp_path / str(step))
        reference.train([step])
    for step in range(STEPS):
        resumed = Run(seed=9, lengths=lengths)
        resumed.accelerator.load_state(tmp_path / str(step))
        assert resumed.flow.position == min(step, resumed.flow.schedule.length)
        resumed.train(range(step, STEPS)).assert_same(reference)
        assert resumed.flow.state_dict() == reference.flow.state_dict()


@pytest.mark.feature("Frameworks", "Accelerate: a flow over the prepared wrapper", answer="refused")
def test_a_flow_over_the_wrapper_is_refused_and_over_its_inner_optimizer_works():
    run = Run()
    lengths = {"dense": 0, "sparse": 1, "redense": 1}
    with pytest.raises(TypeError, match="optimizer: expected a MaskedSGD, got AcceleratedOptimizer"):
        DSD(run.optimizer, run.model, sparsity=0.5, **lengths)
    flow = DSD(run.optimizer.optimizer, run.model, sparsity=0.5, min_weights=1, **lengths)
    run.train(range(2))
    assert flow.optimizer.verify().rows[0].n_pruned == 48
