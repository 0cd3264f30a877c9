"""The warning of a runtime that does not use what it was asked for, or what would be fastest."""

from __future__ import annotations


class FallbackWarning(UserWarning):
    """An engine, a provider or a GPU was passed over; the message says why, and what is used instead."""
