"""Names of labellers, and what their options may be."""

import numpy as np
import pytest

from ccafl_jax.pseudo_labels.labels import (
    CLUSTERINGS,
    Labels,
    in_order_of_members,
    labeller,
    options_taken,
)


def halves(features, *, share=0.5, other=1):
    labels = (np.arange(len(features)) >= share * len(features)).astype(np.int32)
    return Labels(labels, 2)


@pytest.mark.parametrize("name", sorted(CLUSTERINGS))
def test_every_short_name_is_a_function_that_labels(name):
    if name == "knn_infomap":
        pytest.importorskip("infomap", reason="the package infomap is an extra")
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((5, 16))
    features = (np.repeat(centre, 8, axis=0) + 0.1 * rng.standard_normal((40, 16))).astype("f")
    found = labeller(name)(features)
    assert isinstance(found, Labels) and found.labels.dtype == np.int32
    assert found.labels.shape == (40,) and found.num_clusters == found.labels.max() + 1
    assert set(found.labels) - {-1} == set(range(found.num_clusters))


def test_an_import_path_names_a_function_of_ones_own():
    function = labeller("tests.pseudo_labels.test_labellers:halves")
    assert function is not None and function(np.zeros(4)).labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jacard_dbscan", "unknown method 'jacard_dbscan': did you mean jaccard_dbscan"),
        ("zzz", "unknown method 'zzz': known are jaccard_dbscan, jaccard_linkage, knn_infomap"),
        ("no.such.module:f", "no.such.module:f cannot be imported: No module named"),
        ("numpy:no_such_function", "module numpy has no function 'no_such_function'"),
        ("numpy:newaxis", "module numpy has no function 'newaxis'"),
    ],
)
def test_unknown_names_say_what_is_known(name, message):
    with pytest.raises(ValueError, match=message):
        labeller(name)


def test_options_go_where_they_are_taken():
    defaults = {"share": 0.5, "other": 1, "third": 0}
    taken = options_taken(halves, defaults | {"share": 0.25}, defaults)
    assert taken == {"share": 0.25, "other": 1}
    with pytest.raises(ValueError, match="halves takes no option third; it takes other, share"):
        options_taken(halves, defaults | {"third": 2}, defaults)


def test_clusters_are_numbered_by_their_first_member():
    groups = np.array([7, 3, 7, 9, 3])
    assert in_order_of_members(groups).tolist() == [0, 1, 0, 2, 1]
    keep = np.array([False, True, True, False, True])
    assert in_order_of_members(groups, keep).tolist() == [-1, 0, 1, -1, 0]
    assert in_order_of_members(np.zeros(0, int)).tolist() == []
    assert in_order_of_members(groups, np.zeros(5, bool)).tolist() == [-1] * 5
