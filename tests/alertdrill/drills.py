"""The drills: what goes wrong, which alerts that should bring about, and what mends it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from giblet.verify.jobs import Job
from tests.alertdrill.stage import Stage, stuttering
from tests.support.nodes import SLOW_READS

Play = Callable[[Stage], None]


@dataclass(frozen=True)
class Drill:
    """One run, what befalls it, and the alerts that have to come of it."""

    run: str
    cause: str
    alerts: tuple[str, ...]
    play: Play


DRILLS: list[Drill] = []


def drill(run: str, cause: str, *alerts: str) -> Callable[[Play], Play]:
    """Register the function as a drill."""

    def registered(play: Play) -> Play:
        DRILLS.append(Drill(run, cause, alerts, play))
        return play

    return registered


@drill("stands-still", "a rank is stopped (SIGSTOP), its peer waits for it", "GibletNoStep", "GibletGoodputLow")
def stands_still(stage: Stage) -> None:
    node = stage.train(stage.config(training={"processes": 2}))
    node.until(lambda: node.step() >= 20)
    stage.pause(minutes=10)
    victim = node.ranks()[1]
    with stage.cause():
        os.kill(victim, signal.SIGSTOP)
    with stage.remedy():
        os.kill(victim, signal.SIGCONT)


@drill("throttled", "one of two ranks gets a sixth of the time (SIGSTOP, SIGCONT)", "GibletThroughputDropped")
def throttled(stage: Stage) -> None:
    node = stage.train(stage.config(training={"processes": 2}))
    node.until(lambda: node.step() >= 20)
    stage.pause(minutes=35)
    with stuttering([node.ranks()[1]], 2.0, 0.4, (signal.SIGSTOP, signal.SIGCONT)), stage.cause():
        pass
    with stage.remedy():
        pass


@drill("killed", "a rank is killed three times (SIGKILL) before the next save", "GibletRestartStorm",
       "GibletRestartBudgetLow")  # fmt: skip
def killed(stage: Stage) -> None:
    node = stage.train(stage.config(training={"processes": 2}, checkpoint={"save_every_steps": 150}),
                       PET_MAX_RESTARTS="4")  # fmt: skip
    with stage.cause():
        for times in range(1, 4):
            node.until(lambda times=times: node.said(r"INFO step .*\bstep=\d+ of", times) and _steps_since_start(node))
            os.kill(node.ranks()[1], signal.SIGKILL)
    with stage.remedy():  # the next save refills the budget, and the storm is an hour ago
        node.until(lambda: node.said("checkpoint committed"))


def _steps_since_start(node: object) -> bool:
    text: str = node.text()  # type: ignore[attr-defined]
    return " INFO step " in text[max(text.rfind(" INFO started "), text.rfind(" INFO resumed "), 0) :]


@drill("no-number", "the learning rate is 1e30", "GibletLossNotFinite")
def no_number(stage: Stage) -> None:
    with stage.cause():
        node = stage.train(stage.config(training={"learning_rate": 1e30}))
        assert node.exit_code() == 77, node.text()
    with stage.remedy():  # it has ended, and the alert is held for ten minutes
        pass


@drill("diverges", "the learning rate is 3, after a warm-up", "GibletLossDiverging")
def diverges(stage: Stage) -> None:
    with stage.cause():
        node = stage.train(stage.config(training={"learning_rate": 3.0, "warmup_steps": 100}))
    with stage.remedy():
        node.signal(signal.SIGTERM)
        assert node.exit_code() == 143


@drill("starved", "each read of the video takes 0.3 s longer (put into numpy's memory map)", "GibletDataStarvation")
def starved(stage: Stage) -> None:
    with stage.cause():
        node = stage.train(stage.config(), **{SLOW_READS: "0.3"})
    with stage.remedy():
        node.signal(signal.SIGTERM)
        assert node.exit_code() == 143


@drill("no-storage", "the S3 server stands still (SIGSTOP) under a trainer and its gate", "GibletStorageErrors",
       "GibletSaveFailing", "GibletCheckpointTooOld", "GibletCannotVerify")  # fmt: skip
def no_storage(stage: Stage) -> None:
    config = stage.config(checkpoint=stage.s3(), verify={"when": "each"})
    node = stage.train(config)
    node.until(lambda: node.said("checkpoint committed"))
    server = stage.ground.server.pid
    with stage.gate(config):
        stage.pause(minutes=5)
        try:
            with stage.cause():
                os.kill(server, signal.SIGSTOP)
        finally:
            os.kill(server, signal.SIGCONT)
        with stage.remedy():
            pass
        node.signal(signal.SIGTERM)
        node.exit_code()


@drill("no-room", "the job is there and no pod of it trains", "GibletNeverStarted")
def no_room(stage: Stage) -> None:
    config = stage.config()
    with stage.gate(config, "Created"):
        with stage.cause():
            pass
        with stage.remedy():
            node = stage.train(config)
        node.signal(signal.SIGTERM)
        node.exit_code()


@drill("unverified", "training has ended, and there is no gate", "GibletVerificationMissing")
def unverified(stage: Stage) -> None:
    config = stage.config(training={"max_steps": 30})
    with stage.cause():
        assert stage.train(config).exit_code() == 0
    with stage.remedy(), stage.gate(config, "Succeeded") as (_, ended):
        assert ended.result().exit_code == 0
        stage.pause(minutes=1)


@drill("damaged", "a byte of the last checkpoint is changed", "GibletVerificationFailed")
def damaged(stage: Stage) -> None:
    config = stage.config(training={"max_steps": 30})
    assert stage.train(config).exit_code() == 0
    shard = max(Path(config.checkpoint.url).glob(f"runs/{stage.run}/checkpoints/*/*/*.safetensors"))
    whole = shard.read_bytes()
    with stage.cause():
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with stage.gate(config) as (jobs, ended):
            jobs.job = Job("one", "Failed")
            assert ended.result().exit_code == 1
            stage.pause(minutes=1)
    with stage.remedy():
        shard.write_bytes(whole)
        with stage.gate(config, "Succeeded") as (_, ended):
            assert ended.result().exit_code == 0
            stage.pause(minutes=1)


@drill("xid", "a sample of dcgm-exporter as it is written down in tests/monitoring, with XID 79 in place of 0",
       "GibletGpuXid")  # fmt: skip
def xid(stage: Stage) -> None:
    registry = CollectorRegistry()
    labels = {"Hostname": "node-1", "gpu": "0", "UUID": "GPU-0"}
    sample = Gauge("DCGM_FI_DEV_XID_ERRORS", "Value of the last XID error.", [*labels], registry=registry)
    number = sample.labels(**labels)
    number.set(0)
    server, thread = start_http_server(stage.ground.ports[stage.run][2], "127.0.0.1", registry)
    try:
        stage.pause(minutes=1)
        with stage.cause():
            number.set(79)
        with stage.remedy():
            number.set(0)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
