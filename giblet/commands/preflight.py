"""`giblet preflight`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from giblet.commands.common import Verbs, config_arguments, config_of, say

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    parser = verbs.add_parser(
        "preflight",
        help="check that a run can work here: storage, permissions, disk, GPUs",
        description="What `helm test` runs. Reads, writes and deletes an object of its own in the bucket, asks the "
        "Kubernetes API what the gate may do (in a cluster), looks at the disk and for GPUs. One line a check; exit 0 "
        "if none fails, else the code of the first failure's kind.",
    )
    config_arguments(parser)
    parser.add_argument("--gpus", type=int, metavar="N", help="this many GPUs must be visible")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.set_defaults(verb=_preflight)


def _preflight(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from giblet.storage.embedded import embedded_if_asked
    from giblet.verify.preflight import Finding, exit_code_of, kubernetes_may, preflight

    config = config_of(options)
    namespace = os.environ.get("GIBLET_NAMESPACE", "")
    known = os.environ.get("KUBECONFIG") or SERVICE_ACCOUNT_TOKEN.exists()
    may = kubernetes_may(namespace) if namespace and known else None
    findings: list[Finding] = []
    with embedded_if_asked(config.checkpoint):
        for finding in preflight(config, gpus=options.gpus, may=may, job=os.environ.get("GIBLET_JOB", "")):
            findings.append(finding)
            if not options.json:
                say(f"{finding.status:<8} {finding.name}: {finding.detail}")
                if finding.remedy:
                    say(f"{'':<8} remedy: {finding.remedy}")
    code = exit_code_of(findings)
    if options.json:
        say(json.dumps({"ok": code == 0, "exit_code": code, "checks": [asdict(one) for one in findings]}, indent=2))
    return code
