"""`giblet gate`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import time
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

from giblet.commands.common import Verbs, config_arguments, config_of, print_result
from giblet.errors import EXIT_CRASHED, ConfigError, GibletError, StoppedError
from giblet.telemetry import logs

if TYPE_CHECKING:
    from giblet.config import GibletConfig
    from giblet.launch.ending import Ending
    from giblet.telemetry.metrics import Metrics
    from giblet.verify.gate import GateResult

log = logs.get_logger(__name__)


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    _add_gate(verbs)


def _add_gate(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "gate",
        help="watch a training job, and end with the verdict on what it leaves",
        description="Watches a PyTorchJob, verifies each checkpoint as it lands if verify.when is each, and always the "
        "last one once the job has ended, succeeded or not. Writes report and verified.json, annotates the job, "
        "records an event on it, serves metrics. Exit 0: SAFE, or SAFE WITH WARNINGS; 1: UNSAFE; anything else: there "
        "is no verdict.",
    )
    config_arguments(parser)
    parser.add_argument("--job", metavar="NAME", help="the PyTorchJob (default: GIBLET_JOB)")
    parser.add_argument("--namespace", metavar="NS", help="its namespace (default: GIBLET_NAMESPACE)")
    parser.add_argument(
        "--forget", action="store_true", help="only remove what the Pushgateway keeps of this run, for an uninstall"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(verb=_gate)


def _gate(options: argparse.Namespace) -> int:
    import logging

    from giblet.launch.ending import Ending, of_error
    from giblet.telemetry.metrics import Metrics

    config = config_of(options)
    logs.configure(config.telemetry.log_format, run=config.run.name)
    job, namespace = (
        _named(given, variable, flag)
        for given, variable, flag in (
            (options.job, "GIBLET_JOB", "--job"),
            (options.namespace, "GIBLET_NAMESPACE", "--namespace"),
        )
    )
    if options.forget:
        from giblet.verify.announce import forget

        return 0 if forget(config.run.name, config.verify.pushgateway_url, namespace) else 1
    metrics = Metrics(config.run.name)
    try:
        with _stopped_by_signal(), _serving(metrics, config):
            result = _watch(config, job, namespace, metrics)
    except GibletError as error:
        log.error("no verdict", exit_code=error.exit_code, error=error.message)
        _last_words(of_error(error), config)
        raise
    except Exception as error:  # exit code 1 would read as UNSAFE
        logging.getLogger("giblet").exception("the gate broke down; there is no verdict")
        _last_words(Ending("crashed", EXIT_CRASHED, f"{type(error).__name__}: {error}"), config)
        return EXIT_CRASHED
    said = f"{result.report.verdict}: step {result.ref.step} of run {result.ref.run}"
    _last_words(
        Ending("rejected" if result.exit_code else "accepted", result.exit_code, said, step=result.ref.step), config
    )
    print_result(options, _row(result), said)
    return result.exit_code


def _last_words(ending: Ending, config: GibletConfig) -> None:
    """The container's termination message."""
    from giblet.launch.ending import write_termination
    from giblet.launch.settings import termination_log

    write_termination(termination_log(os.environ), ending, run=config.run.name)


def _watch(config: GibletConfig, job: str, namespace: str, metrics: Metrics) -> GateResult:
    from giblet.storage import open_storage
    from giblet.storage.embedded import embedded_if_asked
    from giblet.verify.gate import Gate
    from giblet.verify.kubernetes_jobs import KubernetesJobs

    with embedded_if_asked(config.checkpoint):
        storage = open_storage(config.checkpoint.url, config.checkpoint)
        result = Gate(config, storage, KubernetesJobs.open(job, namespace), metrics).run()
    log.info("verdict", **{name: value for name, value in _row(result).items() if value is not None})
    return result


def _row(result: GateResult) -> dict[str, object]:
    return {
        "verdict": result.report.verdict, "exit_code": result.exit_code, "step": result.ref.step,
        "checkpoint": result.report.url, "report": result.ref.report_key, "job": result.job,
        "verified_step": result.verified.step if result.verified is not None else None, "judged": result.judged,
    }  # fmt: skip


def _named(given: str | None, variable: str, flag: str) -> str:
    value = given or os.environ.get(variable)
    if not value:
        raise ConfigError(f"{flag} is not given, and {variable} is not set", remedy=f"write {flag} NAME")
    return value


@contextlib.contextmanager
def _serving(metrics: Metrics, config: GibletConfig) -> Iterator[None]:
    """`/metrics`, until it was scraped once more after the end; asked to stop meanwhile, the verdict stands.

    Asked to stop before the end, it waits for nothing. A gate that ends before it was found by a Prometheus stays until
    it is `telemetry.last_scrape_seconds` old.
    """
    from giblet.telemetry.exporter import Exporter

    try:
        exporter = Exporter(metrics, config.telemetry.metrics_port) if config.telemetry.metrics_port else None
    except OSError as error:
        log.warning("metrics are not served", port=config.telemetry.metrics_port, error=str(error))
        exporter = None
    began = time.monotonic()
    with exporter or contextlib.nullcontext():
        stopped = False
        try:
            yield
        except StoppedError:
            stopped = True
            raise
        finally:
            with contextlib.suppress(StoppedError):
                if exporter is not None and not stopped:
                    linger = config.telemetry.last_scrape_seconds
                    first = max(linger - (time.monotonic() - began), 0.0)
                    log.info("last metrics", scraped=exporter.wait_for_scrape(linger, first_seconds=first))


@contextlib.contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """SIGTERM and SIGINT raise `StoppedError` where the program is: nothing here is lost by being done again."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        raise StoppedError(f"asked to stop ({signal.Signals(number).name}); there is no verdict yet")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
