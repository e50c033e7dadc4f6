"""What the fields of a configuration have to satisfy."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Raise ValueError with that message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def unit(owner: object, *names: str) -> None:
    """Check that the named fields of a configuration lie in [0, 1]."""
    for name in names:
        value = getattr(owner, name)
        require(0.0 <= value <= 1.0, f"{name} must lie in [0, 1], got {value}")


def positive(owner: object, *names: str) -> None:
    """Check that the named fields of a configuration are above 0."""
    for name in names:
        value = getattr(owner, name)
        require(value > 0, f"{name} must be positive, got {value}")
