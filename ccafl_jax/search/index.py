"""A gallery to search in: features in some form, and what they are of; in memory or in a folder.

door.index/index.json        metric, form, fingerprint of the model, sizes
door.index/codes.npy ...     the gallery, mapped into memory when it is opened
door.index/full.npy          float32, beside a compressed gallery, for exact scores
door.index/names.npy ...     names, identities and cameras
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ccafl_jax.data.names import Names
from ccafl_jax.files import write_json
from ccafl_jax.neighbors.similarity import METRICS, check_features
from ccafl_jax.neighbors.top_k import Neighbors, join_columns, top_k
from ccafl_jax.options import require, require_choice
from ccafl_jax.progress import progress_bar
from ccafl_jax.scoring.feature_set import MULTI_QUERY, QUERY, FeatureSet
from ccafl_jax.search.compression import Compressed, compress

ABOUT = "index.json"

_KIND = "ccafl_jax index"
_FORMAT = 1
_ROWS = 65_536  # of a compressed gallery that are float32 at a time
_GATHERED = 2**22  # numbers of candidates at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """A gallery to search in.

    Attributes:
      gallery: its features.
      metric: `cosine`, `euclidean` or `dot`.
      names: of the images.
      pid: int32[N], -1 junk and -2 unknown.
      camid: int32[N], from 0; -1 unknown.
      camera_codes: `camera_codes[camid]` is the number that the data set gives.
      full: float32[N, D] beside a compressed gallery; None without.
      meta: what made the features: `fingerprint` of the model, `model`, `flip`, `root`, ...
    """

    gallery: Compressed
    metric: str
    names: Names
    pid: np.ndarray
    camid: np.ndarray
    camera_codes: tuple[int, ...]
    full: np.ndarray | None
    meta: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.gallery)

    @property
    def exact(self) -> bool:
        """Whether scores are those of the features as they were."""
        return self.gallery.form == "float32"

    def check_model(self, fingerprint: str) -> None:
        """Refuses features of another model.

        Raises:
          ValueError: the fingerprints differ, or the gallery's is not known.
        """
        mine = self.meta.get("fingerprint")
        require(
            bool(mine),
            "the gallery does not say which model made it: embed it with scripts/embed.py",
        )
        require(
            mine == fingerprint,
            f"the gallery was embedded by model {str(mine)[:16]}, the queries by model "
            f"{fingerprint[:16]}: embed both with one model (scripts/embed.py)",
        )

    def search(
        self,
        query: np.ndarray,
        k: int,
        *,
        rescore: int = 0,
        engine: str = "auto",
        progress: bool = False,
    ) -> Neighbors:
        """The k nearest images of each query, equal scores in the order of the gallery.

        Args:
          query: float[Q, D].
          k: 1..N.
          rescore: of a compressed gallery, how many candidates of each query are scored again by
            the float32 features, in float64; 0 for none.
          engine: see `neighbors.top_k.top_k`.
          progress: shows a bar.

        Returns:
          `Neighbors`; scores are approximate where the gallery is compressed and none is
          re-scored.

        Raises:
          ValueError: k out of range, features of another size, or re-scoring that is not possible.
        """
        query = np.asarray(query)
        count, dim = len(self), self.gallery.dim
        require(1 <= k <= count, f"k is {k}; expected 1..{count}, the images of the gallery")
        require(
            query.ndim == 2 and query.shape[1] == dim,
            f"queries have shape {query.shape}; expected [n, {dim}], as the gallery has",
        )
        if not rescore:
            return self._nearest(query, k, engine, progress)
        require(not self.exact, "the gallery is not compressed; leave rescore out")
        require(
            self.full is not None,
            "the gallery was kept without its float32 features, which re-scoring needs: build it "
            "anew with them",
        )
        require(rescore >= k, f"rescore is {rescore}; choose k ({k}) or more")
        candidates = self._nearest(query, min(rescore, count), engine, progress).indices
        return rescored(query, self.full, candidates, k, self.metric)

    def _nearest(self, query: np.ndarray, k: int, engine: str, progress: bool) -> Neighbors:
        options = {"engine": engine, "progress": progress}
        if self.exact:
            return top_k(query, self.gallery.codes, k, metric=self.metric, **options)
        metric = self.metric
        if metric == "cosine":  # the rows had unit length when they were compressed
            check_features(metric, query=query)
            query, metric = _unit(query), "dot"
        query = self.gallery.queries(np.asarray(query, np.float32))
        found = None
        edges = [*range(0, max(len(self) // _ROWS, 1) * _ROWS, _ROWS), len(self)]
        options["progress"] = False
        with progress_bar(len(self), "gallery", progress) as bar:
            for start, stop in itertools.pairwise(edges):
                part = self.gallery.rows(start, stop)
                best = top_k(query, part, min(k, stop - start), metric=metric, **options)
                found = best if found is None else join_columns(found, best, start, k)
                bar.update(stop - start)
        return found

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes the index, whole or not at all.

        Args:
          folder: to make.
          overwrite: replace an index that is there.

        Raises:
          FileExistsError: something is there that may not be replaced.
        """
        folder = pathlib.Path(folder)
        if folder.exists() and not (overwrite and (folder / ABOUT).is_file()):
            hint = "pass --overwrite" if (folder / ABOUT).is_file() else "it is no index"
            raise FileExistsError(f"{folder} exists; choose another folder ({hint})")
        names, offsets = self.names.packed()
        arrays = self.gallery.arrays() | {"names": names, "offsets": offsets}
        arrays |= {"pid": self.pid, "camid": self.camid}
        if self.full is not None:
            arrays["full"] = self.full
        about = {
            "kind": _KIND,
            "format": _FORMAT,
            "metric": self.metric,
            "form": self.gallery.form,
            "arrays": {name: [x.dtype.str, list(x.shape)] for name, x in arrays.items()},
            "camera_codes": list(self.camera_codes),
            "meta": dict(self.meta),
        }
        with _new_folder(folder) as partial:
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array, allow_pickle=False)
            write_json(partial / ABOUT, about)


def build(
    features: FeatureSet, *, form: str = "float32", metric: str = "cosine", full: bool = True
) -> Index:
    """An index of the gallery in a set of features: all rows that are no queries, if there are any.

    Args:
      features: the set.
      form: see `compression`.
      metric: of the scores.
      full: keep the float32 features beside a compressed gallery.

    Raises:
      ValueError: an unknown form or metric.
    """
    require_choice("metric", metric, METRICS)
    rows = np.flatnonzero((features.part != QUERY) & (features.part != MULTI_QUERY))
    features = features.take(rows) if len(rows) else features
    values = features.features
    check_features(metric, gallery=values)
    coded = _unit(values) if metric == "cosine" and form != "float32" else values
    gallery = compress(coded, form)
    return Index(
        gallery=gallery,
        metric=metric,
        names=Names.pack(map(str, features.names)),
        pid=features.pid,
        camid=features.camid,
        camera_codes=features.camera_codes,
        full=values if full and form != "float32" else None,
        meta=features.meta,
    )


def open_index(folder: str | os.PathLike) -> Index:
    """Opens a saved index; its arrays are mapped into memory, so this takes no time.

    Raises:
      FileNotFoundError: no index there, or a file is missing.
      ValueError: it is damaged, or of another format.
    """
    folder = pathlib.Path(folder)
    path = folder / ABOUT
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {ABOUT}; name a folder of --save-index")
    try:
        about = json.loads(path.read_text())
        kind, version = about["kind"], about["format"]
        if (kind, version) != (_KIND, _FORMAT):
            raise ValueError(f"{kind} {version}")
        arrays = {name: _map(folder, name, *what) for name, what in about["arrays"].items()}
        coded = {name: arrays.get(name) for name in ("codes", "scale", "shift", "basis")}
        offsets = arrays["offsets"]
        return Index(
            gallery=Compressed(about["form"], **coded),
            metric=about["metric"],
            names=Names(arrays["names"], offsets[:-1], offsets[1:]),
            pid=arrays["pid"],
            camid=arrays["camid"],
            camera_codes=tuple(about["camera_codes"]),
            full=arrays.get("full"),
            meta=about["meta"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder} is damaged or no index of this version ({error}); build it anew"
        ) from None


def rescored(
    query: np.ndarray, gallery: np.ndarray, candidates: np.ndarray, k: int, metric: str
) -> Neighbors:
    """The k best of each query's candidates by exact scores.

    Scores are computed in float64 and rounded, so equal features get equal scores.

    Args:
      query: float[Q, D].
      gallery: float[N, D], of which only the candidates are read.
      candidates: int[Q, n], different rows of the gallery for each query.
      k: 1..n.
      metric: see `top_k`.
    """
    require_choice("metric", metric, METRICS)
    candidates = np.sort(candidates, axis=1)  # equal scores: the first of the gallery first
    count, width = candidates.shape
    scores = np.empty((count, width), np.float32)
    block = max(1, _GATHERED // (width * query.shape[1]))
    for first in range(0, count, block):
        part = slice(first, first + block)
        near = np.asarray(gallery[candidates[part]], np.float64)
        asked = np.asarray(query[part], np.float64)
        if metric == "euclidean":
            scores[part] = -np.sqrt(np.square(near - asked[:, None]).sum(axis=2))
            continue
        products = np.einsum("qd,qnd->qn", asked, near)
        if metric == "cosine":
            products /= np.linalg.norm(near, axis=2)
            products /= np.linalg.norm(asked, axis=1)[:, None]
        scores[part] = products
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Neighbors(
        np.take_along_axis(candidates, order, axis=1).astype(np.int32),
        np.take_along_axis(scores, order, axis=1),
    )


def _unit(features: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.square(features, dtype=np.float64).sum(axis=1, keepdims=True))
    return (features / norms).astype(np.float32)


def _map(folder: pathlib.Path, name: str, dtype: str, shape: list[int]) -> np.ndarray:
    path = folder / f"{name}.npy"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; build the index anew")
    mode = "r" if np.prod(shape) else None  # an empty file maps nowhere
    array = np.load(path, mmap_mode=mode, allow_pickle=False)
    if (array.dtype.str, list(array.shape)) != (dtype, shape):
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, expected {dtype}{shape}")
    return array


@contextlib.contextmanager
def _new_folder(folder: pathlib.Path):
    """A folder that takes the place of `folder` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.part-"))
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # mkdtemp's are for their owner only
        if folder.exists():
            old = partial.with_name(partial.name + ".old")
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
