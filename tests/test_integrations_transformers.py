"""MaskedSGD and flows as the Hugging Face Trainer uses them; stop and resume is bitwise the run that never stopped."""

import pytest
import torch
from cases import bits_equal, generator, normal

from dsd_kernels import MaskedSGD
from dsd_kernels.flows import DSD

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # the Trainer needs it
from dsd_kernels.integrations.transformers import FlowCallback

STEPS_PER_EPOCH = 3
EPOCHS = 4


class Classifier(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator(seed)))

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Run:
    """A model, an optimizer, a scheduler and perhaps a flow, and the Trainer that gets them."""

    def __init__(self, folder, cls=MaskedSGD, seed=0, lengths=None, sparsity=0.0, **arguments):
        self.model = Classifier(seed)
        self.optimizer = cls(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, gamma=0.9)
        if sparsity:
            self.optimizer.prune(sparsity)
        self.flow, callbacks = None, []
        if lengths:
            options = {"sparsity": 0.5, "min_weights": 1, "momentum": "zero_regrown"}
            self.flow = DSD(self.optimizer, self.model, **options, **lengths)
            callbacks = [FlowCallback(self.flow)]
        data = normal(8 * 8 * STEPS_PER_EPOCH, torch.float32, seed=5).view(-1, 8)
        self.trainer = transformers.Trainer(
            self.model,
            transformers.TrainingArguments(
                str(folder),
                disable_tqdm=True,
                logging_strategy="no",
                num_train_epochs=EPOCHS,
                per_device_train_batch_size=8,
                report_to=[],
                use_cpu=True,
                **{"save_strategy": "no", **arguments},
            ),
            train_dataset=[{"x": x, "labels": i % 3} for i, x in enumerate(data)],
            optimizers=(self.optimizer, scheduler),
            callbacks=callbacks,
        )

    def train(self, resume_from=None):
        self.trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
        return self

    def assert_same(self, other):
        for p, q in zip(self.model.parameters(), other.model.parameters(), strict=True):
            assert bits_equal(p.detach(), q.detach())
            assert bits_equal(self.optimizer.state[p]["momentum_buffer"], other.optimizer.state[q]["momentum_buffer"])

    def assert_same_masks(self, other):
        masks, others = list(self.optimizer.masks.values()), list(other.optimizer.masks.values())
        assert len(masks) == len(others)
        assert all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))


def checkpoints(folder):
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))


@pytest.mark.feature("Frameworks", "Hugging Face Trainer, with a scheduler")
@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulation"])
def test_a_trainer_with_masked_sgd_is_bitwise_the_one_with_torch_sgd(tmp_path, arguments):
    ours = Run(tmp_path, **arguments).train()
    theirs = Run(tmp_path, torch.optim.SGD, **arguments).train()
    ours.assert_same(theirs)


@pytest.mark.feature("Frameworks", "Hugging Face Trainer: save and resume, masks included")
def test_resuming_from_a_checkpoint_is_bitwise_the_run_that_never_stopped(tmp_path):
    reference = Run(tmp_path, sparsity=0.5, save_strategy="steps", save_steps=1).train()
    reference.optimizer.verify()
    for path in checkpoints(tmp_path)[: STEPS_PER_EPOCH + 1]:
        resumed = Run(tmp_path / "resumed", seed=9).train(path)
        resumed.assert_same(reference)
        resumed.assert_same_masks(reference)
        assert len(resumed.optimizer.masks) == 2


FLOWS = {
    "by epoch": {"dense": 1, "sparse": 1, "redense": 2},
    "by epoch, sparse from the start": {"dense": 0, "sparse": 2, "redense": 1},
    "by step": {"dense": 2, "sparse": 5, "redense": 4, "unit": "step"},
}


class Phases(transformers.TrainerCallback):
    """The phase in which each step is done, and whether it keeps masks."""

    def __init__(self, run):
        self.run = run
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen.append((state.global_step, self.run.flow.phase.name, len(self.run.optimizer.masks) > 0))


@pytest.mark.feature("Frameworks", "Hugging Face Trainer: callback that drives a flow")
@pytest.mark.parametrize("lengths", FLOWS.values(), ids=FLOWS)
def test_the_callback_steps_the_flow_by_its_unit(tmp_path, lengths):
    run = Run(tmp_path, lengths=lengths)
    phases = Phases(run)
    run.trainer.add_callback(phases)
    run.train()
    per_unit = 1 if "unit" in lengths else STEPS_PER_EPOCH
    names = [name for name in ("dense", "sparse", "redense") for _ in range(lengths[name] * per_unit)]
    names += ["redense"] * (EPOCHS * STEPS_PER_EPOCH - len(names))
    assert phases.seen == [(step, name, name == "sparse") for step, name in enumerate(names)]
    assert run.flow.finished


@pytest.mark.feature("Frameworks", "Hugging Face Trainer: a flow resumed in any phase")
@pytest.mark.parametrize("save", ["steps", "epoch"])
@pytest.mark.parametrize("lengths", FLOWS.values(), ids=FLOWS)
def test_a_flow_resumes_bitwise_from_every_checkpoint(tmp_path, lengths, save):
    reference = Run(tmp_path, lengths=lengths, save_strategy=save, save_steps=1).train()
    paths = checkpoints(tmp_path)
    assert len(paths) == EPOCHS * (STEPS_PER_EPOCH if save == "steps" else 1)
    for path in paths:
        resumed = Run(tmp_path / "resumed", seed=9, lengths=lengths, restore_callback_states_from_checkpoint=True)
        resumed.train(path)
        assert resumed.flow.state_dict() == reference.flow.state_dict()
        resumed.assert_same(reference)
        resumed.assert_same_masks(reference)


def test_training_on_goes_on_with_the_flow_and_resumes_there(tmp_path):
    lengths = {"dense": EPOCHS, "sparse": EPOCHS, "redense": 0}
    run = Run(tmp_path, lengths=lengths, save_strategy="epoch")
    assert run.train().flow.phase.name == "sparse"
    assert run.train().flow.finished
    resumed = Run(tmp_path / "resumed", lengths=lengths).train(checkpoints(tmp_path)[1])
    assert resumed.flow.state_dict() == run.flow.state_dict()
    resumed.assert_same(run)


def test_a_checkpoint_without_a_flow_is_refused(tmp_path):
    Run(tmp_path, save_strategy="epoch").train()
    with pytest.raises(ValueError, match=r"checkpoint: expected the state of a FlowCallback \('dsd_kernels.flow'\)"):
        Run(tmp_path, lengths=FLOWS["by epoch"]).train(checkpoints(tmp_path)[0])


def test_a_flow_with_tensors_in_its_state_is_refused():
    model = torch.nn.Linear(16, 16)
    optimizer = MaskedSGD(model.parameters(), lr=0.1)
    flow = DSD(optimizer, model, dense=1, sparse=1, redense=1, sparsity=0.5, regrown="restore")
    with pytest.raises(ValueError, match=r"flow: expected one whose state is plain numbers, .* got DSD\(epoch 0 of 3"):
        FlowCallback(flow)


def test_what_is_no_flow_is_refused():
    with pytest.raises(TypeError, match=r"flow: expected a dsd_kernels.flows.Flow, got str"):
        FlowCallback("dsd")
