"""From how many heads on a model counts as large. The one place where such sizes stand."""

from collections.abc import Iterator

LARGE_K = 10_000  # from so many on: training in chunks of heads, bundles with head shards instead of a file a head
SHARD_HEADS = 8192  # heads of one shard at most, a multiple of the 32 columns of a fused block
SHARD_BYTES = 1 << 28  # their weights at most: a shard is in memory several times over while it is written, and one file holds 2 GB
BLOCK_VALUES = 1 << 22  # rows times heads worked on at a time: 32 MiB in float64, and some ten such arrays


def column_blocks(num_rows: int, num_heads: int) -> Iterator[slice]:
    """Yield slices of at least one column, in order, such that rows times columns stays within `BLOCK_VALUES`."""
    step = max(1, BLOCK_VALUES // max(1, num_rows))
    for start in range(0, num_heads, step):
        yield slice(start, min(start + step, num_heads))
