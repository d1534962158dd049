"""Training: state, optimisers, sharding, checkpoints, extraction and logs. Knows no method."""
