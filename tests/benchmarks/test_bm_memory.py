from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import bm_memory


def test_the_slope_of_a_line_is_found_and_its_first_fifth_left_out():
    done = list(range(10, 2010, 10))
    used = [1000 * n if n < 400 else 400_000 + 7 * n for n in done]
    fit = bm_memory.fit_slope(done, used)
    assert fit["bytes_each"] == pytest.approx(7)
    assert fit["plus_minus"] == pytest.approx(0, abs=0.01)


def test_the_heap_that_is_in_use_is_counted():
    before = bm_memory.count_heap()
    if not before:
        pytest.skip("no mallinfo2: a C library other than glibc 2.33 or later")
    block = np.ones(2**22, dtype=np.uint8)
    assert bm_memory.count_heap() - before >= block.nbytes
    del block
    assert bm_memory.count_heap() - before < 2**22


def test_readings_are_written_as_they_are_taken(tmp_path):
    readings = bm_memory.Readings(tmp_path / "readings.csv")
    readings.take(3)
    readings.close()
    done, used, heap = map(int, (tmp_path / "readings.csv").read_text().split(","))
    assert (done, used, heap) == (3, readings.used[0], readings.heap[0])
    assert used > 2**20
