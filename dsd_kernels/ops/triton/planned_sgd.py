"""No plan of addresses is kept here: the tables of `tables.py` are, by what they hold."""

from dsd_kernels.ops.reference import planned_sgd_

__all__ = ["planned_sgd_"]
