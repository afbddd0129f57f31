"""From how many heads on a model counts as large. The one place where that size stands."""

LARGE_K = 10_000  # from so many on: training in chunks of heads, bundles with head shards instead of a file a head
SHARD_HEADS = 8192  # heads of one shard, a multiple of the 32 columns of a fused block
