"""The loop that trains, and everything that only it needs."""

from giblet.training.loop import TrainResult, train

__all__ = ["TrainResult", "train"]
