"""Exact similarities and nearest neighbours in blocks, for ranking, pseudo labels and search."""
