"""Eight CPU devices for every test, and little compilation, set before JAX starts."""

import atexit
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    # Tests compile far longer than they run.
    "--xla_backend_optimization_level": "0",
}
_given = os.environ.get("XLA_FLAGS", "")
_added = [f"{flag}={value}" for flag, value in _FLAGS.items() if flag not in _given]
os.environ["XLA_FLAGS"] = " ".join([_given, *_added]).strip()

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one process of the session compiled, the others, and the commands they call, read.
    _compiled = tempfile.TemporaryDirectory(prefix="compiled")
    atexit.register(_compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
