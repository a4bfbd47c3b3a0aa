"""Numbers that JSON has."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """NaN and Inf, which a run that diverged has and JSON has not, as null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
