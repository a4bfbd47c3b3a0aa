"""What `train` trains: two small tasks on real data that ship with libraries, so that no network is needed."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

SPLIT_SEED = 0  # the split is part of the task: it is the same for every --seed
TEST_FRACTION = 0.2
TEXT_TEST_FRACTION = 0.1
WINDOW = 64
EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Task:
    """Data, a network, and the words for what is counted.

    `loss_per_nat` converts the cross-entropy into `loss_unit`; `sha256` is that of the data, which may differ between
    versions of what ships them.
    """

    description: str
    sha256: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    build: Callable[[], nn.Module]
    item: str
    loss_unit: str
    loss_per_nat: float

    @property
    def n_test(self) -> int:
        return self.test[1].numel()

    def to(self, device: str) -> "Task":
        """The same task with its data on a device."""
        (x, y), (test_x, test_y) = self.train, self.test
        return replace(self, train=(x.to(device), y.to(device)), test=(test_x.to(device), test_y.to(device)))


class DigitsNet(nn.Module):
    """A small CNN for 8x8 images; strides in place of pooling, whose backward pass is not deterministic on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.hidden = nn.Linear(256, 64)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.norm1(self.conv1(images)).relu()
        x = self.norm2(self.conv2(x)).relu()
        x = self.conv3(x).relu().flatten(1)
        logits: Tensor = self.head(self.dropout(self.hidden(x).relu()))
        return logits


class CharacterLSTM(nn.Module):
    """Embedding, one LSTM layer, and a linear head that predicts the next character at every position."""

    def __init__(self, n_characters: int, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_characters, 32)
        self.lstm = nn.LSTM(32, hidden, batch_first=True)
        self.head = nn.Linear(hidden, n_characters)

    def forward(self, characters: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(characters))
        logits: Tensor = self.head(states)
        return logits


def load(model: str) -> Task:
    """The task of a `--model`."""
    return {"cnn": digits, "lstm": documentation}[model]()


def network_like(model: str, weights: dict[str, Tensor]) -> nn.Module:
    """The network of a `--model`, of the size that fits these weights; needs no data."""
    return DigitsNet() if model == "cnn" else CharacterLSTM(len(weights["embedding.weight"]))


def digits() -> Task:
    """scikit-learn's handwritten digits: 80 % to train and 20 % to test, each digit in its proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        data.images, data.target, test_size=TEST_FRACTION, stratify=data.target, random_state=SPLIT_SEED
    )

    def images(array: object) -> Tensor:
        return torch.tensor(array, dtype=torch.float32).unsqueeze(1) / 16

    return Task(
        description=f"8x8 images of digits (scikit-learn): {len(train_y):,} to train, {len(test_y)} to test",
        sha256=hashlib.sha256(data.images.tobytes() + data.target.tobytes()).hexdigest(),
        train=(images(train_x), torch.tensor(train_y)),
        test=(images(test_x), torch.tensor(test_y)),
        build=DigitsNet,
        item="image",
        loss_unit="nats",
        loss_per_nat=1.0,
    )


def documentation() -> Task:
    """Python's own documentation text, character by character: the first 90 % to train, the rest to test."""
    from pydoc_data.topics import topics

    text = "\n\n".join(f"{name}\n\n{topics[name]}" for name in sorted(topics))
    alphabet = sorted(set(text))
    index = {character: i for i, character in enumerate(alphabet)}
    codes = torch.tensor([index[character] for character in text])
    cut = len(codes) - int(len(codes) * TEXT_TEST_FRACTION)
    return Task(
        description=f"Python's documentation (pydoc_data.topics): {len(text):,} characters, the last 10 % to test",
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        train=_windows(codes[:cut]),
        test=_windows(codes[cut:]),
        build=lambda: CharacterLSTM(len(alphabet)),
        item="character",
        loss_unit="bits/char",
        loss_per_nat=1 / math.log(2),
    )


def _windows(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and next characters, in windows that follow one another; what does not fill a window is left out."""
    n = (len(codes) - 1) // WINDOW * WINDOW
    return codes[:n].view(-1, WINDOW), codes[1 : n + 1].view(-1, WINDOW)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, and how many predictions are right; one expression for images and for characters."""
    logits = model(inputs).flatten(0, -2)
    targets = targets.flatten()
    return nn.functional.cross_entropy(logits, targets, reduction=reduction), (logits.argmax(-1) == targets).sum()


@torch.no_grad()
def evaluate(model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[float, int]:
    """Mean loss in nats and the number of right predictions."""
    model.eval()
    loss_sum, n_right = 0.0, 0
    for inputs, targets in zip(*(torch.split(tensor, EVALUATION_BATCH) for tensor in data), strict=True):
        loss, right = loss_of(model, inputs, targets, reduction="sum")
        loss_sum += loss.item()
        n_right += int(right.item())
    return loss_sum / data[1].numel(), n_right
