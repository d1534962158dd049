"""TF-CLIP: supervised video re-identification with a memory of CLIP's features, without texts."""
