"""The networks of the tasks: small ones for one core, and in `imagenet.py` those of the papers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsd_kernels.tasks.imagenet import resnet18, resnet50, vgg16

WINDOW = 64  # characters that a text network sees at once


class ImageCNN(nn.Module):
    """A small CNN; strides in place of pooling, whose backward pass is not deterministic on a GPU.

    Args:
        size: of the square images, in pixels. Default 8.
        channels: 1 for grey, 3 for colour. Default 1.
        n_classes: Default 10.
    """

    def __init__(self, size: int = 8, channels: int = 1, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.hidden = nn.Linear(64 * (-(-size // 4)) ** 2, 64)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(64, n_classes)

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


class CharacterRNN(nn.Module):
    """As `CharacterLSTM`, with a plain recurrent layer (tanh) in place of the LSTM."""

    def __init__(self, n_characters: int, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_characters, 32)
        self.rnn = nn.RNN(32, hidden, batch_first=True)
        self.head = nn.Linear(hidden, n_characters)

    def forward(self, characters: Tensor) -> Tensor:
        states, _ = self.rnn(self.embedding(characters))
        logits: Tensor = self.head(states)
        return logits


class Block(nn.Module):
    """One layer of a Transformer: causal attention, then a feed-forward network, each normalised before and added."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.forward_norm = nn.LayerNorm(width)
        self.forward_in = nn.Linear(width, 4 * width)
        self.forward_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attention_in(self.attention_norm(x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(-2))
        fed: Tensor = self.forward_out(nn.functional.gelu(self.forward_in(self.forward_norm(x))))
        return x + fed


class CharacterTransformer(nn.Module):
    """Two layers over the characters of a window; positions are learned, in an embedding, which is never pruned."""

    def __init__(self, n_characters: int, width: int = 48, n_heads: int = 4, n_layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_characters, width)
        self.positions = nn.Embedding(WINDOW, width)
        for embedding in (self.embedding, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)  # of torch's 1, what the blocks add would hardly be seen
        self.blocks = nn.Sequential(*(Block(width, n_heads) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_characters)

    def forward(self, characters: Tensor) -> Tensor:
        positions = torch.arange(characters.shape[-1], device=characters.device)
        x = self.embedding(characters) + self.positions(positions)
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cnn": ImageCNN,
    "lstm": CharacterLSTM,
    "rnn": CharacterRNN,
    "transformer": CharacterTransformer,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16": vgg16,
}
