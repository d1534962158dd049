"""k-reciprocal encoding and re-ranking in plain, dense float64, for comparison."""

import numpy as np


def squared_distances(f):
    f = np.asarray(f, np.float64)
    return np.square(f[:, None] - f).sum(axis=2)


def unit(f):
    f = np.asarray(f, np.float64)
    return f / np.linalg.norm(f, axis=1, keepdims=True)


def encode(order, distance, *, columns, half, k2):
    """Dense encoding [N, N] from all neighbours in order [N, K] and distances [N, N]."""
    n = len(order)

    def reciprocal(i, count):
        return {int(j) for j in order[i, :count] if i in order[j, :count]}

    weights = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, columns)
        members = set(own)
        for candidate in own:
            added = reciprocal(candidate, half)
            if 3 * len(added & own) > 2 * len(added):
                members |= added
        members = sorted(members)
        if members:
            weight = np.exp(-distance[i, members])
            weights[i, members] = weight / weight.sum()
    # An item behind more equal ones than columns is as the first of them.
    weights = weights[[i if i in order[i, :columns] else order[i, 0] for i in range(n)]]
    if k2 == 1:
        return weights
    return np.stack([weights[order[i, :k2]].mean(axis=0) for i in range(n)])


def jaccard(encoding, others):
    shared = np.minimum(encoding[:, None], others).sum(axis=2)
    return 1 - shared / (2 - shared)


def rerank(query, gallery, *, k1=20, k2=6, lambda_=0.3, metric="cosine", power=1):
    f = np.concatenate([query, gallery])
    distance = squared_distances(unit(f) if metric == "cosine" else f) ** power
    largest = distance.max(axis=1, keepdims=True)
    distance = distance / np.where(largest == 0, 1, largest)
    order = np.argsort(distance, axis=1, kind="stable")
    half = int(np.around(k1 / 2)) + 1
    encoding = encode(order, distance, columns=k1 + 1, half=half, k2=k2)
    size = len(query)
    return (1 - lambda_) * jaccard(encoding[:size], encoding[size:]) + lambda_ * distance[
        :size, size:
    ]
