"""A linear stand-in for the encoder, with the published neck, and the published Adam."""

import numpy as np

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


class Encoder:
    """h = x K + b; f = L2norm(BN(h)), where BN has no shift; g = h A + a.

    Attributes:
      params: by name; those of `attnpool` make g, and no loss on f reaches them.
      mean, var: running statistics of the neck.
    """

    def __init__(self, params, mean, var, group):
        self.params = {name: np.array(value, np.float64) for name, value in params.items()}
        self.mean, self.var = np.array(mean, np.float64), np.array(var, np.float64)
        self.group = group

    def _input(self, images):
        return (images.reshape(len(images), -1) / 255 - PIXEL_MEAN) / PIXEL_STD

    def extract(self, images):
        """f in evaluation mode."""
        h = self._input(images) @ self.params["stem/kernel"] + self.params["stem/bias"]
        v = (h - self.mean) / np.sqrt(self.var + 1e-5) * self.params["neck/scale"]
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    def forward(self, images):
        """f and g in training mode, and what `backward` needs; moves the running statistics."""
        x = self._input(images)
        h = x @ self.params["stem/kernel"] + self.params["stem/bias"]
        size = min(self.group, len(x)) if self.group else len(x)
        groups = [slice(first, first + size) for first in range(0, len(x), size)]
        means = [h[rows].mean(axis=0) for rows in groups]
        variances = [h[rows].var(axis=0) for rows in groups]
        unit = np.concatenate(
            [
                (h[rows] - mean) / np.sqrt(var + 1e-5)
                for rows, mean, var in zip(groups, means, variances, strict=True)
            ]
        )
        v = unit * self.params["neck/scale"]
        length = np.linalg.norm(v, axis=1, keepdims=True)
        unbiased = np.mean(variances, axis=0) * size / (size - 1)
        self.mean = 0.9 * self.mean + 0.1 * np.mean(means, axis=0)
        self.var = 0.9 * self.var + 0.1 * unbiased
        g = h @ self.params["attnpool/kernel"] + self.params["attnpool/bias"]
        return v / length, g, (x, h, groups, variances, unit, length)

    def backward(self, kept, f, df, dg):
        """Gradients of all parameters from those of f and g."""
        x, h, groups, variances, unit, length = kept
        dv = (df - f * np.sum(f * df, axis=1, keepdims=True)) / length
        dunit = dv * self.params["neck/scale"]
        dh = dg @ self.params["attnpool/kernel"].T
        for rows, var in zip(groups, variances, strict=True):
            u, du = unit[rows], dunit[rows]
            dh[rows] += (du - du.mean(axis=0) - u * (u * du).mean(axis=0)) / np.sqrt(var + 1e-5)
        return {
            "stem/kernel": x.T @ dh,
            "stem/bias": dh.sum(axis=0),
            "neck/scale": np.sum(dv * unit, axis=0),
            "attnpool/kernel": h.T @ dg,
            "attnpool/bias": dg.sum(axis=0),
        }


class Adam:
    """Adam of one tensor with the L2 penalty in its gradient."""

    def __init__(self, decay):
        self.decay, self.count, self.m, self.v = decay, 0, 0.0, 0.0

    def step(self, value, gradient, rate):
        """The value after a step."""
        gradient = gradient + self.decay * value
        self.count += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9**self.count), self.v / (1 - 0.999**self.count)
        return value - rate * m / (np.sqrt(v) + 1e-8)
