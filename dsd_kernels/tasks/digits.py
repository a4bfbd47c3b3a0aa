"""scikit-learn's handwritten digits, which need no network."""

import hashlib

import torch
from torch import Tensor

from dsd_kernels.tasks.networks import ImageCNN
from dsd_kernels.tasks.task import SPLIT_SEED, TEST_FRACTION, Task, TensorExamples


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
        train=TensorExamples(images(train_x), torch.tensor(train_y)),
        test=TensorExamples(images(test_x), torch.tensor(test_y)),
        build=ImageCNN,
        dimensions={},
        item="image",
        metric="accuracy",
        loss_unit="nats",
        loss_per_nat=1.0,
    )
