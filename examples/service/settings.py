"""What can be set, from environment variables: ``MBEXPORT_`` and a field's name in capitals."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mbexport.errors import InputError

PREFIX = "MBEXPORT_"
# What is beyond max_length is cut, but only after it was tokenized, which takes some 250 bytes a character.
CHARS_PER_TOKEN, LEAST_CHARS = 32, 100_000
log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Settings:
    """Where 0 is allowed it is said what it means; times are in seconds."""

    bundle: str = "mbexport-out"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0  # 0: the runtime decides
    require_device: str = ""  # refuse to start on another than this, e.g. cuda

    listen: str = "127.0.0.1:8000"
    max_connections: int = 1000  # beyond it all but /health and /metrics answer 503; beyond twice as many they are cut
    max_requests: int = 128  # in flight; each may hold a body of max_body_bytes
    max_body_bytes: int = 2_000_000
    max_texts: int = 1000  # of a request; of multiple choice every choice counts
    max_chars: int = 0  # of a text; 0: 32 for each token that the model takes, 100,000 at least
    max_numbers: int = 2_000_000  # in the vectors of an answer; without pooling each token has one
    read_timeout: float = 10.0  # until a request's headers are there, and then until its body is
    timeout: float = 30.0  # until its answer is

    max_waiting: int = 1024  # texts in the queue
    max_waiting_tokens: int = 0  # tokens in the queue; 0: 4 times what keeps the device busy
    max_batch_tokens: int = 0  # tokens computed together; 0: as many as keep the device busy
    max_delay: float = 0.0  # that a batch waits to fill while the device is idle

    ready_window: float = 15.0  # ready: a forward pass succeeded in it
    dead_after: float = 60.0  # live: one succeeded in it, tried every ready_window / 3
    drain_timeout: float = 25.0  # after SIGTERM; Kubernetes kills after 30

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of ``listen``."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """The settings that an environment makes; a name that is close to none of them is only warned of.

        Raises:
            InputError: a value is not what its setting takes.
        """
        kinds = {PREFIX + field.name.upper(): (field.name, type(field.default)) for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in environment.items():
            if name in kinds:
                field, kind = kinds[name]
                values[field] = _value(name, text, kind)
            elif name.startswith(PREFIX):  # Kubernetes sets such names itself for a Service called mbexport
                log.warning("%s is no setting of this service; those are %s", name, ", ".join(kinds))
        settings = cls(**values)
        host, _, port = settings.listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise InputError(f"{PREFIX}LISTEN is {settings.listen!r:.80}, expected HOST:PORT, e.g. 0.0.0.0:8000")
        if settings.dead_after <= settings.ready_window:
            raise InputError(
                f"{PREFIX}DEAD_AFTER is {settings.dead_after:g} s, expected more than "
                f"{PREFIX}READY_WINDOW, {settings.ready_window:g} s"
            )
        return settings


ZERO = {"threads", "max_chars", "max_waiting_tokens", "max_batch_tokens", "max_delay"}  # numbers that may be 0


def _value(name: str, text: str, kind: type) -> str | int | float:
    if kind is str:
        return text
    try:
        value: int | float = kind(text)
    except ValueError:
        value = -1
    least = 0 if name.removeprefix(PREFIX).lower() in ZERO else 1 if kind is int else 1e-3
    if not least <= value < float("inf"):
        number = "a whole number" if kind is int else "a number of seconds"
        raise InputError(f"{name} is {text!r:.80}, expected {number} from {least:g}")
    return value
