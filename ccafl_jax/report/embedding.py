"""t-SNE of the features that a run kept, the same images before and after training."""

from collections.abc import Mapping, Sequence

import numpy as np

from ccafl_jax.options import require
from ccafl_jax.report.data import Embedding
from ccafl_jax.training.snapshots import Snapshot

PERPLEXITY = 30.0
SEED = 0
_FEWEST = 6


def perplexity_of(count: int, asked: float = PERPLEXITY) -> float:
    """The perplexity for so many points: what was asked for, or less where they are few."""
    return min(asked, max(1.0, (count - 1) / 4))


def tsne(features: np.ndarray, *, perplexity: float = PERPLEXITY, seed: int = SEED) -> np.ndarray:
    """Places in the plane: float64[n, 2], the same for the same features.

    Args:
      features: float[n, dim]; L2-normalised here, so that distances go with cosines.
      perplexity: see `perplexity_of`.
      seed: of scikit-learn's random state; it starts from the first two principal components.

    Raises:
      ValueError: fewer than six points.
      ImportError: scikit-learn is not installed.
    """
    require(len(features) >= _FEWEST, f"t-SNE of {len(features)} points; {_FEWEST} are needed")
    try:
        import threadpoolctl
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("t-SNE needs scikit-learn: pip install scikit-learn") from error
    x = np.asarray(features, np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    method = TSNE(
        perplexity=perplexity_of(len(x), perplexity),
        init="pca",
        learning_rate="auto",
        random_state=seed,
    )
    # Threads that wait for each other on a busy machine take minutes in place of seconds.
    with threadpoolctl.threadpool_limits(limits=1):
        return method.fit_transform(x.astype(np.float32)).astype(np.float64)


def before_and_after(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """The first and the last of the snapshots, where they are of the same images."""
    if len(snapshots) < 2:
        return list(snapshots)
    first, last = snapshots[0], snapshots[-1]
    return [first, last] if np.array_equal(first.row, last.row) else [last]


def embed(
    snapshots: Sequence[Snapshot],
    titles: Mapping[str, str],
    cameras: Mapping[int, str],
    *,
    perplexity: float = PERPLEXITY,
    seed: int = SEED,
) -> list[Embedding]:
    """Embeddings of the first and the last stage of a run.

    Args:
      snapshots: in the order of the stages.
      titles: of the stages, by name.
      cameras: names of cameras, by camid.
      perplexity: see `perplexity_of`.
      seed: see `tsne`.
    """
    return [
        Embedding(
            title=titles.get(found.stage, found.stage),
            points=tsne(found.features, perplexity=perplexity, seed=seed),
            pid=found.pid,
            camera=[cameras.get(int(camid), f"camera {camid}") for camid in found.camid],
        )
        for found in before_and_after(snapshots)
    ]
