"""Makes what the library trains on: the synthetic people and the tiny CLIP."""
