"""Looking for people among embedded images: compressed galleries, saved indices, results shown.

    index = build(features)                          # of scripts/embed.py, see scoring.feature_set
    found = index.search(query_features, 10)         # indices and scores, best first
    index.save("door.index")
    index = open_index("door.index")                 # mapped into memory

Every search goes through `ccafl_jax.neighbors.top_k`.
"""

from ccafl_jax.search.index import Index, build, open_index

__all__ = ["Index", "build", "open_index"]
