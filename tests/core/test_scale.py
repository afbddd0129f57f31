import pytest

from ovr.core import scale


@pytest.mark.parametrize(("num_rows", "num_heads"), [(0, 3), (1, 1), (7, 40), (512, 1_000_000), (1 << 23, 2)])
def test_blocks_cover_every_column_once_within_the_bound(num_rows, num_heads):
    blocks = list(scale.column_blocks(num_rows, num_heads))
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == num_heads
    assert all(block.stop - block.start == 1 or (block.stop - block.start) * num_rows <= scale.BLOCK_VALUES for block in blocks)
