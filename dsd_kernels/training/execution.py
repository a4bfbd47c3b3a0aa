"""How a training runs on this machine: threads, backend, and kernels whose results repeat."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from dsd_kernels.ops.backends import use_backend
from dsd_kernels.tasks import IMAGENET_MODELS
from dsd_kernels.training.config import Config


@contextmanager
def execution(config: Config) -> Iterator[None]:
    """Run as the config says: threads, backend, and on a GPU only kernels whose results repeat.

    The backward pass of max pooling, which the papers' networks have, is not deterministic on a GPU: it only warns.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if torch.device(config.device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only with it
        torch.use_deterministic_algorithms(True, warn_only=config.model in IMAGENET_MODELS)
    torch.set_num_threads(config.threads)
    try:
        with use_backend(config.backend) if config.backend else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warned_only)
