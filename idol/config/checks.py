"""Rules for the fields of a configuration: each function checks the named fields of its owner."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def within(owner: object, low: float, high: float, *names: str) -> None:
    """Check that the fields lie in [low, high]."""
    for name in names:
        value = getattr(owner, name)
        require(low <= value <= high, f"{name} must lie in [{low}, {high}], got {value}")


def unit(owner: object, *names: str) -> None:
    """Check that the fields lie in [0, 1]."""
    within(owner, 0, 1, *names)


def positive(owner: object, *names: str) -> None:
    """Check that the fields are above 0, and finite."""
    for name in names:
        value = getattr(owner, name)
        require(0 < value < float("inf"), f"{name} must be positive, got {value}")


def not_negative(owner: object, *names: str) -> None:
    """Check that the fields are 0 or more, and finite."""
    for name in names:
        value = getattr(owner, name)
        require(0 <= value < float("inf"), f"{name} must be >= 0, got {value}")


def at_most(owner: object, limit: int, *names: str) -> None:
    """Check numbers, or lists of them, that decide how much memory is asked for.

    limit: far above any use, so that what is above it is a typing error
    """
    for name in names:
        value = getattr(owner, name)
        largest = max(value, default=0) if isinstance(value, tuple) else value or 0
        require(largest <= limit, f"{name} must be at most {limit}, got {largest}")
