"""Drills on one machine: ranks and pods that are killed, stopped, stuck, wrong."""

from __future__ import annotations

import json
import os
import signal

from drills.drill import drill
from drills.promises import require
from drills.scene import SAVE_EVERY_STEPS, Scene
from giblet.checkpoint.survey import survey
from tests.support.nodes import Rendezvous

AFTER = SAVE_EVERY_STEPS + 5
"""A step that is some steps beyond a save."""


@drill("rank-killed", "a rank SIGKILLed", goal_seconds=15.0, short=True, starts=2)
def rank_killed(scene: Scene) -> str:
    """The other rank stands in a collective; the launcher sees the exit, and starts both again."""
    pod = scene.start()
    scene.until_step(AFTER)
    scene.strike(lambda: os.kill(pod.ranks()[1], signal.SIGKILL))
    scene.until_next_step()
    scene.finish()
    return scene.cause(expected="killed")


@drill("pod-killed", "a pod killed with everything in it", goal_seconds=30.0, starts=2)
def pod_killed(scene: Scene) -> str:
    """Nobody is left to record the end: the next start finds that there is none."""
    pod = scene.start()
    scene.until_step(AFTER)
    scene.strike(lambda: scene.kill(pod))
    scene.replace(pod)
    scene.until_next_step()
    scene.finish()
    require(not scene.end_of(1), "start 1 has a record of its end, and nobody was left to write it")
    return "the operator (pod gone); no end record"


@drill("sigterm", "SIGTERM to a pod", loses="nothing", starts=2)
def sigterm(scene: Scene) -> str:
    """The ranks agree on the step, save, and end with 143; the new pod goes on from there."""
    pod = scene.start()
    scene.until_step(AFTER)
    scene.strike(lambda: pod.signal(signal.SIGTERM))
    scene.replace(pod)
    scene.until_next_step()
    scene.finish()
    require(scene.codes[0] == 143, f"it ended with {scene.codes[0]}")
    return scene.cause(expected="stopped")


@drill("stuck-in-collective", "a rank stuck in a collective", starts=2)
def stuck(scene: Scene) -> str:
    """It waits for what nobody sends, and the others wait for it."""
    return _no_sign_of_life(scene, "stuck")


@drill("endless-loop", "a rank in an endless loop", short=True, starts=2)
def endless_loop(scene: Scene) -> str:
    """It burns its core, and the other waits for it."""
    return _no_sign_of_life(scene, "spin")


def _no_sign_of_life(scene: Scene, kind: str) -> str:
    sabotage = scene.sabotage(kind, step=AFTER)
    config = scene.config(telemetry={"hang_seconds": 5.0, "save_hang_seconds": 60.0})
    pod = scene.start(config, sabotage=sabotage)
    scene.strike_inside(sabotage)
    scene.replace(pod)
    scene.until_next_step()
    scene.finish()
    require(scene.codes[0] == 130, f"it ended with {scene.codes[0]}")
    scene.said(r"inside\.py\", line \d+ in _strike")  # the stacks say where
    scene.notes.append("telemetry.hang_seconds 5")
    return f"hang watch; {scene.cause(expected='hung')}"


@drill("loss-nan", "the loss turned NaN", starts=1)
def loss_nan(scene: Scene) -> str:
    """A restart would end the same way: the job ends, and the checkpoint before is good."""
    sabotage = scene.sabotage("nan", step=AFTER)
    pod = scene.start(sabotage=sabotage)
    scene.strike_inside(sabotage)
    code = scene.ended(pod)
    require(code == 77, f"it ended with {code}")
    require(json.loads(pod.termination.read_text())["cause"] == "diverged", "the termination message says otherwise")
    require(max(ref.step for ref in scene.committed()) == SAVE_EVERY_STEPS, "the save before is not the newest")
    scene.person = "nothing to save the run; what to change is theirs to say"
    return scene.cause(expected="diverged")


@drill("config-error", "a configuration error", short=True, starts=0)
def config_error(scene: Scene) -> str:
    """Only training can know of this one: more ranks than micro-batches. One try, on no GPU."""
    pod = scene.start(scene.config(training={"global_batch_samples": 1}))
    code = scene.ended(pod)
    require(code == 2, f"it ended with {code}")
    told = json.loads(pod.termination.read_text())
    require("more than the 1 micro-batches" in told["message"], f"the termination message says {told['message']!r}")
    require(not list(scene.storage.list(f"runs/{scene.run}/starts/")), "a start was claimed")
    scene.person = "to correct it, as the message says"
    return "termination message: config (2)"


@drill("crash-loop", "a crash at the same step, every time", short=True, starts=4)
def crash_loop(scene: Scene) -> str:
    """Without a newly committed step the budget is spent; a pod that the operator makes again ends at once."""
    sabotage = scene.sabotage("crash", step=SAVE_EVERY_STEPS - 4, once=False)
    pod = scene.start(sabotage=sabotage, PET_MAX_RESTARTS="2")
    code = scene.ended(pod)
    require(code == 76, f"it ended with {code}\n{pod.text()[-2000:]}")
    told = json.loads(pod.termination.read_text())
    require("3 starts failed" in told["message"] and "a bug, for the drill" in told["message"], told["message"])
    again = pod.again()  # type: ignore[attr-defined]
    require(scene.ended(again) == 76, "a new pod had a new budget")
    require(len(scene.witness.starts()) == 3, "a new pod tried again")
    scene.person = "to cure what the message lists"
    return "restart budget: restart_budget (76)"


@drill("node-frozen", "a node that vanishes without a word, and comes back", goal_seconds=90.0, starts=9)
def node_frozen(scene: Scene) -> str:
    """Of two nodes of one rank each: the other goes on alone; when it thaws, they save and meet again."""
    rendezvous = Rendezvous(scene.folder)
    try:
        config = scene.config(training={"processes": 1})
        scene.start(config, name="worker-0", endpoint=rendezvous.endpoint)
        two = scene.start(config, name="worker-1", endpoint=rendezvous.endpoint)
        scene.until(lambda: any(note["world_size"] == 2 for note in scene.witness.starts()), "both meet")
        begun = [note for note in scene.witness.starts() if note["world_size"] == 2][-1]
        scene.until(lambda: any(note["step"] > begun["step"] + AFTER for note in scene.witness.steps()), "they train")
        frozen = [two.process.pid, *two.everything()]
        scene.strike(lambda: _signal(frozen, signal.SIGSTOP))
        scene.until_next_step()
        starts = len(scene.witness.starts())
        _signal(frozen, signal.SIGCONT)
        scene.until(
            lambda: any(note["world_size"] == 2 for note in scene.witness.starts()[starts:]), "they meet again"
        )  # fmt: skip
        scene.finish()
    finally:
        rendezvous.kill()
    return scene.cause(begun["start"], expected="node_lost")


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


@drill("two-jobs", "two jobs with one run name at once", starts=2)
def two_jobs(scene: Scene) -> str:
    """The newer one owns the run; the older one may not write any more, and ends for good."""
    older = scene.start(name="older-worker-0")
    scene.until_step(AFTER)
    scene.strike(lambda: scene.start(name="newer-worker-0"))
    scene.until_next_step()
    code = scene.ended(older)
    require(code == 75, f"the older job ended with {code}")
    scene.finish()
    attempts = [entry.ref.attempt for entry in survey(scene.storage, scene.run) if entry.committed]
    require(all(attempt.startswith("00002-") for attempt in attempts[-1:]), f"the older one wrote last: {attempts}")
    return scene.cause(expected="run_conflict")
