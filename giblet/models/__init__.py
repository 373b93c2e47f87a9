"""The multimodal autoencoder, its parts, its losses, and what its state must look like."""

from giblet.models.autoencoder import MultimodalAutoencoder
from giblet.models.build import Dimensions, build_model, resolve_dimensions

__all__ = ["Dimensions", "MultimodalAutoencoder", "build_model", "resolve_dimensions"]
