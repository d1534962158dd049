"""CLIP: configuration, image and text towers, weights and tokenizer."""

from ccafl_jax.models.clip.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from ccafl_jax.models.clip.config_files import parse_config, read_config
from ccafl_jax.models.clip.model import CLIP, build_tower
from ccafl_jax.models.clip.resnet import ModifiedResNet
from ccafl_jax.models.clip.text import TextTransformer
from ccafl_jax.models.clip.tokenizer import Tokenizer
from ccafl_jax.models.clip.vit import VisionTransformer
from ccafl_jax.models.clip.weights import load_clip, save_clip

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ModifiedResNet",
    "ResNetConfig",
    "TextConfig",
    "TextTransformer",
    "Tokenizer",
    "ViTConfig",
    "VisionTransformer",
    "build_tower",
    "load_clip",
    "parse_config",
    "read_config",
    "save_clip",
]
