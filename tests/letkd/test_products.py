"""Products of which each core computes its own rows are products."""

import pytest
import torch

from letkd.chunks import CHUNK_ELEMENTS, MULTIPLE, row_chunks
from letkd.products import MIN_ROWS, add_product_over_rows, multiply, multiply_add, sum_over_rows

NUM_CHANNELS, NUM_COLUMNS = 5, 7
PRECISION = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.2}


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("num_rows", [1, 6, 6 * MIN_ROWS, 6 * MIN_ROWS + 1])
def test_parts_make_the_whole(num_rows, dtype, num_threads):
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_rows, NUM_CHANNELS), (NUM_CHANNELS, NUM_COLUMNS), (num_rows, NUM_COLUMNS), (NUM_COLUMNS,))
    left, right, other, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    exact = [part.double() for part in (left, right, other, bias)]

    def agrees(found, expected):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=PRECISION[dtype] * num_rows**0.5)

    out = torch.full_like(other, torch.nan)
    assert multiply(left, right, out) is out
    agrees(out, exact[0] @ exact[1])
    agrees(multiply_add(bias, left, right, beta=0.5, alpha=2.0), 0.5 * exact[3] + 2 * exact[0] @ exact[1])
    total = torch.ones(NUM_CHANNELS, NUM_COLUMNS, dtype=torch.promote_types(dtype, torch.float32))
    add_product_over_rows(total, left, other)
    agrees(total, 1 + exact[0].T @ exact[2])
    sums = sum_over_rows(other, total.dtype)
    assert sums.dtype == total.dtype
    agrees(sums, exact[2].sum(dim=0))


@pytest.mark.parametrize(
    ("num_rows", "num_columns"), [(4096, 4096), (4096, 800), (10, 800), (1000, 2**14), (3, 2**21), (5000, 1000)]
)
def test_chunks_cover_all_rows_and_can_be_shared_out(num_rows, num_columns):
    chunks = list(row_chunks(num_rows, num_columns, torch.device("cpu")))
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
    assert chunks[-1].stop == num_rows
    lengths = [chunk.stop - chunk.start for chunk in chunks]
    assert all(length == lengths[0] for length in lengths[:-1]) and lengths[-1] <= lengths[0]
    assert lengths[0] * num_columns <= max(CHUNK_ELEMENTS["cpu"], num_columns)
    assert lengths[0] % MULTIPLE == 0 or lengths[0] in (num_rows, *range(1, MULTIPLE))
