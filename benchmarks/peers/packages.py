"""Other packages that mask weights on this device, where they are installed: the extra `bench`."""

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torchao",)


def versions() -> dict[str, str]:
    """Those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def magnitude_sparsifier(sparsity: float) -> Any:
    """torchao's sparsifier, in blocks of one weight.

    Raises:
        NotImplementedError: torchao is not installed.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns of its own GPU libraries
    try:
        from torchao.prototype.sparsity import WeightNormSparsifier
    except ImportError as error:
        raise NotImplementedError("torchao is not installed: pip install 'dsd-kernels[bench]'") from error
    finally:
        logging.disable(previous)
    return WeightNormSparsifier(sparsity_level=sparsity, sparse_block_shape=(1, 1))
