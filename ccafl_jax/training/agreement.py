"""What one process builds on the host, and all of them use.

What comes of near-tied floats may differ between hosts. It is built by the first process and sent
to the others through the store of JAX's coordinator, so that they may wait for it for minutes,
outside any collective.
"""

import base64
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from ccafl_jax.training.peers import is_alone
from ccafl_jax.training.processes import are_several, is_first, jax_state

T = TypeVar("T")

_PART = 1 << 20
"""Bytes of a value of the store."""

_POLL_SECONDS = 5
"""That one question to the store may take; it is asked again as often as needed."""

_ERRORS = (ValueError, OSError)
"""What users can mend, and keeps its kind on other processes."""

_rounds = itertools.count()
"""Numbers the calls of `from_first`, alike on all processes."""


def from_first(build: Callable[[], T]) -> T:
    """What the first process builds, on all of them; every process must call this.

    Others wait as long as the first one lives. All compare the sha256 of what they have.

    Args:
      build: called by the first process only; returns what JSON can hold, tuples and arrays of
        NumPy included, with strings as keys.

    Raises:
      Exception: what `build` raised; on the other processes a ValueError, an OSError or a
        RuntimeError with the same words.
      TypeError: a value of another type, where it has to be sent.
    """
    if not are_several() or is_alone():
        return build()
    store = _Round(f"ccafl_jax/agreed/{next(_rounds)}")
    if not is_first():
        return _unpack(json.loads(store.receive()))
    try:
        message = json.dumps(_pack(build())).encode()
    except Exception as error:
        store.send_error(error)
        raise
    store.send(message)
    return _unpack(json.loads(message))


@dataclasses.dataclass
class _Round:
    """One value on its way from the first process, in the coordinator's store.

    Attributes:
      folder: of its keys.
    """

    folder: str

    def send(self, message: bytes) -> None:
        """Sends to all, and compares what they received; then the store forgets it."""
        parts = range(0, len(message), _PART)
        for number, at in enumerate(parts):
            jax_state().client.key_value_set_bytes(
                f"{self.folder}/part/{number}", message[at : at + _PART]
            )
        digest = hashlib.sha256(message).hexdigest()
        self._set("head", {"parts": len(parts)})
        others = range(1, jax_state().num_processes)
        received = {index: self._wait(f"received/{index}") for index in others}
        other = [index for index, found in received.items() if found != digest]
        error = f"process {other[0]} received other values than process 0 sent" if other else ""
        jax_state().client.key_value_delete(f"{self.folder}/part")
        self._set("verdict", {"error": error})
        if error:
            raise RuntimeError(error)

    def send_error(self, error: Exception) -> None:
        """Tells the others that there is no value."""
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = next((kind for kind in _ERRORS if isinstance(error, kind)), RuntimeError)
        self._set("head", {"error": words, "kind": kind.__name__})

    def receive(self) -> bytes:
        """Waits for the value."""
        head = self._wait("head")
        if "error" in head:
            kinds = {kind.__name__: kind for kind in (*_ERRORS, RuntimeError)}
            raise kinds[head["kind"]](head["error"])
        message = b"".join(
            jax_state().client.blocking_key_value_get_bytes(f"{self.folder}/part/{number}", 60_000)
            for number in range(head["parts"])
        )
        self._set(f"received/{jax_state().process_id}", hashlib.sha256(message).hexdigest())
        if error := self._wait("verdict")["error"]:
            raise RuntimeError(error)
        return message

    def _set(self, name: str, value: Any) -> None:
        jax_state().client.key_value_set(f"{self.folder}/{name}", json.dumps(value))

    def _wait(self, name: str) -> Any:
        """A value that some process will set; if that one is gone, so is this one, see `Peers`."""
        while True:
            try:
                found = jax_state().client.blocking_key_value_get(
                    f"{self.folder}/{name}", _POLL_SECONDS * 1000
                )
                return json.loads(found)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise


def _pack(value: Any) -> Any:
    """A value as JSON can hold it; arrays and tuples are marked."""
    if isinstance(value, jax.Array | np.ndarray | np.generic) and value.dtype != object:
        value = np.asarray(value)
        name = value.dtype.name if value.dtype.kind == "V" else value.dtype.str  # V: bfloat16
        return {"__array__": [name, value.shape, base64.b64encode(value.tobytes()).decode()]}
    if isinstance(value, tuple):
        return {"__tuple__": [_pack(x) for x in value]}
    if isinstance(value, list):
        return [_pack(x) for x in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _pack(x) for key, x in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{type(value).__name__} cannot be sent to other processes: {value!r:.80}")


def _unpack(value: Any) -> Any:
    """Inverse of `_pack`."""
    if isinstance(value, list):
        return [_unpack(x) for x in value]
    if not isinstance(value, dict):
        return value
    if "__array__" in value:
        dtype, shape, data = value["__array__"]
        array = np.frombuffer(bytearray(base64.b64decode(data)), np.dtype(dtype)).reshape(shape)
        return array if shape else array[()]
    if "__tuple__" in value:
        return tuple(_unpack(x) for x in value["__tuple__"])
    return {key: _unpack(x) for key, x in value.items()}
