"""giblet trains a multimodal autoencoder that predicts fMRI from a movie, and says whether its weights can be trusted."""

__version__ = "0.1.0"
