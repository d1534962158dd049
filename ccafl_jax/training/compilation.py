"""Compiled programs: kept on disk for the next start, and looked at before a long run."""

import logging
import os
import pathlib
from typing import Any

import jax

OFF = "off"

log = logging.getLogger("ccafl_jax")


def default_folder() -> pathlib.Path:
    """`ccafl_jax/compiled` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "ccafl_jax" / "compiled"


def keep_compiled(folder: str = "") -> str:
    """Keeps compiled programs on disk, so that a program is compiled once for a kind of machine.

    Args:
      folder: where; JAX_COMPILATION_CACHE_DIR or `default_folder` when empty, "off" for nowhere.

    Returns:
      The folder, empty for "off".
    """
    if folder == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return ""
    folder = folder or os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(default_folder())
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    log.info("compiled programs are kept in %s", folder)
    return folder


def costs(compiled: Any) -> dict[str, float]:
    """What a compiled program takes on each device.

    Args:
      compiled: from `jitted.lower(...).compile()`.

    Returns:
      arguments, outputs, temporary: bytes; peak: bytes in use at once, where outputs may lie in
      donated arguments; flops: of one call, as the compiler counts them (0 where it does not).
    """
    memory = compiled.memory_analysis()
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    peak = sum(sizes.values()) - memory.alias_size_in_bytes
    return {**sizes, "peak": peak, "flops": float(analysis.get("flops", 0.0))}
