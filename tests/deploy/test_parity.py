import numpy as np
import pytest

from ccafl_jax.deploy.parity import check_parity, smallest_cosine, tell_apart


def test_cosine_by_hand():
    reference = np.array([[1, 0], [3, 4], [0, 2]], np.float32)
    found = np.array([[2, 0], [4, 3], [0, 2]], np.float32)
    cosine, image = smallest_cosine(reference, found)
    assert cosine == pytest.approx(24 / 25) and image == 1


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 0.99999), ("bfloat16", 0.999)])
def test_thresholds(dtype, limit):
    def pair(cosine):
        return np.array([[1.0, 0.0]]), np.array([[cosine, np.sqrt(1 - cosine**2)]])

    above = limit + (1 - limit) / 10
    assert check_parity("x", *pair(above), dtype=dtype) == pytest.approx(above)
    with pytest.raises(ValueError, match=rf"cosine 0\.9\d+ on image 0 is below {limit}") as error:
        check_parity("x", *pair(limit - (1 - limit) / 10), dtype=dtype)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf])
def test_features_that_are_no_directions_fail(value):
    found = np.array([[1.0, 0.0], [value, value]])
    with pytest.raises(ValueError, match="on image 1 is below"):
        check_parity("x", np.eye(2), found, dtype="float32")


def test_other_shapes_fail():
    with pytest.raises(ValueError, match=r"\[2, 3\], those of the model \[2, 2\]"):
        smallest_cosine(np.eye(2), np.ones((2, 3)))
    with pytest.raises(ValueError, match="nothing can be compared"):
        smallest_cosine(np.ones((0, 2)), np.ones((0, 2)))


def test_how_far_images_are_told_apart():
    features = np.array([[1, 0], [3, 4], [2, 0], [0, 5]], np.float32)
    assert tell_apart(features[:3]) == pytest.approx(3 / 5)
    assert tell_apart(features) == 0
    assert tell_apart(features[[0, 2]]) == 1
    assert tell_apart(features[:1]) == tell_apart(features[:0]) == 1
