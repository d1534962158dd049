"""Eight CPU devices for every test, and quick compilation, set before JAX starts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    # Tests compile far longer than they run.
    "--xla_backend_optimization_level": "0",
}
_given = os.environ.get("XLA_FLAGS", "")
_added = [f"{flag}={value}" for flag, value in _FLAGS.items() if flag not in _given]
os.environ["XLA_FLAGS"] = " ".join([_given, *_added]).strip()
