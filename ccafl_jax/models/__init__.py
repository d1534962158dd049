"""Networks as flax.nnx modules: backbones, shared layers and prompts. They know no loss."""
