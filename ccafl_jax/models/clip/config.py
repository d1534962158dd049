"""Sizes of a CLIP model."""

import dataclasses

ACTIVATIONS = ("quick_gelu", "gelu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes of the image tower of CLIP's ResNets.

    Attributes:
      layers: residual blocks in each of the four stages.
      width: channels after the stem; the last map has 32 times as many.
      image_size: height and width in pixels.
      last_stride: stride of the fourth stage: 2 as published by CLIP, 1 for re-identification.
    """

    layers: tuple[int, int, int, int]
    width: int
    image_size: tuple[int, int]
    last_stride: int = 2

    def __post_init__(self):
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise ValueError(f"vision layers are {self.layers}; a ResNet states four counts")
        if self.last_stride not in (1, 2):
            raise ValueError(f"last_stride is {self.last_stride}; choose 1 or 2")
        stride = 16 * self.last_stride
        if any(side % stride for side in self.image_size):
            raise ValueError(
                f"image size {self.image_size} is not a multiple of the total stride {stride}"
            )

    @property
    def features(self) -> int:
        """Channels of the last map."""
        return 32 * self.width

    @property
    def heads(self) -> int:
        """Heads of the attention pool."""
        return max(1, self.width * 32 // 64)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the last map."""
        stride = 16 * self.last_stride
        return self.image_size[0] // stride, self.image_size[1] // stride


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of the image tower of CLIP's vision transformers.

    Attributes:
      layers: transformer blocks, two or more.
      width: size of the residual stream.
      heads: attention heads.
      mlp_width: hidden size of the perceptrons.
      patch_size: side of a patch in pixels.
      image_size: height and width in pixels; pixels beyond the last whole patch are not seen.
      stride: pixels from patch to patch: `patch_size` as published by CLIP; less makes patches
        overlap (12 of 16 in re-identification).
    """

    layers: int
    width: int
    heads: int
    mlp_width: int
    patch_size: int
    image_size: tuple[int, int]
    stride: int

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"{self.heads} image heads do not divide the width {self.width}")
        if self.layers < 2:
            raise ValueError(f"an image tower of {self.layers} blocks; it needs two or more")
        if not 1 <= self.stride <= self.patch_size:
            raise ValueError(
                f"patch stride {self.stride} must lie between 1 and the patch size "
                f"{self.patch_size}"
            )
        if min(self.image_size) < self.patch_size:
            raise ValueError(
                f"image size {self.image_size} is smaller than a patch of {self.patch_size} pixels"
            )

    @property
    def features(self) -> int:
        """Size of a token."""
        return self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Patches from top to bottom and from left to right."""
        height, width = ((s - self.patch_size) // self.stride + 1 for s in self.image_size)
        return height, width


VisionConfig = ResNetConfig | ViTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the text tower.

    Attributes:
      vocab: number of tokens.
      context: number of positions.
      width: size of the residual stream.
      heads: attention heads.
      layers: transformer blocks.
      mlp_width: hidden size of the perceptrons; 0 means four times the width.
    """

    vocab: int
    context: int
    width: int
    heads: int
    layers: int
    mlp_width: int = 0

    def __post_init__(self):
        if not self.mlp_width:
            object.__setattr__(self, "mlp_width", 4 * self.width)
        if self.width % self.heads:
            raise ValueError(f"{self.heads} text heads do not divide the width {self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """A CLIP model.

    Attributes:
      embed_dim: size of the joint space of images and texts.
      vision: the image tower. Its class tells the kind of tower.
      text: the text tower.
      activation: of the transformer blocks: "quick_gelu" (x * sigmoid(1.702 x)) or "gelu" (exact).
    """

    embed_dim: int
    vision: VisionConfig
    text: TextConfig
    activation: str

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; choose one of {ACTIVATIONS}")

    def for_images(
        self,
        image_size: tuple[int, int] | None = None,
        *,
        last_stride: int | None = None,
        patch_stride: int | None = None,
    ) -> "CLIPConfig":
        """The same model for other images; None keeps what is.

        Args:
          image_size: height and width.
          last_stride: stride of the fourth stage of a ResNet.
          patch_stride: stride of the patches of a ViT.

        Raises:
          ValueError: a patch stride is asked of a ResNet.
        """
        changes = {"image_size": tuple(image_size) if image_size else self.vision.image_size}
        if isinstance(self.vision, ViTConfig):
            changes["stride"] = patch_stride or self.vision.stride
        elif patch_stride:
            raise ValueError(
                f"patch_stride is {patch_stride}, but the image tower is a ResNet, which has no "
                "patches; leave it out"
            )
        else:
            changes["last_stride"] = last_stride or self.vision.last_stride
        return dataclasses.replace(self, vision=dataclasses.replace(self.vision, **changes))
