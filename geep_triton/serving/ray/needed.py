"""Ray is an extra."""

from __future__ import annotations

import importlib.util


def check_ray() -> None:
    """Raise ImportError, which says what to install, where Ray is missing."""
    if importlib.util.find_spec("ray") is None:
        raise ImportError("this needs Ray: pip install 'geep-triton[ray]'")
