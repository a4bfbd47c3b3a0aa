"""The examples of docs/integrations.md run, and an adapter imports its library only when it is imported itself."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import normal

import dsd_kernels

ROOT = Path(dsd_kernels.__file__).parent.parent
SECTIONS = re.findall(r"^## (.*?)$.*?```python\n(.*?)```", (ROOT / "docs/integrations.md").read_text(), re.M | re.S)
NEEDS = {
    "Lightning": ("lightning.pytorch",),
    "Hugging Face Trainer": ("transformers", "accelerate"),
    "Accelerate": ("accelerate",),
    "Masks in safetensors files": ("safetensors",),
}
ADAPTERS = {  # adapter -> what it imports, what the error says to install
    "lightning": ("lightning.pytorch", "needs Lightning: pip install lightning"),
    "transformers": ("transformers", "needs Transformers: pip install transformers accelerate"),
    "safetensors": ("safetensors", "needs safetensors: pip install safetensors"),
}
IMPORTED = """
import sys, dsd_kernels.integrations
print({"lightning", "transformers", "accelerate", "safetensors", "torch.distributed.optim"} & sys.modules.keys())
"""


def network():
    return torch.nn.Sequential(torch.nn.Linear(8, 160), torch.nn.ReLU(), torch.nn.Linear(160, 3))


class WithLoss(torch.nn.Module):
    """What the Hugging Face Trainer calls a model."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels):
        return {"loss": torch.nn.functional.cross_entropy(self.net(x), labels)}


def lightning_module():
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return dsd_kernels.MaskedSGD(self.parameters(), lr=0.1, momentum=0.9)

    return Module()


def names(section):
    """What an example takes as given."""
    data = [(x, i % 3) for i, x in enumerate(normal(64 * 8, torch.float32).view(-1, 8))]
    given = {"model": network(), "loader": torch.utils.data.DataLoader(data, 8)}
    if section == "Lightning":
        silent = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        given |= {"module": lightning_module(), "quiet": {"accelerator": "cpu", **silent}}
    elif section == "Hugging Face Trainer":
        arguments = {"report_to": [], "disable_tqdm": True, "use_cpu": True}
        dataset = [{"x": x, "labels": y} for x, y in data]
        given |= {"model": WithLoss(), "dataset": dataset, "arguments": arguments}
    elif section == "Accelerate":
        given |= {"place": {"cpu": True}, "loss_function": torch.nn.functional.cross_entropy}
    return given


def test_every_section_has_an_example():
    assert len(SECTIONS) == 6
    assert NEEDS.keys() <= dict(SECTIONS).keys()


@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning")  # Lightning's
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")  # Lightning's
@pytest.mark.parametrize(("section", "example"), SECTIONS, ids=[section for section, _ in SECTIONS])
def test_the_example_runs(section, example, tmp_path, monkeypatch):
    for library in NEEDS.get(section, ()):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    given = names(section)
    if section == "ZeroRedundancyOptimizer":
        torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        exec(example, given)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_importing_the_package_imports_no_other_library():
    command = [sys.executable, "-c", IMPORTED]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_missing_library_is_named_with_the_command_that_installs_it(adapter, monkeypatch):
    library, text = ADAPTERS[adapter]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"dsd_kernels.integrations.{adapter}", raising=False)
    with pytest.raises(ImportError, match=f"dsd_kernels.integrations.{adapter} {text}"):
        importlib.import_module(f"dsd_kernels.integrations.{adapter}")
