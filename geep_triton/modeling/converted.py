"""How an engine that owns a model changed its weights in place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Converted:
    """How an engine that owns a model changed it in place.

    Attributes:
        layers: dtype of the layers that were laid out for inference, such as "float32" or "int8". The model is then for
            inference only, on its device. None: the layers are unchanged.
        rounded: how the weights were rounded. None: they were not.
    """

    layers: str | None
    rounded: Rounded | None


@dataclass(frozen=True)
class Rounded:
    """Where the weights are that were rounded in place.

    Attributes:
        digest: digest of the weights before.
        dtype: dtype of the weights before.
        source: folder or hub id that has them. A folder is an absolute path.
        version: version of the rounded weights. Once it has changed, the weights before are no longer the model's.
    """

    digest: str
    dtype: str
    source: str
    version: int
