"""giblet trains a multimodal autoencoder that predicts fMRI from a movie, and judges its weights."""

__version__ = "0.1.0"
