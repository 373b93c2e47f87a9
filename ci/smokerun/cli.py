"""ci/smoke's command line: from values to an exit code."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import textwrap
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml
from localcluster.settings import REPOSITORY

from giblet.errors import GibletError
from smokerun.cluster import Cluster
from smokerun.dataset import delete_run, publish_example, reaching
from smokerun.errors import EXIT_INTERRUPTED, EXIT_SAFE, EXIT_UNSAFE, RunFailedError, SmokeError, ValuesError
from smokerun.release import Release, Values, with_image
from smokerun.watching import Outcome, Watching

SMOKE_VALUES = REPOSITORY / "configs/cpu-smoke.yaml"
DATA_KEY = "config.data.prepared"

DESCRIPTION = """\
Does this change still train? Installs helm/giblet with a small run, follows the logs of workers and verifier, waits for
the verdict, and takes everything away again. For a lab's CI, and for people.

    ci/smoke --image registry.example.org/lab/giblet:1 -f configs/cluster/YOURS.yaml

YOURS.yaml is what your other runs use too: s3.existingSecret, config.checkpoint.url, tolerations and the like.
"""
EPILOG = """\
data: --dataset, or what the values name (config.data.prepared; or data.existingClaim, config.data.bids). Otherwise four
minutes of the example film with a simulated brain are prepared here once and published to the bucket.

exit codes:
  0  the job succeeded, and its last checkpoint is SAFE (or SAFE WITH WARNINGS)
  1  verification says UNSAFE
  2  command line or values are wrong; nothing was created
  3  the job failed, or its verification ended without a verdict
  4  it could not start: cluster, operator, namespace, secret, image or capacity; the message says which
  5  it was not over within --timeout
  130  interrupted
In every case the release is uninstalled, and after a SAFE one its checkpoints are deleted too, unless --keep is given.
What led to any other end stays in the bucket to look into, and so does a dataset.
"""


@dataclass(frozen=True)
class Result:
    """What `--json` prints."""

    exit_code: int
    outcome: str
    reason: str
    remedy: str | None
    release: str
    namespace: str
    run: str | None
    job: str | None
    verdict: str | None
    verified_step: int | None
    report: str | None
    checkpoints: str | None
    seconds: dict[str, float]
    cleaned_up: bool


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    arguments = argparse.ArgumentParser("ci/smoke", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    add = arguments.add_argument
    add(
        "-f",
        "--values",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="values on top of the smoke run's",
    )
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as helm's")
    add("--image", metavar="REF", help="REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:…; else the values must name one")
    add("--dataset", metavar="URL", help="a published prepared dataset: s3://…/datasets/HASH")
    add("--base", type=Path, default=SMOKE_VALUES, metavar="FILE", help="the smoke run itself (configs/cpu-smoke.yaml)")
    add("-n", "--namespace", default="giblet", metavar="NS", help="where to run (giblet)")
    add("--kube-context", metavar="NAME", help="of KUBECONFIG, of ~/.kube/config, else of ci/cluster (the current one)")
    add("--release", metavar="NAME", help="the release's name (giblet-smoke- and six letters)")
    add("--timeout", type=float, default=1800, metavar="SECONDS", help="for everything from the install on (1800)")
    add("--patience", type=float, default=60, metavar="SECONDS", help="a pod may be without node or image so long (60)")
    add("--keep", action="store_true", help="leave the release and its checkpoints there")
    add("--json", action="store_true", help="print the result as JSON; everything else goes to standard error")
    return arguments


def main() -> NoReturn:
    """Run it, and exit with its code."""
    options = parser().parse_args()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        smoke = Smoke(options)
    except SmokeError as error:
        print(f"ci/smoke: {error.word}: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(smoke.run())


class Smoke:
    """One smoke run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.began = time.monotonic()
        self.seconds: dict[str, float] = {}
        overlay = with_image(options.image) if options.image else ()
        overlay += ((DATA_KEY, options.dataset), ("config.data.bids", None)) if options.dataset else ()
        values = Values((options.base, *options.values), tuple(options.set), overlay)
        name = options.release or f"giblet-smoke-{secrets.token_hex(3)}"
        self.release = Release(name, options.namespace, options.kube_context, values)
        self.installed = False

    def say(self, line: str) -> None:
        """One line for people."""
        print(line, file=sys.stderr if self.options.json else sys.stdout, flush=True)

    def run(self) -> int:
        """Everything, and clean up after it; returns the exit code."""
        outcome: Outcome | None = None
        try:
            outcome = self._train()
            code, word, reason, remedy = _judge(outcome)
        except SmokeError as error:
            code, word, reason, remedy = error.exit_code, error.word, error.message, error.remedy
        except KeyboardInterrupt:
            code, word, reason, remedy = EXIT_INTERRUPTED, "interrupted", "stopped before the verdict", None
        cleaned_up = self._clean_up(evidence=code != EXIT_SAFE)
        self.seconds["total"] = round(time.monotonic() - self.began, 1)
        result = self._result(code, word, reason, remedy, outcome, cleaned_up)
        if self.options.json:
            print(json.dumps(asdict(result), indent=2))
        else:
            self.say(_text(result))
        return code

    def _train(self) -> Outcome:
        for file in (self.options.base, *self.options.values):
            _readable(file)
        cluster = Cluster(self.options.kube_context, self.options.namespace)
        data_is_named = self.release.values.name_data
        if not data_is_named:  # so that the rest can be looked at before a dataset is made
            self._name_data(f"{self._bucket()}/datasets/to-be-published")
        self.release.objects  # noqa: B018  (rendered here, so that wrong values come first)
        cluster.check(self.release)
        if not data_is_named:
            with reaching(self.release.config, self._secret(cluster), self.options.kube_context) as config:
                address = publish_example(config, self.say)
            self._name_data(address)
        if not self.release.verifies:
            raise ValuesError("verify.enabled is false, so that there would be no verdict", remedy="leave it true")
        self.say(f"install: release {self.release.name} in namespace {self.release.namespace}")
        self.installed = True
        self.release.install()
        deadline = time.monotonic() + self.options.timeout
        watching = Watching(cluster, self.release, self.say, deadline, self.options.patience, self.seconds)
        return watching.until_the_end()

    def _bucket(self) -> str:
        """Where published datasets lie, read from the values as helm merges them."""
        self._name_data("s3://bucket/datasets/to-be-published")
        return str(self.release.config.checkpoint.url).rstrip("/")

    def _name_data(self, address: str) -> None:
        """The same release, trained on this dataset."""
        kept = tuple(item for item in self.release.values.overlay if item[0] != DATA_KEY)
        overlay = (*kept, (DATA_KEY, address), ("config.data.bids", None))
        self.release = replace(self.release, values=replace(self.release.values, overlay=tuple(dict(overlay).items())))

    def _secret(self, cluster: Cluster) -> dict[str, str]:
        """The workers' credentials, as their environment has them; {} where they have an identity instead."""
        own = {
            item["metadata"]["name"]: item["stringData"] for item in self.release.objects if item["kind"] == "Secret"
        }
        found = {}
        for variable, (secret, key) in self.release.credentials().items():
            found[variable] = own[secret][key] if secret in own else cluster.secret(secret, {key})[key]
        return found

    def _clean_up(self, *, evidence: bool) -> bool:
        """Whether the release is gone, and what it wrote to the bucket too unless that is `evidence`.

        A second Ctrl-C ends it, and the last line says what to do by hand.
        """
        if not self.installed:
            return True
        if self.options.keep:
            self.say(f"kept: helm -n {self.release.namespace} uninstall {self.release.name}  removes it")
            return False
        try:
            self.say("clean up")
            self.release.uninstall()
            cluster = Cluster(self.options.kube_context, self.options.namespace)
            cluster.wait_until_gone(self.release)
            if evidence:
                return True
            with reaching(self.release.config, self._secret(cluster), self.options.kube_context) as config:
                delete_run(config)
            return True
        except (SmokeError, GibletError) as error:
            self.say(f"clean up: {error}")
        except KeyboardInterrupt:
            self.say(f"not cleaned up: helm -n {self.release.namespace} uninstall {self.release.name}")
        return False

    def _result(
        self, code: int, word: str, reason: str, remedy: str | None, outcome: Outcome | None, cleaned_up: bool
    ) -> Result:
        run = self.release.config.run.name if self.installed else None
        kept = run is not None and (code != EXIT_SAFE or not cleaned_up)
        checkpoints = f"{self.release.config.checkpoint.url.rstrip('/')}/runs/{run}/checkpoints" if kept else None
        found = outcome or Outcome(None, "", None, None, None)
        return Result(
            code, word, reason, remedy, self.release.name, self.release.namespace, run, found.job, found.verdict,
            found.verified_step, found.report if kept else None, checkpoints, self.seconds, cleaned_up,
        )  # fmt: skip


def _judge(outcome: Outcome) -> tuple[int, str, str, str | None]:
    """Exit code, word, reason and remedy of a run that has a verdict."""
    if outcome.verdict is not None and outcome.verdict.startswith("SAFE"):
        if outcome.job != "Succeeded":
            message = f"the job failed ({outcome.job_message}); the checkpoint it left is {outcome.verdict}"
            return RunFailedError.exit_code, "failed", message, "the workers' logs above say why"
        return EXIT_SAFE, "safe", f"{outcome.verdict} at step {outcome.verified_step}", None
    return EXIT_UNSAFE, "unsafe", f"{outcome.verdict} (job: {outcome.job})", "the report names each offending tensor"


def _readable(file: Path) -> None:
    try:
        found: Any = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValuesError(f"{file} cannot be read: {error}") from None
    if found is not None and not isinstance(found, dict):
        raise ValuesError(f"{file} is no values file: it has no keys")


def _text(result: Result) -> str:
    """The last lines for people."""
    lines = [f"{result.outcome.upper()}: {result.reason}"]
    if result.remedy:
        lines.append(textwrap.indent(f"remedy: {result.remedy}", "  "))
    if result.report:
        lines.append(f"  report: {result.report}")
    lines.append("  " + ", ".join(f"{name} {seconds} s" for name, seconds in result.seconds.items()))
    return "\n".join(lines)
