import json

import pytest

from ccafl_jax.scoring.cross_domain import cross_domain
from ccafl_jax.scoring.evaluate import evaluate
from tests.scoring.made import market


def result(train, test, mean_ap, rank1=None):
    found = {"trained_on": train, "dataset": test, "mAP": mean_ap}
    return found if rank1 is None else found | {"rank1": rank1}


def test_a_matrix_of_results_and_files(tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps(result("market1501", "msmt17", 0.25, 0.5)))
    found = cross_domain(
        [
            result("market1501", "market1501", 0.8765, 0.95),
            path,
            result("msmt17", "msmt17", 0.6, 0.8),
            result("dukemtmcreid", "msmt17", 0.2),
        ]
    )
    assert found.as_dict() == {
        "trained_on": ["market1501", "msmt17", "dukemtmcreid"],
        "tested_on": ["market1501", "msmt17"],
        "mAP": [[0.8765, 0.25], [None, 0.6], [None, 0.2]],
        "rank1": [[0.95, 0.5], [None, 0.8], [None, None]],
    }
    assert found.table().splitlines() == [
        "mAP / rank1, per cent",
        "train \\ test   market1501       msmt17",
        "market1501    87.6 / 95.0  25.0 / 50.0",
        "msmt17              - / -  60.0 / 80.0",
        "dukemtmcreid        - / -     20.0 / -",
    ]


def test_figures_can_be_chosen():
    results = [result("a", "a", 0.5, 0.75)]
    assert cross_domain(results, figures=("rank1",)).figures == {"rank1": [[0.75]]}


def test_figures_of_evaluations():
    sets = [market(dataset=name, meta={"trained_on": "x"}) for name in ("market1501", "personx")]
    found = cross_domain([evaluate(one).figures for one in sets])
    assert found.trained_on == ("x",) and found.tested_on == ("market1501", "personx")
    assert found.figures["mAP"][0][0] == found.figures["mAP"][0][1]


def test_a_mean_over_trainings_is_filed_under_all_of_them():
    results = [result(["a", "b"], "c", 0.5), result("a", "c", 0.25)]
    found = cross_domain(results, figures=("mAP",))
    assert found.trained_on == ("a + b", "a") and found.figures == {"mAP": [[0.5], [0.25]]}


def test_bad_results(tmp_path):
    good = result("a", "b", 0.5)
    with pytest.raises(ValueError, match="there is no result to compare"):
        cross_domain([])
    with pytest.raises(ValueError, match="name one or more figures"):
        cross_domain([good], figures=())
    with pytest.raises(ValueError, match="result 2 is the second one trained on a, tested on b"):
        cross_domain([good, good])
    with pytest.raises(ValueError, match="result 1 does not say what it was trained on"):
        cross_domain([{"dataset": "b", "mAP": 0.5}])
    with pytest.raises(ValueError, match="result 1 does not say what it was tested on"):
        cross_domain([{"trained_on": "b", "mAP": 0.5}])
    with pytest.raises(ValueError, match="result 1 holds none of rank5"):
        cross_domain([good], figures=("rank5",))
    with pytest.raises(FileNotFoundError, match=r"no file .*x.json with results"):
        cross_domain([tmp_path / "x.json"])
    path = tmp_path / "y.json"
    for text in ("[1]", "{", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"y.json is no JSON file of figures"):
            cross_domain([path])
