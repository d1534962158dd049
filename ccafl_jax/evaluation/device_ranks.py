"""Ranks of matches on accelerators: counted in jitted blocks, queries split over the devices.

Sorts are slow on accelerators and no order is needed: the rank of a match is one plus the number
of items before it, one pass over a block of scores. Only where queries have very many matches is
the block sorted.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ccafl_jax.evaluation.match_ranks import MatchRanks
from ccafl_jax.evaluation.relevance import Lists, Relevance
from ccafl_jax.neighbors.similarity import FeatureScores, device_scores, layouts, power_of_two
from ccafl_jax.progress import progress_bar

_QUERIES = 512
_LEAST_CAPACITY = 16
_PASSES = 256  # matches of a query from which on the block is sorted


def rank_on_devices(
    found: MatchRanks,
    scores: FeatureScores,
    counts: Relevance,
    mesh: Mesh,
    *,
    collapse: bool,
    elements: int,
    progress: bool,
) -> None:
    """Fills in what is found about every query.

    Args:
      found: from `nothing_yet`.
      scores: of all queries and gallery items; the gallery must fit every device.
      counts: what matches and what is left out; without junk.
      mesh: the devices, on the axis "data".
      collapse: place the first match in the list cut down to identities.
      elements: scores that a device holds at once.
      progress: show a bar.
    """
    queries, size = scores.shape
    whole, split = layouts(mesh)
    gallery, bias = jax.device_put(scores.on_device(), whole)
    padded = len(gallery)
    # One device sees blocks of one shape, however many devices there are.
    block = min(_QUERIES, power_of_two(queries))
    while block > 1 and block * padded > elements:
        block //= 2
    block *= mesh.shape["data"]
    left_out = _padded_keys(counts, padded)
    gallery_keys = jax.device_put(left_out.gallery, whole)
    identity = _identities(counts, padded)
    query, (divisor, shift) = np.asarray(scores.query), scores.device_terms("query")
    number = np.diff(found.matches.offsets)
    # Queries of like numbers of matches share a block: a block costs what its largest one does.
    order = np.argsort(number, kind="stable")
    top = found.indices.shape[1]

    def launch(rows: np.ndarray) -> tuple[jax.Array, ...]:
        full = np.pad(rows, (0, block - len(rows)), mode="edge")
        matches, junk = _filled(found.matches, full, 0), _padded_junk(counts.junk, full, padded)
        keys = np.concatenate([left_out.query[:, full], identity.query[None, full]]).T
        passes = int(number[full].max())
        sent = [
            jax.device_put(array, split)
            for array in (query[full], divisor[full], keys, matches, number[full], junk)
        ]
        return _device_ranks(
            *sent, shift, gallery, bias, gallery_keys, identity.gallery, np.int32(size),
            np.int32(passes), top=top, collapse=collapse, sort=passes > _PASSES,
        )  # fmt: skip

    def keep(rows: np.ndarray, result: tuple[jax.Array, ...]) -> None:
        ranks, tied, first, candidates, best, values = (np.asarray(x)[: len(rows)] for x in result)
        owner, _ = found.matches.take(rows)
        place = found.matches.places(rows)
        column = place - found.matches.offsets[rows[owner]]
        found.ranks[place], found.tied[place] = ranks[owner, column], tied[owner, column]
        found.first[rows] = np.where(number[rows] > 0, first, 0)
        found.candidates[rows] = candidates
        absent = ~np.isfinite(values)
        found.indices[rows] = np.where(absent, -1, best)
        reported = scores.reported(rows, np.where(absent, 0, values))
        found.scores[rows] = np.where(absent, -np.inf, reported)

    running: tuple | None = None
    with progress_bar(queries, "ranking", progress) as bar:
        for start in range(0, queries, block):
            rows = order[start : start + block]
            # One block is computed while the one before is written down.
            done, running = running, (rows, launch(rows))
            if done is not None:
                keep(*done)
            bar.update(len(rows))
        keep(*running)


class _Keys(NamedTuple):
    query: np.ndarray  # int32[..., Q]
    gallery: np.ndarray  # int32[..., G padded]


def _padded_keys(counts: Relevance, padded: int) -> _Keys:
    """The pairs of keys as two arrays; where nothing may agree the sides have other values."""
    query = [np.where(key < 0, -1, key) for key, _ in counts.exclude]
    gallery = [np.where(key < 0, -2, key) for _, key in counts.exclude]
    queries, size = counts.shape
    query = np.reshape(query, (-1, queries)).astype(np.int32)
    gallery = np.reshape(gallery, (-1, size)).astype(np.int32)
    return _Keys(query, np.pad(gallery, ((0, 0), (0, padded - size)), constant_values=-2))


def _identities(counts: Relevance, padded: int) -> _Keys:
    """Identities of the gallery numbered from 0, and those of the queries by them, -1 if absent."""
    known, gallery = np.unique(counts.gallery_pid, return_inverse=True)
    place = np.minimum(np.searchsorted(known, counts.query_pid), len(known) - 1)
    query = np.where(known[place] == counts.query_pid, place, -1).astype(np.int32)
    gallery = gallery.reshape(-1).astype(np.int32)
    return _Keys(query, np.pad(gallery, (0, padded - len(gallery))))


def _padded_junk(lists: Lists | None, rows: np.ndarray, absent: int) -> np.ndarray:
    if lists is None:
        return np.full((len(rows), 0), absent, np.int32)
    return _filled(lists, rows, absent)


def _filled(lists: Lists, rows: np.ndarray, value: int) -> np.ndarray:
    owner, item = lists.take(rows)
    place = lists.places(rows) - lists.offsets[rows[owner]]
    most = int(place.max()) + 1 if len(place) else 1
    padded = np.full((len(rows), power_of_two(max(_LEAST_CAPACITY, most))), value, np.int32)
    padded[owner, place] = item
    return padded


@functools.partial(jax.jit, static_argnames=("top", "collapse", "sort"))
def _device_ranks(
    query: jax.Array,
    divisor: jax.Array,
    query_keys: jax.Array,
    matches: jax.Array,
    number: jax.Array,
    junk: jax.Array,
    shift: jax.Array,
    gallery: jax.Array,
    bias: jax.Array,
    gallery_keys: jax.Array,
    identity: jax.Array,
    size: jax.Array,
    passes: jax.Array,
    *,
    top: int,
    collapse: bool,
    sort: bool,
) -> tuple[jax.Array, ...]:
    """Ranks of the matches of a block: one plus the number of ranked items before each.

    Args:
      query: float[b, D].
      divisor: float[b], see `FeatureScores.device_terms`.
      query_keys: int32[b, pairs + 1]; the last one is the identity.
      matches: int32[b, P], gallery rows.
      number: int[b], of the matches.
      junk: int32[b, J], gallery rows left out; G padded for none.
      shift: float[D].
      gallery: float[G padded, D].
      bias: float[G padded], added to the scores.
      gallery_keys: int32[pairs, G padded].
      identity: int32[G padded], identities counted from 0.
      size: G; columns from there on are padding.
      passes: largest number of matches of a query in the block.
      top: number of best items.
      collapse: whether the first match is placed among identities.
      sort: rank by sorting the block, which pays where there are many matches.

    Returns:
      int32[b, P] ranks, int32[b, P] items that score at least as much (entries beyond a query's own
      matches mean nothing), int32[b] place of the first match, int32[b] items ranked, int32[b, top]
      best items and float[b, top] their scores.
    """
    scores = device_scores(query, divisor, shift, gallery, bias)
    index = jnp.arange(scores.shape[1], dtype=jnp.int32)
    dropped = jnp.broadcast_to(index >= size, scores.shape)
    for pair in range(gallery_keys.shape[0]):
        dropped |= query_keys[:, pair, None] == gallery_keys[pair]
    scores = jnp.where(dropped, -jnp.inf, scores)
    row = jnp.arange(len(scores))[:, None]
    scores = scores.at[row, junk].set(-jnp.inf, mode="drop")
    own = jnp.take_along_axis(scores, matches, axis=1)  # [b, P]
    if sort:
        ranks, tied = _by_sorting(scores, own, matches)
    else:
        ranks, tied = _by_counting(scores, own, matches, passes)
    first = jnp.zeros(len(scores), jnp.int32)
    if collapse:
        # The first match scores best; among equals it stands first.
        value = jnp.where(jnp.arange(own.shape[1]) < number[:, None], own, -jnp.inf)
        best = jnp.max(value, axis=1, keepdims=True)
        place = jnp.min(jnp.where(value == best, matches, scores.shape[1]), axis=1, keepdims=True)
        before = (scores > best) | ((scores == best) & (index < place))
        before &= query_keys[:, -1:] != identity
        seen = jax.ops.segment_max(
            before.T.astype(jnp.int32), identity, num_segments=scores.shape[1]
        )
        first = 1 + jnp.sum(jnp.maximum(seen, 0), axis=0)
    candidates = jnp.sum(scores > -jnp.inf, axis=1, dtype=jnp.int32)
    values, best = jax.lax.top_k(scores, top)
    return ranks, tied, first, candidates, best, values


def _by_counting(scores, own, matches, passes) -> tuple[jax.Array, jax.Array]:
    """Ranks and numbers of items that score at least as much: a pass over the block per match."""
    index = jnp.arange(scores.shape[1], dtype=jnp.int32)

    def count(k, carry):
        score = jax.lax.dynamic_slice_in_dim(own, k, 1, axis=1)
        place = jax.lax.dynamic_slice_in_dim(matches, k, 1, axis=1)
        before = (scores > score) | ((scores == score) & (index < place))
        columns = (
            1 + jnp.sum(before, axis=1, keepdims=True, dtype=jnp.int32),
            jnp.sum(scores >= score, axis=1, keepdims=True, dtype=jnp.int32),
        )
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new, k, axis=1)
            for old, new in zip(carry, columns, strict=True)
        )

    none = jnp.zeros(matches.shape, jnp.int32)
    return jax.lax.fori_loop(0, passes, count, (none, none))


def _by_sorting(scores, own, matches) -> tuple[jax.Array, jax.Array]:
    """The same from the order of the block."""
    order = jnp.argsort(-scores, axis=1, stable=True)
    row = jnp.arange(len(scores))[:, None]
    index = jnp.arange(scores.shape[1], dtype=jnp.int32)
    place = jnp.zeros(scores.shape, jnp.int32).at[row, order].set(index)
    ascending = jnp.take_along_axis(-scores, order, axis=1)
    tied = jax.vmap(functools.partial(jnp.searchsorted, side="right"))(ascending, -own)
    return 1 + jnp.take_along_axis(place, matches, axis=1), tied.astype(jnp.int32)
