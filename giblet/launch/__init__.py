"""`giblet launch`: a worker pod's entrypoint. torchrun's part in a cluster, under what Kubernetes lacks.

Exit codes that mean something, a restart budget that knows progress, a hang watch, and the cause of every end kept.
"""

from giblet.launch.run import launch
from giblet.launch.server import serve_rendezvous
from giblet.launch.settings import LaunchSettings, read_settings

__all__ = ["LaunchSettings", "launch", "read_settings", "serve_rendezvous"]
