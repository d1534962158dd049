"""CLIP: configuration, image and text towers, weights and tokenizer."""

from ccafl_jax.models.clip.config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    parse_config,
    read_config,
)
from ccafl_jax.models.clip.model import CLIP
from ccafl_jax.models.clip.resnet import ModifiedResNet
from ccafl_jax.models.clip.text import TextTransformer
from ccafl_jax.models.clip.tokenizer import Tokenizer
from ccafl_jax.models.clip.weights import load_clip, load_reid_tensors, save_clip

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ModifiedResNet",
    "ResNetConfig",
    "TextConfig",
    "TextTransformer",
    "Tokenizer",
    "load_clip",
    "load_reid_tensors",
    "parse_config",
    "read_config",
    "save_clip",
]
