"""`giblet launch` and `giblet rendezvous`: what the cluster's pods run."""

from __future__ import annotations

import argparse
import os

from giblet.commands.common import Verbs, config_arguments, config_of
from giblet.telemetry import logs


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    _add_launch(verbs)
    _add_rendezvous(verbs)


def _add_launch(verbs: Verbs) -> None:
    from giblet.launch.settings import FLAGS

    parser = verbs.add_parser(
        "launch",
        help="a worker pod's entrypoint: torchrun with exit codes, a restart budget and a hang watch",
        description="Meets the other nodes, starts training.processes ranks (or PET_NPROC_PER_NODE), watches them, and "
        "starts them again while that helps. Each flag is also an environment variable, PET_NNODES and so on, which "
        "the operator sets. Without an endpoint this node is alone.",
    )
    config_arguments(parser)
    for name in FLAGS:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"as torchrun's; PET_{name.upper()}")
    parser.set_defaults(verb=_launch)


def _launch(options: argparse.Namespace) -> int:
    from giblet.errors import ConfigError
    from giblet.launch.ending import of_error, write_termination
    from giblet.launch.settings import FLAGS, read_settings, termination_log
    from giblet.storage.embedded import embedded_if_asked

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, and before torch reads it
    try:
        config = config_of(options)
        logs.configure(config.telemetry.log_format, run=config.run.name)
        flags = {name: getattr(options, name) for name in FLAGS}
        settings = read_settings(flags, os.environ, run=config.run.name, gpus=_gpus())
    except ConfigError as error:
        write_termination(termination_log(os.environ), of_error(error), run="")
        raise
    from giblet.launch.run import launch

    with embedded_if_asked(config.checkpoint):
        return launch(config, settings).exit_code


def _gpus() -> int:
    if os.environ.get("PET_NPROC_PER_NODE") not in ("auto", "gpu"):
        return 0
    import torch

    return torch.cuda.device_count()


def _add_rendezvous(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "rendezvous",
        help="host the store where the nodes of a job meet, so that no worker is special",
        description="A torch TCPStore server. Workers reach it as PET_RDZV_ENDPOINT with PET_RDZV_CONF=is_host=0. It "
        "keeps nothing: when it comes back, the workers save and meet again. SIGTERM ends it with 0.",
    )
    parser.add_argument("--port", type=int, default=29400, help="where to listen (29400; 0: a free one, which is said)")
    parser.set_defaults(verb=_rendezvous)


def _rendezvous(options: argparse.Namespace) -> int:
    from giblet.launch.server import serve_rendezvous

    return serve_rendezvous(options.port)
