import threading
import time

import numpy as np
import pytest

from ccafl_jax.data.parallel import IMAGES_PER_TASK, in_order


def test_results_come_in_order_from_several_threads():
    names = set()

    def work(rows):
        names.add(threading.current_thread().name)
        time.sleep(0.01 if rows[0] % 3 else 0)
        return rows.sum()

    count = 20 * IMAGES_PER_TASK + 5
    found = list(in_order(work, count, workers=4))
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), np.arange(count))
    assert all(total == rows.sum() for rows, total in found) and len(names) > 1


def test_the_first_error_by_row_is_raised_and_the_rest_is_not_begun():
    seen = []

    def work(rows):
        seen.append(rows[0])
        if rows[0] == 2 * IMAGES_PER_TASK:
            time.sleep(0.1)  # the later one fails earlier
        if rows[0] >= 2 * IMAGES_PER_TASK:
            raise ValueError(f"row {rows[0]}")

    with pytest.raises(ValueError, match=f"row {2 * IMAGES_PER_TASK}$"):
        list(in_order(work, 1000 * IMAGES_PER_TASK, workers=3))
    assert len(seen) < 50


def test_nothing_to_do():
    assert list(in_order(len, 0)) == []
