"""What an image tower must compute and move at the least, product by product.

The counts follow the definition of the towers, not a compiler's report: products only, attention
pool for its one query, no input gradient for images. They are what encoders.py divides by, and the
floors it compares with.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator

from ccafl_jax.models.clip import ResNetConfig, ViTConfig

Shape = tuple[str, int, int, int, int]
"""Kind of a product ("forward", "input" or "weight" gradient), how many at once, m, k, n."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """`count` products [rows, inner] x [inner, columns]; a convolution is one over its windows.

    Attributes:
      group: of layers, as reported.
      read: activations read, in elements.
      written: activations written, in elements.
      weights: parameters, in elements.
      first: whether its input are the images, which need no gradient.
    """

    group: str
    rows: int
    inner: int
    columns: int
    count: int = 1
    read: int
    written: int
    weights: int
    first: bool = False

    def flops(self, *, train: bool) -> int:
        """Operations forward, or forward and backward."""
        passes = 1 if not train else 2 if self.first else 3
        return passes * 2 * self.count * self.rows * self.inner * self.columns

    def bytes(self, *, train: bool, width: int) -> int:
        """Bytes moved when everything between two products is fused into them.

        Forward reads input and float32 weights and writes the output. Backward reads input, weights
        and the output's gradient, and writes the gradients of input and weights.
        """
        forward = width * (self.read + self.written) + 4 * self.weights
        if not train:
            return forward
        backward = width * (self.read + self.written) + 8 * self.weights
        return forward + backward + (0 if self.first else width * self.read)

    def shapes(self) -> Iterator[Shape]:
        """The products of a training step."""
        kinds = ("forward", "weight") if self.first else ("forward", "weight", "input")
        for kind in kinds:
            yield kind, self.count, self.rows, self.inner, self.columns


def products(vision: ResNetConfig | ViTConfig, *, embed_dim: int, batch: int) -> list[Product]:
    """All products of a tower, in order."""
    kind = _vit if isinstance(vision, ViTConfig) else _resnet
    return list(kind(vision, embed_dim, batch))


def flops(work: list[Product], *, train: bool) -> int:
    """Operations of one step."""
    return sum(product.flops(train=train) for product in work)


def shapes(work: list[Product]) -> dict[Shape, int]:
    """Distinct products of a training step and how often each occurs."""
    return collections.Counter(shape for product in work for shape in product.shapes())


def floors(
    work: list[Product], *, width: int, flop_rate: float, byte_rate: float
) -> dict[str, dict]:
    """Least seconds of a training step by group of layers.

    Args:
      work: all products.
      width: bytes an activation.
      flop_rate: operations a second of a large square product.
      byte_rate: bytes a second of a large copy, read and written.

    Returns:
      For each group `flops`, `bytes`, `seconds` (each product at whichever rate binds it) and
      `bound`: "FLOPs" or "bytes", the larger part of those seconds.
    """
    result = {}
    for product in work:
        group = result.setdefault(product.group, {"flops": 0, "bytes": 0, "FLOPs": 0.0, "by": 0.0})
        operations = product.flops(train=True)
        moved = product.bytes(train=True, width=width)
        group["flops"] += operations
        group["bytes"] += moved
        computing, moving = operations / flop_rate, moved / byte_rate
        group["FLOPs" if computing > moving else "by"] += max(computing, moving)
    for group in result.values():
        computing, moving = group.pop("FLOPs"), group.pop("by")
        group |= {
            "seconds": computing + moving,
            "bound": "FLOPs" if computing > moving else "bytes",
        }
    return result


def _resnet(vision: ResNetConfig, embed_dim: int, batch: int) -> Iterator[Product]:
    height, width = (side // 2 for side in vision.image_size)
    half = vision.width // 2
    images = batch * math.prod(vision.image_size) * 3

    def conv(group, inputs, outputs, size, before=None):
        pixels = batch * height * width
        return Product(
            group=group,
            rows=pixels,
            inner=size * size * inputs,
            columns=outputs,
            read=before or pixels * inputs,
            written=pixels * outputs,
            weights=size * size * inputs * outputs,
            first=before is not None,
        )

    yield conv("stem", 3, half, 3, before=images)
    yield conv("stem", half, half, 3)
    yield conv("stem", half, vision.width, 3)
    height, width = height // 2, width // 2
    channels = vision.width
    for index, blocks in enumerate(vision.layers):
        group, planes = f"layer{index + 1}", vision.width * 2**index
        stride = (1, 2, 2, vision.last_stride)[index]
        for block in range(blocks):
            yield conv(group, channels, planes, 1)
            yield conv(group, planes, planes, 3)
            if block == 0:
                height, width = height // stride, width // stride
                yield conv(group, channels, 4 * planes, 1)
            yield conv(group, planes, 4 * planes, 1)
            channels = 4 * planes
    yield from _pool(vision, embed_dim, batch)


def _pool(vision: ResNetConfig, embed_dim: int, batch: int) -> Iterator[Product]:
    """Attention of one query a head, carried to the tokens; the tokens are read once."""
    group, channels, tokens = "attention pool", vision.features, 1 + math.prod(vision.grid)
    one = batch * channels
    for outputs in (channels, channels, channels, embed_dim):  # query, key, value, projection
        yield Product(
            group=group,
            rows=batch,
            inner=channels,
            columns=outputs,
            read=one,
            written=batch * outputs,
            weights=channels * outputs,
        )
    seen = {"group": group, "count": batch, "rows": vision.heads, "weights": 0, "written": 0}
    yield Product(inner=channels, columns=tokens, read=tokens * one, **seen)
    yield Product(inner=tokens, columns=channels, read=0, **seen)


def _vit(vision: ViTConfig, embed_dim: int, batch: int) -> Iterator[Product]:
    patches, width = math.prod(vision.grid), vision.width
    tokens = batch * (1 + patches)
    inner = 3 * vision.patch_size**2
    images = batch * math.prod(vision.image_size) * 3

    def linear(group, inputs, outputs, rows=tokens):
        return Product(
            group=group,
            rows=rows,
            inner=inputs,
            columns=outputs,
            read=rows * inputs,
            written=rows * outputs,
            weights=inputs * outputs,
        )

    patch = linear("patch embedding", inner, width, rows=batch * patches)
    yield dataclasses.replace(patch, read=images, first=True)
    head = {"group": "attention", "count": batch * vision.heads, "rows": 1 + patches, "weights": 0}
    size = width // vision.heads
    for _ in range(vision.layers):
        yield linear("attention", width, 3 * width)
        yield Product(inner=size, columns=1 + patches, read=2 * tokens * width, written=0, **head)
        yield Product(
            inner=1 + patches, columns=size, read=tokens * width, written=tokens * width, **head
        )
        yield linear("attention", width, width)
        yield linear("MLP", width, vision.mlp_width)
        yield linear("MLP", vision.mlp_width, width)
    yield linear("projection", width, embed_dim, rows=batch)
