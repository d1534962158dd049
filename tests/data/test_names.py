import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ccafl_jax.data.names import Names

TEXTS = st.lists(st.text(max_size=8), max_size=12)


@given(TEXTS)
def test_packing_keeps_every_string(texts):
    names = Names.pack(texts)
    assert list(names) == texts and len(names) == len(texts)
    assert [names[i] for i in range(len(texts))] == texts
    data, offsets = names.packed()
    assert list(Names(data, offsets[:-1], offsets[1:])) == texts


@given(TEXTS, st.data())
def test_rows_in_any_order_keep_their_strings(texts, data):
    names = Names.pack(texts)
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=9) if texts else st.just([]))
    taken = names[np.array(rows, int)]
    assert list(taken) == [texts[row] for row in rows]
    packed, offsets = taken.packed()
    assert len(packed) == offsets[-1] == sum(len(texts[row].encode()) for row in rows)
    assert list(Names(packed, offsets[:-1], offsets[1:])) == list(taken)


@given(TEXTS, TEXTS)
def test_joining(first, second):
    both = Names.join([Names.pack(first), Names.pack(second)[::-1]])
    assert list(both) == first + second[::-1]


def test_masks_slices_and_negative_rows():
    names = Names.pack(["a", "bé", "", "d"])
    assert list(names[np.array([True, False, True, True])]) == ["a", "", "d"]
    assert list(names[1:3]) == ["bé", ""] and names[-1] == "d"
    assert repr(names) == "Names('a', 'bé', '', ...; 4 in all)"


def test_names_that_are_not_utf8_survive():
    broken = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert Names.pack([broken])[0] == broken
