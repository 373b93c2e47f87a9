"""Drills on one machine: the S3 server gone, slow, wrong, refusing; and objects damaged by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise

from drills.clock import SHIFT, preload
from drills.drill import drill
from drills.promises import require
from drills.proxy import Behaviour, Forward, Request, Response, answer, error, slow
from drills.scene import SAVE_EVERY_STEPS, Scene
from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.opened import read_manifest
from giblet.launch.run import GRACE_MARGIN_SECONDS
from giblet.storage import LocalStorage

AFTER = SAVE_EVERY_STEPS + 5


# ---------------------------------------------------------------------------------- the server


def _for_a_while(scene: Scene, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """The fault lasts, training goes on, the fault ends, and a checkpoint is committed again."""
    scene.start()
    scene.until_committed()
    scene.strike(begin, restarts=False)
    assert scene.struck is not None
    scene.until_next_step()
    time.sleep(scene.lasts_seconds)
    end()
    scene.until_committed(2, after=time.monotonic())
    _note_longest_stall(scene)
    scene.finish()
    require(len(scene.witness.starts()) == 1, "it took a restart")


def _note_longest_stall(scene: Scene) -> None:
    assert scene.struck is not None
    times = [note["at"] for note in scene.witness.steps(after=scene.struck)]
    longest = max((b - a for a, b in pairwise(times)), default=0.0)
    scene.notes.append(f"training stood for {longest:.0f} s at most")


def _behaving(scene: Scene, behaviour: Behaviour) -> None:
    def begin() -> None:
        scene.proxy.behave = behaviour

    def end() -> None:
        scene.proxy.behave = scene.proxy.honest

    _for_a_while(scene, begin, end)


@drill("s3-gone", "S3 gone for a minute", loses="nothing", short=True, starts=1)
def s3_gone(scene: Scene) -> str:
    """Connections are refused. A save is tried again and again, the next one waits for it."""
    _for_a_while(scene, scene.proxy.gone, scene.proxy.back)
    return f"log: {scene.said('failed, trying again|checkpoint failed; training goes on')}".partition("|")[0]


@drill("s3-slow", "S3 slow: 1 s before each answer, 50 kB/s", loses="nothing", lasts_seconds=60.0, starts=1)
def s3_slow(scene: Scene) -> str:
    """Saves take longer."""
    _behaving(scene, slow(1.0, 50_000))
    return "metrics (checkpoint_save_seconds, _stall_seconds)"


@drill("s3-500", "S3 answers 500", loses="nothing", starts=1)
def s3_500(scene: Scene) -> str:
    """To everything."""
    _behaving(scene, answer(500, "InternalError"))
    return f"log: {scene.said('InternalError')}"


@drill("s3-503", "S3 answers 503 SlowDown", loses="nothing", starts=1)
def s3_503(scene: Scene) -> str:
    """To everything."""
    _behaving(scene, answer(503, "SlowDown"))
    return f"log: {scene.said('SlowDown')}"


@drill("s3-away-at-start", "S3 away when a pod starts", short=True, starts=1)
def s3_away_at_start(scene: Scene) -> str:
    """The pod waits for `telemetry.hang_seconds`, ends with 129, is made again, and trains when S3 is back."""
    scene.proxy.gone()
    pod = scene.start(scene.config(telemetry={"hang_seconds": 4.0}))
    scene.strike(lambda: None)
    code = scene.ended(pod)
    require(code == 129, f"it ended with {code}\n{pod.text()[-2000:]}")
    require(pod.last_words()["cause"] == "storage_unavailable", f"the termination message: {pod.last_words()}")
    scene.codes.clear()
    scene.proxy.back()
    pod.again()  # type: ignore[attr-defined]
    scene.until_next_step()
    scene.finish()
    scene.notes.append("telemetry.hang_seconds 4")
    return "termination message: storage_unavailable (129)"


@drill("s3-gone-at-sigterm", "SIGTERM while S3 is gone, longer than the pod may take", starts=2)
def s3_gone_at_sigterm(scene: Scene) -> str:
    """It cannot be saved: the ranks are ended in time for the pod's own last words, which say so."""
    pod = scene.start(TORCH_ELASTIC_SHUTDOWN_TIMEOUT="5")
    scene.until_step(AFTER)
    scene.proxy.gone()
    scene.strike(lambda: pod.signal(signal.SIGTERM))
    code = scene.ended(pod)
    took = time.monotonic() - (scene.struck or 0.0)
    told = pod.last_words()
    require((code, told["exit_code"]) == (128, 128), f"it ended with {code}, and said {told}")
    require("had not saved 5 s after" in told["message"], f"the termination message: {told}")
    require(took < 5 + GRACE_MARGIN_SECONDS, f"it took {took:.0f} s, and would have been killed")
    scene.notes.append(f"shutdown timeout 5 s, ended after {took:.0f} s")
    scene.proxy.back()
    scene.start()
    scene.until_next_step()
    scene.finish()
    return "termination message: crashed (128), not saved in time"


# ---------------------------------------------------------------------------------- conditional puts


def _refusing(status: int, code: str) -> Behaviour:
    return lambda request, forward: error(status, code) if request.conditional else forward()


def _without_conditional_puts(scene: Scene, behaviour: Behaviour) -> None:
    """A run on such a server, with a killed rank, from beginning to end."""
    scene.proxy.behave = behaviour
    pod = scene.start()
    scene.until_step(AFTER)
    scene.strike(lambda: os.kill(pod.ranks()[1], signal.SIGKILL))
    scene.until_next_step()
    scene.finish()
    scene.cause(expected="killed")
    scene.cause(2, expected="stopped")


@drill("s3-refuses-condition-501", "S3 refuses the conditional put (501)", short=True, starts=2)
def refuses_501(scene: Scene) -> str:
    """As servers do that do not implement it."""
    _without_conditional_puts(scene, _refusing(501, "NotImplemented"))
    return f"probe at start; log: {scene.said('refuses conditional puts')}"


@drill("s3-refuses-condition-412", "S3 refuses the conditional put (412, always)", starts=2)
def refuses_412(scene: Scene) -> str:
    """Though nothing is there."""
    _without_conditional_puts(scene, _refusing(412, "PreconditionFailed"))
    return f"probe at start; log: {scene.said('refuses conditional puts')}"


@drill("s3-ignores-condition", "S3 ignores the condition of a put", starts=2)
def ignores_condition(scene: Scene) -> str:
    """It overwrites, and says that all is well. (The proxy puts the object itself: the condition is signed.)"""

    def behave(request: Request, forward: Forward) -> Response:
        if not request.conditional:
            return forward()
        scene.storage.put(request.key, request.body)
        scene.proxy.history.append((time.monotonic(), "PUT", request.key))
        return Response(200, b"", [("ETag", '"0"')])

    _without_conditional_puts(scene, behave)
    return f"probe at start; log: {scene.said('ignores conditional puts')}"


# ---------------------------------------------------------------------------------- damage by hand


def _damaged(scene: Scene, damage: Callable[[CheckpointRef], None]) -> str:
    """Damage the newest checkpoint in S3, then kill the pod: the new one must notice, and take the one before."""
    pod = scene.start()
    scene.until_committed(2)
    scene.until(lambda: len(scene.committed()) >= 2, "two checkpoints are there")
    scene.kill(pod)  # first, so that no newer one is committed meanwhile
    pod.process.join()
    newest = scene.committed()[-1]
    scene.damaged.add((newest.step, newest.attempt))
    damage(newest)
    scene.strike(lambda: None)
    scene.replace(pod)
    scene.until_next_step()
    scene.finish()
    went_on = scene.witness.notes("load")[-1]["step"]
    require(went_on < newest.step, f"it went on from the damaged checkpoint of step {newest.step}")
    require(scene.storage.head(newest.quarantine_key) is not None, "the damaged checkpoint bears no marker")
    scene.notes.append("counted from the new pod: it was killed first")
    return "CRC or size at resume; quarantined"


def _newest_shard(scene: Scene, ref: CheckpointRef) -> str:
    return ref.prefix + max(read_manifest(scene.storage, ref.prefix).objects, key=lambda item: item.size_bytes).key


@drill("bit-flipped", "one flipped bit in the newest checkpoint", short=True, starts=2)
def bit_flipped(scene: Scene) -> str:
    """In the middle of a shard, through the S3 API."""

    def damage(ref: CheckpointRef) -> None:
        key = _newest_shard(scene, ref)
        body = bytearray(scene.storage.get(key))
        body[len(body) // 2] ^= 0x10
        scene.storage.put(key, bytes(body))

    return _damaged(scene, damage)


@drill("shard-lost", "S3 loses a shard after the commit", starts=2)
def shard_lost(scene: Scene) -> str:
    """The manifest names what is not there."""
    return _damaged(scene, lambda ref: scene.storage.delete(_newest_shard(scene, ref)))


@drill("manifest-truncated", "the newest manifest truncated", starts=2)
def manifest_truncated(scene: Scene) -> str:
    """Half of it is left."""

    def damage(ref: CheckpointRef) -> None:
        body = scene.storage.get(ref.manifest_key)
        scene.storage.put(ref.manifest_key, body[: len(body) // 2])

    return _damaged(scene, damage)


# ---------------------------------------------------------------------------------- disk, clock


@drill("disk-full", "the disk of the checkpoints full", loses="nothing", lasts_seconds=10.0, starts=1)
def disk_full(scene: Scene) -> str:
    """Checkpoints in a folder on a small file system of its own (needs root): saves fail until there is room again."""
    small = scene.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], check=True)
    try:
        scene.storage, scene.url = LocalStorage(small), str(small)
        ballast = small / "ballast"

        def fill() -> None:
            with ballast.open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(1 << 16))
                    except OSError:
                        return

        _for_a_while(scene, fill, ballast.unlink)
        scene.keep(small)
    finally:
        scene.stop_all()
        subprocess.run(["umount", str(small)], check=True)
    scene.person = "to make room, or whoever made it full; nothing for the run"
    return f"log: {scene.said('No space left on device')}"


@drill("clock-ahead", "a clock an hour ahead", starts=2)
def clock_ahead(scene: Scene) -> str:
    """The pod that replaces another is on a machine whose clock is wrong."""
    return _clock(scene, 3600)


@drill("clock-behind", "a clock an hour behind", starts=2)
def clock_behind(scene: Scene) -> str:
    """The same, the other way."""
    return _clock(scene, -3600)


def _clock(scene: Scene, shift_seconds: int) -> str:
    library = preload(scene.folder)
    first = scene.start()
    scene.until_committed()
    scene.until_step(AFTER)
    scene.strike(lambda: scene.kill(first))
    first.process.join()
    scene.start(fresh=True, LD_PRELOAD=str(library), **{SHIFT: str(shift_seconds)})  # type: ignore[arg-type]
    scene.until_next_step()
    scene.finish()
    return f"log: {scene.said('clock of this machine is .* off')}".replace(".*", "…")
