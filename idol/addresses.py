"""Addresses of files on other machines, and how they may be shown: without what may be a secret."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"[A-Za-z][\w+.\-]*://[^\s'\"<>]*[^\s'\"<>.,;:)\]]")
_AT_PLACE = frozenset({"hf", "abfs", "abfss", "wasb", "wasbs"})
"""Schemes with an @ after the name of a revision or container, not of a user."""


def is_remote(source: str) -> bool:
    """Whether a source is a reference to another machine, and no path."""
    return "://" in source


def shown(source: str) -> str:
    """A source as messages, logs and stored files may have it: without user, password, query and
    fragment, but for the number of a frame (video.mp4#12)."""
    if not is_remote(source):
        return source
    scheme, _, rest = source.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    user, _, place = host.rpartition("@")
    host = host if scheme.lower() in _AT_PLACE and ":" not in user else place
    frame = re.search(r"#\d+\Z", rest)
    return f"{scheme}://{host}{slash}{path}{frame[0] if frame else ''}"


def without_secrets(text: str) -> str:
    """A text with every address in it as `shown`."""
    return _ADDRESS.sub(lambda found: shown(found[0]), text)
