"""MaskedSGD and flows as Lightning's Trainer uses them; stop and resume is bitwise the run that never stopped."""

import pytest
import torch
from cases import bits_equal, generator, normal

from dsd_kernels import MaskedSGD
from dsd_kernels.flows import DSD

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import ModelCheckpoint

from dsd_kernels.integrations.lightning import FlowCallback

pytestmark = [
    # about PyTorch, about the machine, and about the callback that wrote the checkpoints, which here is not resumed
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`.*ModelCheckpoint:UserWarning"),
]
N_BATCHES = 3
EPOCHS = 4


class Classifier(lightning.LightningModule):
    def __init__(self, make_optimizer, seed=0):
        super().__init__()
        self.make_optimizer = make_optimizer
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator(seed)))

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


class ValidatedClassifier(Classifier):
    def validation_step(self, batch, _):
        self.log("loss", self.training_step(batch, _))


def masked_sgd(params):
    return MaskedSGD(params, lr=0.1, momentum=0.9, weight_decay=0.01)


def torch_sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)


def with_scheduler(make_optimizer):
    def make(params):
        optimizer = make_optimizer(params)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]

    return make


def pruned(params):
    optimizer = masked_sgd(params)
    optimizer.prune(0.5)
    return optimizer


class ResumableLoader(torch.utils.data.DataLoader):
    """Takes up an epoch where a checkpoint left it, as Lightning asks of a loader."""

    done = 0

    def __iter__(self):
        start = self.done % len(self)
        for i, batch in enumerate(super().__iter__()):
            if i >= start:
                self.done = i + 1
                yield batch

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state_dict):
        self.done = state_dict["done"]


def loader():
    labels = torch.arange(8 * N_BATCHES) % 3
    data = torch.utils.data.TensorDataset(normal(64 * N_BATCHES, torch.float32, seed=5).view(-1, 8), labels)
    return ResumableLoader(data, batch_size=8)


def trainer_with(folder, *callbacks, **options):
    return lightning.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        num_sanity_val_steps=0,
        **{"max_epochs": EPOCHS, **options},
    )


def fit(folder, module, *callbacks, ckpt_path=None, **options):
    trainer = trainer_with(folder, *callbacks, **options)
    validation = loader() if isinstance(module, ValidatedClassifier) else None
    trainer.fit(module, loader(), validation, ckpt_path=ckpt_path, weights_only=True)
    return trainer.optimizers[0]


def assert_same(ours, theirs):
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        assert bits_equal(p.detach(), q.detach())
        assert bits_equal(ours.state[p]["momentum_buffer"], theirs.state[q]["momentum_buffer"])


def assert_same_masks(ours, theirs):
    masks, others = list(ours.masks.values()), list(theirs.masks.values())
    assert len(masks) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))


@pytest.mark.feature("Frameworks", "Lightning Trainer, alone and with a scheduler")
@pytest.mark.feature("Frameworks", "Lightning gradient clipping and accumulation")
@pytest.mark.feature("Frameworks", "Lightning precision bf16-mixed")
@pytest.mark.parametrize("wrap", [lambda make: make, with_scheduler], ids=["alone", "with scheduler"])
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}],
    ids=["plain", "clipping", "accumulation", "bf16-mixed"],
)
def test_a_trainer_with_masked_sgd_is_bitwise_the_one_with_torch_sgd(tmp_path, wrap, options):
    ours = fit(tmp_path, Classifier(wrap(masked_sgd)), **options)
    theirs = fit(tmp_path, Classifier(wrap(torch_sgd)), **options)
    assert isinstance(ours, MaskedSGD)
    assert_same(ours, theirs)


@pytest.mark.feature("Frameworks", "Lightning checkpoint and resume, masks included")
def test_resuming_from_a_checkpoint_is_bitwise_the_run_that_never_stopped(tmp_path):
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    reference = fit(tmp_path, Classifier(with_scheduler(pruned)), save)
    reference.verify()
    for step in (1, N_BATCHES, N_BATCHES + 1):
        module = Classifier(with_scheduler(masked_sgd), seed=step)
        resumed = fit(tmp_path, module, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert_same(resumed, reference)
        assert_same_masks(resumed, reference)
        assert len(resumed.masks) == 2


FLOWS = {
    "by epoch": {"dense": 1, "sparse": 1, "redense": 2},
    "by epoch, sparse from the start": {"dense": 0, "sparse": 2, "redense": 1},
    "by step": {"dense": 2, "sparse": 5, "redense": 4, "unit": "step"},
}
CHECKPOINTS = {
    "after steps": {"every_n_train_steps": 1},
    "after epochs": {"every_n_epochs": 1},
    "after validation": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
}


def flow_callback(lengths):
    def make_flow(optimizer, module):
        return DSD(optimizer, module, sparsity=0.5, min_weights=1, momentum="zero_regrown", **lengths)

    return FlowCallback(make_flow)


class Phases(lightning.Callback):
    """The phase in which each batch is trained, and the masks' sparsity there."""

    def __init__(self, flow_callback):
        self.flow_callback = flow_callback
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        sparsity = trainer.optimizers[0].sparsity().masked
        self.seen.append((trainer.global_step, self.flow_callback.flow.phase.name, sparsity > 0))


@pytest.mark.feature("Frameworks", "Lightning callback that drives a flow")
@pytest.mark.parametrize("lengths", FLOWS.values(), ids=FLOWS)
def test_the_callback_steps_the_flow_by_its_unit(tmp_path, lengths):
    callback = flow_callback(lengths)
    phases = Phases(callback)
    fit(tmp_path, Classifier(masked_sgd), callback, phases)
    per_unit = 1 if "unit" in lengths else N_BATCHES
    names = [name for name in ("dense", "sparse", "redense") for _ in range(lengths[name] * per_unit)]
    names += ["redense"] * (EPOCHS * N_BATCHES - len(names))
    assert phases.seen == [(step, name, name == "sparse") for step, name in enumerate(names)]
    assert callback.flow.finished


def test_steps_are_optimizer_steps_where_gradients_accumulate(tmp_path):
    callback = flow_callback({"dense": 2, "sparse": 20, "redense": 1, "unit": "step"})
    fit(tmp_path, Classifier(masked_sgd), callback, accumulate_grad_batches=2)
    assert callback.flow.position == EPOCHS * 2  # 3 batches an epoch are two steps


@pytest.mark.feature("Frameworks", "Lightning callback that drives a flow, resumed in any phase")
@pytest.mark.parametrize("when", CHECKPOINTS.values(), ids=CHECKPOINTS)
@pytest.mark.parametrize("lengths", FLOWS.values(), ids=FLOWS)
def test_a_flow_resumes_bitwise_from_every_checkpoint(tmp_path, lengths, when):
    cls = ValidatedClassifier if "save_on_train_epoch_end" in when else Classifier
    save = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **when)
    callback = flow_callback(lengths)
    reference = fit(tmp_path, cls(masked_sgd), callback, save)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == EPOCHS * (N_BATCHES if "every_n_train_steps" in when else 1)
    for path in checkpoints:
        again = flow_callback(lengths)
        resumed = fit(tmp_path, cls(masked_sgd, seed=9), again, ckpt_path=path)
        if "step=12" not in path.name:  # nothing is left to do there, so the end of the epoch is not reached
            assert again.flow.state_dict() == callback.flow.state_dict()
        assert_same(resumed, reference)
        assert_same_masks(resumed, reference)


def test_another_fit_makes_another_flow_and_starts_anew_after_a_resumed_one(tmp_path):
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_epochs=1, save_top_k=-1)
    callback = flow_callback(FLOWS["by epoch"])
    reference = fit(tmp_path, Classifier(masked_sgd), callback, save)
    first = callback.flow
    fit(tmp_path, Classifier(masked_sgd), callback, ckpt_path=tmp_path / f"step={2 * N_BATCHES}.ckpt")
    assert callback.flow is not first
    assert_same(fit(tmp_path, Classifier(masked_sgd), callback), reference)


def test_fitting_on_starts_the_flow_where_the_trainer_stands(tmp_path):
    callback = flow_callback({"dense": 1, "sparse": 2, "redense": 1})
    trainer = trainer_with(tmp_path, callback, max_epochs=2)
    module = Classifier(masked_sgd)
    trainer.fit(module, loader())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader())
    assert (trainer.current_epoch, callback.flow.position, callback.flow.phase.name) == (4, 2, "sparse")


def test_a_checkpoint_without_a_flow_may_be_validated(tmp_path):
    fit(tmp_path, ValidatedClassifier(masked_sgd), ModelCheckpoint(tmp_path, filename="last"))
    trainer = trainer_with(tmp_path, flow_callback(FLOWS["by epoch"]))
    path = tmp_path / "last.ckpt"
    results = trainer.validate(
        ValidatedClassifier(masked_sgd), loader(), ckpt_path=path, verbose=False, weights_only=True
    )
    assert results[0].keys() == {"loss"}


def test_what_the_callback_cannot_drive_is_refused(tmp_path):
    with pytest.raises(TypeError, match="make_flow: expected a function of optimizer and module, got 3"):
        FlowCallback(3)
    with pytest.raises(ValueError, match="configure_optimizers: expected exactly one MaskedSGD, got SGD"):
        fit(tmp_path, Classifier(torch_sgd), flow_callback(FLOWS["by epoch"]))
    with pytest.raises(TypeError, match=r"flow: expected a dsd_kernels.flows.Flow, got NoneType"):
        fit(tmp_path, Classifier(masked_sgd), FlowCallback(lambda optimizer, module: None))


def test_a_checkpoint_without_a_flow_is_refused(tmp_path):
    fit(tmp_path, Classifier(masked_sgd), ModelCheckpoint(tmp_path, filename="last"))
    with pytest.raises(ValueError, match="checkpoint: expected the state of FlowCallback, but it was written without"):
        fit(tmp_path, Classifier(masked_sgd), flow_callback(FLOWS["by epoch"]), ckpt_path=tmp_path / "last.ckpt")
