"""mAP for every query camera and gallery camera: where features fail, and how evenly they work.

A standard ranking mixes the cameras of the gallery. Here only the images of one camera are ranked
at a time, so that each figure says how well a person seen by one camera is found in another.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ccafl_jax.evaluation.ranking import AP_RULES, rank_by
from ccafl_jax.evaluation.relevance import SAME_CAMERA, check_labels, relevance
from ccafl_jax.neighbors.similarity import (
    BLOCK_ELEMENTS,
    Blocks,
    FeatureScores,
    MatrixScores,
    ScoreProvider,
)
from ccafl_jax.options import require, require_choice


@dataclasses.dataclass(frozen=True, eq=False)
class CameraPairs:
    """mAP by pair of cameras; shares in 0..1, never NaN.

    Galleries of different cameras differ in size and in matches, so figures compare best down a
    column, or with the same table of another model.

    Attributes:
      mAP: float64[C, C], by query camera (row) and gallery camera (column); 0 where not valid.
      queries: int64[C, C], queries the mean runs over: those with a match in that camera.
      valid: bool[C, C], the pair has a query.
      cameras: int32[C], camids of rows and columns, ascending.
      unknown_queries, unknown_gallery: images left out because their camera is not known.
    """

    mAP: np.ndarray
    queries: np.ndarray
    valid: np.ndarray
    cameras: np.ndarray
    unknown_queries: int
    unknown_gallery: int

    @property
    def mean(self) -> float | None:
        """Mean over the valid pairs of two cameras, each pair counting once; None without any."""
        across = self._across()
        return float(across.mean()) if len(across) else None

    @property
    def std(self) -> float | None:
        """Standard deviation over the valid pairs of two cameras; None without any."""
        across = self._across()
        return float(across.std()) if len(across) else None

    @property
    def within(self) -> float | None:
        """Mean over the valid pairs of a camera with itself; None without any."""
        own = np.diag(self.mAP)[np.diag(self.valid)]
        return float(own.mean()) if len(own) else None

    @property
    def worst(self) -> tuple[int, int] | None:
        """Row and column of the lowest mAP among pairs of two cameras; None without any."""
        across = self.valid & ~np.eye(len(self.cameras), dtype=bool)
        if not across.any():
            return None
        row, column = np.unravel_index(
            np.argmin(np.where(across, self.mAP, np.inf)), self.mAP.shape
        )
        return int(row), int(column)

    def as_dict(self, camera_codes: Sequence[int | str] | None = None) -> dict[str, Any]:
        """The figures as plain values, None where there is none.

        Args:
          camera_codes: names of the cameras by camid; the camids themselves when None.

        Raises:
          ValueError: a camera without a code.
        """
        codes = self._codes(camera_codes)
        rows = zip(self.mAP.tolist(), self.valid.tolist(), strict=True)
        worst = None
        if self.worst is not None:
            row, column = self.worst
            worst = {
                "query": codes[row],
                "gallery": codes[column],
                "mAP": float(self.mAP[row, column]),
            }
        return {
            "cameras": codes,
            "mAP": [
                [value if shown else None for value, shown in zip(*row, strict=True)]
                for row in rows
            ],
            "queries": self.queries.tolist(),
            "mean": self.mean,
            "std": self.std,
            "within": self.within,
            "worst": worst,
            "unknown_queries": self.unknown_queries,
            "unknown_gallery": self.unknown_gallery,
        }

    def table(self, camera_codes: Sequence[int | str] | None = None) -> str:
        """A text table in per cent, `-` where a pair has no query; see `as_dict`."""
        figures = self.as_dict(camera_codes)
        names = [f"c{code}" if isinstance(code, int) else code for code in figures["cameras"]]
        width = max(8, *(len(name) + 2 for name in names))
        lines = ["".join(f"{cell:>{width}}" for cell in ("query", *names))]
        for name, row in zip(names, figures["mAP"], strict=True):
            cells = ("-" if value is None else f"{100 * value:.1f}" for value in row)
            lines.append("".join(f"{cell:>{width}}" for cell in (name, *cells)))
        if self.worst is not None:
            row, column = self.worst
            lines.append(
                f"mAP over pairs of two cameras: mean {100 * self.mean:.1f}, std "
                f"{100 * self.std:.1f}, worst {100 * self.mAP[row, column]:.1f} "
                f"({names[row]} in {names[column]})"
            )
        if self.within is not None:
            lines.append(f"within cameras: mean {100 * self.within:.1f}")
        if self.unknown_queries or self.unknown_gallery:
            lines.append(
                f"left out, camera unknown: {self.unknown_queries} queries, "
                f"{self.unknown_gallery} gallery images"
            )
        return "\n".join(lines)

    def _across(self) -> np.ndarray:
        return self.mAP[self.valid & ~np.eye(len(self.cameras), dtype=bool)]

    def _codes(self, camera_codes: Sequence[int | str] | None) -> list[int | str]:
        camids = self.cameras.tolist()
        if camera_codes is None:
            return camids
        missing = [camid for camid in camids if camid >= len(camera_codes)]
        require(
            not missing,
            f"camera {missing[:1]} has no code, there are {len(camera_codes)}; give one for each "
            "camid",
        )
        return [camera_codes[camid] for camid in camids]


def map_by_camera_pair(
    scores: ScoreProvider,
    query_pid: np.ndarray,
    gallery_pid: np.ndarray,
    query_camid: np.ndarray,
    gallery_camid: np.ndarray,
    *,
    same_camera: str = "identity",
    locations: Sequence[int] | None = None,
    junk: Sequence[int] = (-1,),
    same_item: tuple[np.ndarray, np.ndarray] | None = None,
    within: bool = False,
    ap: str = "step",
    engine: str = "auto",
    mesh: Mesh | None = None,
) -> CameraPairs:
    """Ranks the images of one gallery camera at a time and averages by query camera.

    In all it costs about one ranking of the whole gallery: the products are those of one, as each
    gallery camera meets only the queries that have a match in it. A provider other than
    `FeatureScores` and `MatrixScores` computes its scores anew for every gallery camera.

    Args:
      scores: of Q queries against G gallery images, e.g. `FeatureScores(query_f, gallery_f)`.
      query_pid: int[Q].
      gallery_pid: int[G].
      query_camid: int[Q]; -1 where the camera is not known, which leaves the image out.
      gallery_camid: int[G]; alike.
      same_camera: what a query leaves out, see `relevance.relevance`; "identity" leaves no match
        in its own camera and "location" none at its own place, so those pairs are not valid.
      locations: see `relevance.relevance`.
      junk: gallery identities that are in no ranking.
      same_item: (int[Q], int[G]), what the rows are images of; a query is not looked for in
        itself.
      within: pairs of a camera with itself leave out nothing but the query's own image. Where
        queries stand in the gallery, `same_item` must say so.
      ap: "step", "trapezoid" or "tied", see `ranking.rank_by`.
      engine: see `ranking.rank_by`; the table does not depend on it.
      mesh: alike.

    Returns:
      `CameraPairs` over the cameras of both sides.

    Raises:
      ValueError: labels that do not fit the scores, no known camera, an unknown option.
    """
    require_choice("same_camera", same_camera, SAME_CAMERA)
    require_choice("ap", ap, AP_RULES)
    sides = _sides(scores, query_pid, gallery_pid, query_camid, gallery_camid)
    q_pid, g_pid, q_cam, g_cam = sides
    cameras = np.unique(np.concatenate([q_cam[q_cam >= 0], g_cam[g_cam >= 0]]))
    require(len(cameras) > 0, "no image has a known camera; camid must be 0 or more where it is")
    items = None if same_item is None else tuple(np.asarray(side) for side in same_item)
    require(
        items is None or tuple(map(np.shape, items)) == (q_pid.shape, g_pid.shape),
        f"same_item must hold int[{len(q_pid)}] and int[{len(g_pid)}], a number for each image",
    )
    ranked = ~np.isin(g_pid, junk)
    total = np.zeros((len(cameras), len(cameras)))
    queries = np.zeros(total.shape, np.int64)
    for column, camera in enumerate(cameras):
        columns = np.flatnonzero((g_cam == camera) & ranked)
        wanted = (q_cam >= 0) & np.isin(q_pid, g_pid[columns])
        own = q_cam == camera
        parts = [(wanted & ~own, same_camera)]
        if within:
            parts.append((wanted & own, "none"))
        elif same_camera == "none":
            parts = [(wanted, same_camera)]
        for mask, rule in parts:
            rows = np.flatnonzero(mask)
            if not len(rows):
                continue
            rules = relevance(
                q_pid[rows],
                g_pid[columns],
                q_cam[rows],
                g_cam[columns],
                same_camera=rule,
                locations=locations,
                junk=junk,
                same_item=items and (items[0][rows], items[1][columns]),
            )
            part = _part(scores, rows, columns)
            found = rank_by(part, rules, ap=ap, engine=engine, mesh=mesh)
            row = np.searchsorted(cameras, q_cam[rows[found.valid]])
            np.add.at(total[:, column], row, found.ap[found.valid])
            np.add.at(queries[:, column], row, 1)
    return CameraPairs(
        mAP=total / np.maximum(queries, 1),
        queries=queries,
        valid=queries > 0,
        cameras=cameras,
        unknown_queries=int(np.sum(q_cam < 0)),
        unknown_gallery=int(np.sum(g_cam < 0)),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """Some queries (`rows`, ascending) and gallery items (`columns`) of any provider."""

    scores: ScoreProvider
    rows: np.ndarray
    columns: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def blocks(self, order: np.ndarray | None = None, *, elements: int = BLOCK_ELEMENTS) -> Blocks:
        order = np.arange(len(self.rows)) if order is None else order
        for rows, block in self.scores.blocks(self.rows[order], elements=elements):
            yield np.searchsorted(self.rows, rows), block[:, self.columns]

    def reported(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return self.scores.reported(self.rows[rows], scores)


def _part(scores: ScoreProvider, rows: np.ndarray, columns: np.ndarray) -> ScoreProvider:
    if not isinstance(scores, (FeatureScores, MatrixScores)):
        return _Part(scores, rows, columns)
    if scores.columns is not None:
        columns = np.asarray(scores.columns)[columns]
    if isinstance(scores, MatrixScores):
        return MatrixScores(np.asarray(scores.scores)[np.ix_(rows, columns)])
    query, gallery = np.asarray(scores.query), np.asarray(scores.gallery)
    return FeatureScores(query[rows], gallery[columns], scores.metric)


def _sides(scores: ScoreProvider, *labels: np.ndarray) -> list[np.ndarray]:
    queries, gallery = scores.shape
    names = ("query_pid", "gallery_pid", "query_camid", "gallery_camid")
    sides = []
    for name, column, size in zip(names, labels, (queries, gallery) * 2, strict=True):
        column = np.asarray(column)
        require(
            column.shape == (size,) and column.dtype.kind in "iu",
            f"{name} must be int[{size}] beside scores of {queries} queries and {gallery} gallery "
            f"images, found {column.dtype}{list(column.shape)}",
        )
        sides.append(check_labels(name, column))
    return sides
