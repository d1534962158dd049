"""The losses of stages 2 and 3, row by row, with gradients by hand (specification 2.5 to 2.8).

Every function returns the loss and its gradients with respect to its first argument; memories,
texts and the other optimiser's parameters are constants.
"""

import numpy as np


def softmax_terms(z):
    """log sum exp z, and softmax z."""
    top = z.max()
    e = np.exp(z - top)
    return top + np.log(e.sum()), e / e.sum()


def cross_entropy(z, own):
    """-log softmax(z)[own], and the gradient."""
    total, p = softmax_terms(z)
    slope = p.copy()
    slope[own] -= 1
    return total - z[own], slope


def smoothed_cross_entropy(z, own, smoothing, denominator):
    """Targets are 1 - smoothing on the own column and smoothing / denominator on every one."""
    total, p = softmax_terms(z)
    target = np.full(len(z), smoothing / denominator)
    target[own] += 1 - smoothing
    return np.sum(target * (total - z)), target.sum() * p - target


def shares_of_cameras(camera):
    """Weights that turn a sum of rows into the sum over cameras of the mean in each."""
    return np.array([1 / np.sum(camera == c) for c in camera])


def icdl(f, y, centroids, instances, camera_of, tau):
    """The centroid and the instance term: two losses, two gradients."""
    share = shares_of_cameras(camera_of[y])
    losses, slopes = np.zeros(2), np.zeros((2, *f.shape))
    for b, own in enumerate(y):
        inside = np.flatnonzero(camera_of == camera_of[own])
        position = int(np.flatnonzero(inside == own)[0])
        chosen = []
        for j in inside:
            similarity = instances[j] @ f[b]
            hardest = similarity.argmin() if j == own else similarity.argmax()
            chosen.append(instances[j, hardest])
        for term, keys in enumerate((centroids[inside], np.stack(chosen))):
            loss, slope = cross_entropy(keys @ f[b] / tau, position)
            losses[term] += share[b] * loss
            slopes[term, b] = share[b] * (keys.T @ slope) / tau
    return losses, slopes


def text_intra(g, y, texts, camera_of, smoothing):
    share = shares_of_cameras(camera_of[y])
    total, gradient = 0.0, np.zeros_like(g)
    for b, own in enumerate(y):
        inside = np.flatnonzero(camera_of == camera_of[own])
        position = int(np.flatnonzero(inside == own)[0])
        loss, slope = smoothed_cross_entropy(texts[inside] @ g[b], position, smoothing, len(inside))
        total += share[b] * loss
        gradient[b] = share[b] * (texts[inside].T @ slope)
    return total, gradient


def text_inter(g, clusters, descriptions, smoothing, denominator=None):
    used = np.flatnonzero(clusters >= 0)
    total, gradient = 0.0, np.zeros_like(g)
    for b in used:
        loss, slope = smoothed_cross_entropy(
            descriptions @ g[b], clusters[b], smoothing, denominator or len(descriptions)
        )
        total += loss / len(used)
        gradient[b] = descriptions.T @ slope / len(used)
    return total, gradient


def distance(a, b):
    """sqrt(max(|a - b|^2, 1e-12)), and its gradient with respect to `a`."""
    squared = np.sum((a - b) ** 2)
    if squared <= 1e-12:
        return 1e-6, np.zeros_like(a)
    return np.sqrt(squared), (a - b) / np.sqrt(squared)


def memory_triplet(f, y, centroids, camera_of, margin):
    share = shares_of_cameras(camera_of[y])
    total, gradient = 0.0, np.zeros_like(f)
    for b, own in enumerate(y):
        others = [j for j in np.flatnonzero(camera_of == camera_of[own]) if j != own]
        if not others:
            continue
        positive, towards = distance(f[b], centroids[own])
        negative, away = min((distance(f[b], centroids[j]) for j in others), key=lambda d: d[0])
        if positive - negative + margin > 0:
            total += share[b] * (positive - negative + margin)
            gradient[b] = share[b] * (towards - away)
    return total, gradient


def batch_triplet(f, label, group, share, margin):
    """Batch hard among the rows of one group; label -1 takes no part. `share` weighs the rows."""
    total, gradient = 0.0, np.zeros_like(f)
    for b in np.flatnonzero(label >= 0):
        rows = [i for i in range(len(f)) if label[i] >= 0 and group[i] == group[b]]
        same = [i for i in rows if label[i] == label[b]]
        other = [i for i in rows if label[i] != label[b]]
        if not other:
            continue
        far = max(same, key=lambda i: distance(f[b], f[i])[0])
        near = min(other, key=lambda i: distance(f[b], f[i])[0])
        positive, towards = distance(f[b], f[far])
        negative, away = distance(f[b], f[near])
        if positive - negative + margin > 0:
            total += share[b] * (positive - negative + margin)
            gradient[b] += share[b] * (towards - away)
            gradient[far] -= share[b] * towards
            gradient[near] += share[b] * away
    return total, gradient


def inter_contrast(f, clusters, memory, tau):
    used = np.flatnonzero(clusters >= 0)
    total, gradient = 0.0, np.zeros_like(f)
    for b in used:
        loss, slope = cross_entropy(memory @ f[b] / tau, clusters[b])
        total += loss / len(used)
        gradient[b] = memory.T @ slope / tau / len(used)
    return total, gradient


def unit_rows(w):
    return w / np.linalg.norm(w, axis=-1, keepdims=True)


def gid(classifier, f, y, scale):
    """The gradient is that of the classifier."""
    units, lengths = unit_rows(classifier), np.linalg.norm(classifier, axis=1)
    total, gradient = 0.0, np.zeros_like(classifier)
    for b, own in enumerate(y):
        cosine = units @ f[b]
        loss, slope = cross_entropy(scale * cosine, own)
        total += loss / len(y)
        # The cosine changes with a row of the classifier by what is perpendicular to it.
        turn = (f[b] - cosine[:, None] * units) / lengths[:, None]
        gradient += scale * slope[:, None] * turn / len(y)
    return total, gradient


def ical(f, y, classifier, cluster_of, camera_of, *, scale, epsilon, margin, inflation):
    units = unit_rows(classifier)
    used = [b for b in range(len(y)) if cluster_of[y[b]] >= 0]
    total, gradient = 0.0, np.zeros_like(f)
    for b in used:
        own = y[b]
        same_camera = camera_of == camera_of[own]
        positive = (cluster_of == cluster_of[own]) & ~same_camera
        positive[own] = True
        u = np.clip(units @ f[b], -1, 1)
        changed, change = u.copy(), np.ones(len(u))
        inflated = same_camera.copy()
        inflated[own] = False
        changed[inflated] = (1 + inflation) * u[inflated] + inflation
        change[inflated] = 1 + inflation
        if u[own] > np.cos(np.pi - margin):
            changed[own] = np.cos(np.arccos(u[own]) + margin)
            change[own] = np.sin(np.arccos(u[own]) + margin) / np.sqrt(1 - u[own] ** 2)
        else:
            changed[own] = u[own] - margin * np.sin(np.pi - margin)
        z = scale * changed
        if positive.all():
            continue
        against, p = softmax_terms(z[~positive])
        weight = np.where(positive, epsilon / positive.sum(), 0.0)
        weight[own] += 1 - epsilon
        excess = np.logaddexp(0, against - z[positive])  # softplus
        pull = weight[positive] / (1 + np.exp(z[positive] - against))
        slope = np.zeros(len(z))
        slope[positive] = -pull
        slope[~positive] = p * pull.sum()
        total += np.sum(weight[positive] * excess) / len(used)
        gradient[b] = units.T @ (slope * scale * change) / len(used)
    return total, gradient
