"""Seeds out of one seed: a stream of randomness for each purpose, with nothing to save between them."""

import hashlib
from numbers import Integral


def derived_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A seed of 63 bits for one purpose at one time: no two of them, of this or another seed, share a stream."""
    digest = hashlib.sha256(f"{seed} {purpose} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_seed(name: str, value: object) -> None:
    """Raise unless the value is an integer."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
