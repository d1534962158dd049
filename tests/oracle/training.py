"""The loop of stages 2 and 3 in NumPy and float64, one row and one class at a time.

Written from the specification alone; it shares no code with the package. Batches and the images in
the slots of instances are given, everything else is computed here.
"""

import numpy as np

from tests.oracle import losses
from tests.oracle.network import Adam
from tests.oracle.recipe import Recipe


def unit(x):
    return x / np.linalg.norm(x)


def associate(features, label, camera_of, rate):
    """Cluster of every class, -1 for none (specification 3.1)."""
    classes = len(camera_of)
    x = np.stack([unit(features[label == a].mean(axis=0)) for a in range(classes)])
    pairs = [
        (np.sum((x[a] - x[b]) ** 2), a, b)
        for a in range(classes)
        for b in range(a + 1, classes)
        if camera_of[a] != camera_of[b]
    ]
    partner, edges = {}, []
    for _, a, b in sorted(pairs)[: int(np.floor(rate * classes))]:
        if (a, camera_of[b]) in partner or (b, camera_of[a]) in partner:
            continue
        partner[a, camera_of[b]], partner[b, camera_of[a]] = b, a
        edges.append((a, b))
    root = np.arange(classes)  # the smallest class of the component
    for _ in range(classes):
        for a, b in edges:
            root[a] = root[b] = min(root[a], root[b])
    cluster_of, found = np.full(classes, -1), 0
    for a in range(classes):
        members = np.flatnonzero(root == a)
        if len(members) > 1:
            cluster_of[members] = found
            found += 1
    return cluster_of


class Training:
    """A run from given weights.

    Attributes:
      centroids, instances, clusters: the memories.
      cluster_of: the association of the epoch.
    """

    def __init__(self, recipe: Recipe, encoder, classifier, images, label, camera_of, texts):
        self.recipe, self.encoder, self.images = recipe, encoder, images
        self.label, self.camera_of = label, camera_of
        self.texts = np.array(texts, np.float64)
        self.classifier = np.array(classifier, np.float64)
        self.classifier_adam = Adam(recipe.weight_decay)
        self.adam = {name: Adam(recipe.weight_decay) for name in encoder.params}

    def begin(self, epoch, draws):
        """Features, association, memories and descriptions at the start of an epoch."""
        f, label = self.encoder.extract(self.images), self.label
        self.cluster_of = associate(f, label, self.camera_of, self.recipe.rate)
        self.centroids = self.instances = self.clusters = self.descriptions = None
        if self.recipe.stage(epoch) == 2:
            classes = range(len(self.camera_of))
            self.centroids = np.stack([unit(f[label == a].mean(axis=0)) for a in classes])
            self.instances = np.stack([[unit(f[i]) for i in draws[a]] for a in classes])
            return
        members = [
            np.isin(label, np.flatnonzero(self.cluster_of == k))
            for k in range(self.cluster_of.max() + 1)
        ]
        self.clusters = np.stack([unit(f[images].mean(axis=0)) for images in members])
        self.descriptions = np.stack([self.texts[label[i]].mean(axis=0) for i in members])

    def epoch(self, epoch, plan, draws):
        """Trains on the batches of a plan; returns the terms of every iteration."""
        self.begin(epoch, draws)
        return [self.iteration(epoch, rows) for rows in plan]

    def losses(self, epoch, f, g, y):
        """Every active term: (value, gradient of f or None, gradient of g or None)."""
        return (self._losses_2 if self.recipe.stage(epoch) == 2 else self._losses_3)(epoch, f, g, y)

    def _losses_2(self, epoch, f, g, y):
        r, camera = self.recipe, self.camera_of[y]
        values, slopes = losses.icdl(f, y, self.centroids, self.instances, self.camera_of, r.tau)
        share = losses.shares_of_cameras(camera)
        text, dg = losses.text_intra(g, y, self.texts, self.camera_of, r.smoothing)
        return {
            "icdl_centroid": (r.w * values[0], r.w * slopes[0], None),
            "icdl_instance": ((1 - r.w) * values[1], (1 - r.w) * slopes[1], None),
            "text_intra": (text, None, dg),
            "triplet_memory": (
                *losses.memory_triplet(f, y, self.centroids, self.camera_of, r.triplet_margin),
                None,
            ),
            "triplet_batch": (
                *losses.batch_triplet(f, y, camera, share, r.triplet_margin),
                None,
            ),
        }

    def _losses_3(self, epoch, f, g, y):
        r, clusters = self.recipe, self.cluster_of[y]
        everywhere = np.zeros(len(y))
        share = np.full(len(y), 1 / max(1, np.sum(clusters >= 0)))
        terms = {
            "inter": (*losses.inter_contrast(f, clusters, self.clusters, r.tau), None),
            "triplet_batch": (
                *losses.batch_triplet(f, clusters, everywhere, share, r.triplet_margin),
                None,
            ),
        }
        if r.has_text(epoch):
            text, dg = losses.text_inter(
                g, clusters, self.descriptions, r.smoothing, r.smoothing_classes
            )
            terms["text_inter"] = (text, None, dg)
        if r.has_ical(epoch):
            value, df = losses.ical(
                f,
                y,
                self.classifier,
                self.cluster_of,
                self.camera_of,
                scale=r.scale,
                epsilon=r.epsilon,
                margin=r.margin,
                inflation=r.inflation,
            )
            terms["ical"] = (value, df, None)
        return terms

    def gradients(self, kept, f, g, terms):
        """Gradients of the sum of the terms, by parameter."""
        df, dg = np.zeros_like(f), np.zeros_like(g)
        for _, to_f, to_g in terms.values():
            df = df if to_f is None else df + to_f
            dg = dg if to_g is None else dg + to_g
        return self.encoder.backward(kept, f, df, dg)

    def iteration(self, epoch, rows):
        r, y = self.recipe, self.label[rows]
        f, g, kept = self.encoder.forward(self.images[rows])
        gid, slope = losses.gid(self.classifier, f, y, r.scale)
        self.classifier = self.classifier_adam.step(self.classifier, slope, r.classifier_rate)
        terms = self.losses(epoch, f, g, y)
        gradients = self.gradients(kept, f, g, terms)
        for name, gradient in gradients.items():
            if name.startswith("attnpool") and not r.has_text(epoch) and not r.decay_idle:
                continue
            rate = r.rate_of(epoch) * (r.bias_factor if name.endswith("bias") else 1)
            value = self.encoder.params[name]
            self.encoder.params[name] = self.adam[name].step(value, gradient, rate)
        self.update(epoch, f, y)
        values = {name: term[0] for name, term in terms.items()}
        norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values()))
        return values | {"total": sum(values.values()), "gid": gid, "grad_norm": norm}

    def memories(self):
        """Those of the stage, by name."""
        names = ("centroids", "instances", "clusters")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def update(self, epoch, f, y):
        """The memories after a batch, from the features of its forward pass."""
        r = self.recipe
        if r.stage(epoch) == 3:
            labels = self.cluster_of[y]
            self.clusters = self._blended(self.clusters, f, labels, r.cluster_update)
            return
        self.centroids = self._blended(self.centroids, f, y, r.centroid_update)
        for a in set(y.tolist()):
            for slot, row in enumerate(f[y == a][: self.instances.shape[1]]):
                self.instances[a, slot] = row

    def _blended(self, memory, f, labels, rule):
        memory, c = memory.copy(), self.recipe.coefficient
        for k in set(labels.tolist()) - {-1}:
            rows = f[labels == k]
            new = rows.mean(axis=0) if rule == "mean" else rows[np.argmin(rows @ memory[k])]
            memory[k] = unit(c * memory[k] + (1 - c) * new)
        return memory
