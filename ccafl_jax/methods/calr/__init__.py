"""CALR: purely unsupervised re-identification with camera-aware label refinement."""
