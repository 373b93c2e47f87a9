"""Drills on one machine: killed, or asked to stop, at each stage of a save. The proxy holds the request meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

from drills.drill import drill
from drills.promises import require
from drills.proxy import Dropped, Forward, Request, Response
from drills.scene import Scene
from tests.support.nodes import Node

HOLD_SECONDS = 20.0


def _kill_at(scene: Scene, chosen: Callable[[Request], bool], *, after: bool = False) -> None:
    """Train until the second save; kill the whole pod before (or after) the server sees the chosen request."""
    pod = scene.start()
    scene.until_committed()
    done = threading.Event()
    lock = threading.Lock()

    def behave(request: Request, forward: Forward) -> Response:
        if done.is_set() or not chosen(request):
            return forward()
        if after:
            forward()
        with lock:
            if not done.is_set():
                done.set()
                scene.strike(lambda: scene.kill(pod))
        raise Dropped

    scene.proxy.behave = behave
    scene.until(done.is_set, "the save comes to that stage")
    scene.replace(pod)
    scene.until_next_step()
    scene.finish()


def _went_on_from(scene: Scene) -> int:
    return int(scene.witness.starts()[1]["step"])


def _first_save(scene: Scene) -> int:
    return int(scene.witness.notes("commit")[0]["step"])


@drill("killed-before-shards", "SIGKILL in a save, before its shards", starts=2)
def before_shards(scene: Scene) -> str:
    """Nothing of the save is there."""
    _kill_at(scene, lambda request: request.puts("rank-"))
    return "the operator; an attempt without a manifest is none"


@drill("killed-between-shards", "SIGKILL in a save, between its shards", short=True, starts=2)
def between_shards(scene: Scene) -> str:
    """One rank's shard is there, the other's is not."""
    first = threading.Event()

    def second_shard(request: Request) -> bool:
        if request.puts("rank-00000"):
            return False
        if request.puts("rank-00001"):
            folder = request.key.rpartition("/")[0]
            deadline = time.monotonic() + HOLD_SECONDS
            while time.monotonic() < deadline and not first.is_set():
                if any(key == f"{folder}/rank-00000.safetensors" for _, _, key in scene.proxy.history):
                    first.set()
                time.sleep(0.01)
            return first.is_set()
        return False

    _kill_at(scene, second_shard)
    return "the operator; an attempt without a manifest is none"


@drill("killed-before-manifest", "SIGKILL in a save, before its manifest", starts=2)
def before_manifest(scene: Scene) -> str:
    """All shards are there, and it is no checkpoint."""
    _kill_at(scene, lambda request: request.puts("MANIFEST"))
    return "the operator; an attempt without a manifest is none"


@drill("killed-after-manifest", "SIGKILL in a save, after its manifest", short=True, starts=2)
def after_manifest(scene: Scene) -> str:
    """It is committed, though nobody lived to hear it: the next start goes on from there."""
    _kill_at(scene, lambda request: request.puts("MANIFEST"), after=True)
    require(_went_on_from(scene) > _first_save(scene), "the committed save was not gone on from")
    return "the operator; the manifest is the commit"


@drill("sigterm-in-save", "SIGTERM in the middle of a save", loses="nothing", short=True, starts=2)
def sigterm_in_save(scene: Scene) -> str:
    """The save under way is finished, a last one follows."""
    pod: Node = scene.start()
    scene.until_committed()
    uploading, waited = threading.Event(), threading.Event()

    def behave(request: Request, forward: Forward) -> Response:
        if request.puts("rank-") and not waited.is_set():
            uploading.set()
            waited.wait(2.0)
        return forward()

    scene.proxy.behave = behave
    scene.until(uploading.is_set, "a save is under way")
    scene.strike(lambda: pod.signal(signal.SIGTERM))
    scene.replace(pod)
    scene.until_next_step()
    waited.set()
    scene.finish()
    require(scene.codes[0] == 143, f"it ended with {scene.codes[0]}")
    return scene.cause(expected="stopped")
