"""promtool and Prometheus for tests, and which metrics a query names."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from giblet.telemetry.metrics import METRICS
from tests.support.cluster import REPOSITORY

RULES = REPOSITORY / "helm/giblet/files/monitoring/rules.yaml"
DASHBOARDS = REPOSITORY / "helm/giblet/files/monitoring"
EXTERNAL = {"DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE",
            "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "ALERTS", "up"}  # fmt: skip
"""Metrics of others: of NVIDIA's dcgm-exporter, and Prometheus's own."""
_NAME = re.compile(r"(?<![\w:.$])(?:giblet[_:][\w:]+|DCGM_\w+|ALERTS|up)(?![\w:(])")


@cache
def program(name: str) -> Path:
    """prometheus or promtool as ci/cluster builds them; skips where they cannot be built and are not installed."""
    from localcluster.settings import Paths
    from localcluster.tools import Toolbox

    path = Toolbox(Paths.from_environment().cache).go(name)
    if path.exists():
        return path
    installed = shutil.which(name)
    if installed is None:
        pytest.skip(f"{name} is neither installed nor built (ci/cluster build)")
    return Path(installed)


@contextlib.contextmanager
def pushgateway() -> Iterator[str]:
    """A real Pushgateway on loopback, Debian's; yields its address."""
    from localcluster.settings import Paths
    from localcluster.tools import Toolbox

    name = "prometheus-pushgateway"
    path = Toolbox(Paths.from_environment().cache).debian(name)
    found = str(path) if path.exists() else shutil.which(name) or shutil.which("pushgateway")
    if found is None:
        pytest.skip(f"{name} is neither installed nor unpacked (ci/cluster build)")
    address = f"127.0.0.1:{free_port()}"
    command = [found, f"--web.listen-address={address}", "--persistence.file=", "--log.level=error"]
    with subprocess.Popen(command) as process:
        try:
            _wait_until_ready(f"http://{address}/-/ready", process)
            yield f"http://{address}"
        finally:
            process.terminate()


def promtool() -> Path:
    """The path of promtool."""
    return program("promtool")


def known_metrics() -> set[str]:
    """Every series name that giblet exports, and those of others that dashboards and rules use."""
    names = set(EXTERNAL)
    for metric in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names.update(metric.full_name + suffix for suffix in suffixes)
    return names


def metrics_in(query: str) -> set[str]:
    """Names of metrics and recorded series in a query; alternatives in a `__name__` matcher too."""
    bare = re.sub(r'(?<!__name__=~)"[^"]*"', '""', query)
    return set(_NAME.findall(bare.replace("|", " ").replace('"', " ")))


@dataclass(frozen=True)
class Target:
    """What Prometheus scrapes, with the labels that the cluster's discovery would add."""

    job: str
    port: int
    labels: dict[str, str]


class Prometheus:
    """A real server on loopback, scraping each half second and evaluating giblet's rules each second.

    A series counts as gone `lookback_seconds` after its last sample, if not before.
    """

    def __init__(
        self, folder: Path, targets: Sequence[Target], *, rules: Path = RULES, lookback_seconds: float = 300.0
    ) -> None:
        self.port = free_port()
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {
                    "job_name": target.job,
                    "honor_labels": True,
                    "static_configs": [{"targets": [f"127.0.0.1:{target.port}"], "labels": target.labels}],
                }
                for target in targets
            ],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.log = folder / "prometheus.log"
        command = [
            program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}", "--enable-feature=exemplar-storage", "--log.level=warn",
            f"--query.lookback-delta={round(lookback_seconds * 1000)}ms",
        ]  # fmt: skip
        with self.log.open("w") as stream:
            self._process = subprocess.Popen(command, stdout=stream, stderr=stream)

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its HTTP interface; raises `AssertionError` with the message of a refused one."""
        address = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def wait_until_ready(self) -> None:
        """Returns once it answers."""
        try:
            _wait_until_ready(f"http://127.0.0.1:{self.port}/-/ready", self._process)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()}") from None

    def samples(self, query: str) -> list[dict[str, Any]]:
        """The series of an instant query that have a number now."""
        found = self.get("query", query=query)["result"]
        return [series for series in found if series["value"][1] != "NaN"]

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)


def _wait_until_ready(address: str, process: subprocess.Popen[Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:  # refused, or 503 as yet
            assert process.poll() is None, f"it ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{address} did not answer in time"
            time.sleep(0.1)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def serving_text(text: str) -> Iterator[int]:
    """Recorded samples as an exporter would answer them; yields the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def queries_of(dashboard: dict[str, Any]) -> dict[str, str]:
    """Every query of a dashboard, panels' and annotations', by where it stands."""
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in _panels(dashboard["panels"])
        for target in panel.get("targets", ())
    }
    for entry in dashboard.get("annotations", {}).get("list", ()):
        found[f"annotation {entry['name']}"] = entry["expr"]
    return found


def _panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", []))
