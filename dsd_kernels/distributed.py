"""The same promises over ranks and shards."""

from dsd_kernels.ops.shard_selection import Traffic, count_traffic

__all__ = ["Traffic", "count_traffic"]
