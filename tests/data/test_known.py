import dataclasses

from ccafl_jax.data.known import PUBLISHED, Totals, count_collection, counts_table, differences
from ccafl_jax.data.layouts import LAYOUTS
from ccafl_jax.data.records import RawPart, collect


def collection(name="market1501"):
    return collect(
        name,
        "somewhere",
        {
            "train": RawPart(list("abcdef"), [1, 1, 2, 2, 2, -2], [4, 4, 4, 9, 9, 9]),
            "gallery": RawPart(list("ghi"), [-1, 0, 5], [9, -1, 4]),
            "film": RawPart(
                list("jkl"), [7, 7, 7], [4, 4, 4], tracklet=[0, 0, 1], modality=[0, 0, 1]
            ),
        },
    )


def test_counts():
    counts = count_collection(collection())
    assert counts["train"] == Totals(6, 2, 2, 3, None, 0, None, (3, 3))
    assert counts["gallery"] == Totals(3, 2, 2, 1, None, 1, None, (1, 1))
    assert counts["film"] == Totals(3, 1, 1, 1, 2, 0, 1, (3, 0))


def test_differences_name_part_found_and_published(monkeypatch):
    counts = count_collection(collection())
    assert differences("no published table", counts) == ()
    monkeypatch.setitem(
        PUBLISHED,
        "market1501",
        {
            "train": Totals(images=6, ids=3, per_camera=(4, 2)),
            "film": Totals(tracklets=2000),
            "query": Totals(images=1),
        },
    )
    assert differences("market1501", counts) == (
        "train: 2 ids, published 3",
        "train: 3 3 images per camera, published 4 2",
        "film: 2 tracklets, published 2,000",
        "query is missing",
    )
    monkeypatch.setitem(PUBLISHED, "market1501", {"train": counts["train"]})
    assert differences("market1501", counts) == ()


def test_the_table_shows_counts_beside_the_published_ones():
    data = collection()
    lines = counts_table(data, count_collection(data)).splitlines()
    assert lines[0] == "market1501: somewhere"
    cells = {line.split()[0]: line.split()[1:] for line in lines[2:5]}
    assert cells["train"][:4] == ["6", "(12,936)", "2", "(751)"]
    assert cells["film"][-3:] == ["2", "0", "1"]
    assert lines[6].split() == ["part", "c4", "c9"]


def test_published_tables_are_consistent():
    assert set(PUBLISHED) <= set(LAYOUTS)
    for parts in PUBLISHED.values():
        for totals in parts.values():
            values = dataclasses.asdict(totals)
            assert any(value is not None for value in values.values())
            if totals.per_camera:
                assert len(totals.per_camera) == totals.cameras
                assert sum(totals.per_camera) == totals.images
    classes = [PUBLISHED[n]["train"].classes for n in ("market1501", "dukemtmcreid", "msmt17_v1")]
    assert classes == [3262, 2196, 4821]
