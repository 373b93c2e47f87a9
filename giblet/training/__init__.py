"""The loop that trains, and everything that only it needs.

`train` runs in this process, alone or as a rank of torchrun's; `launch_processes` starts several on this machine.
"""

from giblet.training.loop import TrainResult, train
from giblet.training.processes import launch_processes

__all__ = ["TrainResult", "launch_processes", "train"]
