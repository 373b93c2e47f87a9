"""The multimodal autoencoder, its parts, its losses, and what its state must look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from giblet.models.dimensions import Dimensions, resolve_dimensions

if TYPE_CHECKING:
    from giblet.models.autoencoder import MultimodalAutoencoder
    from giblet.models.build import build_model

__all__ = ["Dimensions", "MultimodalAutoencoder", "build_model", "resolve_dimensions"]
_WITH_TORCH = {"MultimodalAutoencoder": "autoencoder", "build_model": "build"}


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
