"""The server: frames of many clients in, instances out, on Ray Serve.

What answers a client's frame lives here; what is asked of a file that somebody has is `stream`.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.serving.server import ServeConfig, run
    from pipelines.serving.sessions import Limits

__all__ = ["Limits", "ServeConfig", "run"]

__getattr__, __dir__ = attach(__name__)
