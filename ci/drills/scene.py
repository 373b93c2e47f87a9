"""One drill on one machine: a run of two real ranks under `giblet launch`, its S3 server, and the operator's part.

A pod is a `giblet launch` with its ranks. What the operator would do with one that ended is `Scene.replace`: a new pod
if its exit code is 128 or more, and never one if it is below.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from drills import inside
from drills.drill import BrokenPromiseError, Drill
from drills.proxy import FaultProxy
from giblet.checkpoint import layout
from giblet.checkpoint.records import read_record
from giblet.config import GibletConfig
from giblet.errors import EXIT_CRASHED
from giblet.storage import LocalStorage, Storage
from giblet.storage.embedded import EmbeddedServer
from tests.support.nodes import Node
from tests.support.training import small_config

DEADLINE_SECONDS = 400.0
"""How long anything may take on a busy machine: nothing passes by being quicker, and nothing waits for ever."""
SAVE_EVERY_STEPS = 10
Note = dict[str, Any]


class Witness:
    """What the processes of a scene really did, in the order of time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._read: dict[Path, int] = {}
        self._notes: list[Note] = []

    def notes(self, what: str | None = None) -> list[Note]:
        """All notes of a kind so far."""
        for path in self.folder.iterdir():
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                body = file.read()
            whole = body[: body.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            self._notes += [json.loads(line) for line in whole.splitlines()]
        self._notes.sort(key=lambda note: float(note["at"]))
        return [note for note in self._notes if what is None or note["what"] == what]

    def starts(self) -> list[Note]:
        """One note a start, from its first rank."""
        return [note for note in self.notes("start") if note["rank"] == 0]

    def steps(self, *, after: float = 0.0) -> list[Note]:
        """The steps that a first rank did since."""
        return [note for note in self.notes("step") if note["rank"] == 0 and note["at"] > after]


class Scene:
    """What a drill has to do with: `proxy`, `storage` (the server itself, past the proxy), `pods`, `witness`."""

    def __init__(
        self, drill: Drill, folder: Path, dataset: Path, server: EmbeddedServer, proxy: FaultProxy, *, brief: bool
    ) -> None:
        self.drill, self.folder, self.dataset, self.server, self.proxy = drill, folder, dataset, server, proxy
        self.run = f"{drill.name}-{uuid.uuid4().hex[:6]}"
        self.storage: Storage = server.storage("giblet")
        self.url = "s3://giblet"
        self.lasts_seconds = drill.briefly if brief else drill.lasts_seconds
        self.witness = Witness(folder / "witness")
        self.pods: list[Node] = []
        self.codes: list[int] = []
        self.struck: float | None = None
        self.restarts = True
        self.next_step: float | None = None
        self.damaged: set[tuple[int, str]] = set()
        self.notes: list[str] = []
        self.person = "nothing"

    # ------------------------------------------------------------------ pods

    def config(self, **sections: dict[str, Any]) -> GibletConfig:
        """A tiny model on two ranks, saved every ten steps; `sections` override."""
        tree: dict[str, dict[str, Any]] = {
            "run": {"name": self.run},
            "training": {
                "epochs": 1_000_000, "processes": 2, "sharding": "ddp", "learning_rate": 1e-3,
                "validate_every_epochs": 1_000_000,
            },
            "checkpoint": {
                "url": self.url, "save_every_epochs": 0, "save_every_steps": SAVE_EVERY_STEPS, "keep_last": 2,
                "connect_timeout_seconds": 3.0, "read_timeout_seconds": 10.0, "max_attempts": 3,
            },
            "telemetry": {"hang_seconds": 60.0, "save_hang_seconds": 300.0, "metrics_port": 0},
        }  # fmt: skip
        for name, values in sections.items():
            tree[name] = {**tree.get(name, {}), **values}
        config: GibletConfig = small_config(**tree)
        return config

    def start(
        self,
        config: GibletConfig | None = None,
        *,
        name: str = "worker-0",
        endpoint: str | None = None,
        sabotage: inside.Sabotage | None = None,
        fresh: bool = False,
        **environment: str,
    ) -> Node:
        """A new pod. It reaches S3 through the proxy."""
        told = {**self.server.environment(), "AWS_ENDPOINT_URL": self.proxy.endpoint_url, **environment}
        before = partial(inside.prepare, str(self.witness.folder), sabotage)
        label = f"{name}.{len(self.pods)}"
        chosen = config or self.config()
        pod = Node(self.folder, label, chosen, self.dataset, endpoint, before=before, fresh=fresh, **told)
        pod.again = partial(  # type: ignore[attr-defined]
            self.start, chosen, name=name, endpoint=endpoint, sabotage=sabotage, fresh=fresh, **environment
        )
        self.pods.append(pod)
        return pod

    def sabotage(self, kind: Any, **more: Any) -> inside.Sabotage:
        """A fault inside a rank; `self.struck_inside` waits for it."""
        return inside.Sabotage(kind, str(self.folder / "sabotage"), **more)

    def ended(self, pod: Node) -> int:
        """Wait for a pod's end; its exit code."""
        pod.process.join(DEADLINE_SECONDS)
        code = pod.process.exitcode
        if code is None:
            raise BrokenPromiseError(f"the pod did not end within {DEADLINE_SECONDS:.0f} s\n{pod.text()[-3000:]}")
        self.codes.append(int(code))
        return int(code)

    def replace(self, pod: Node) -> Node:
        """The operator's part, with a pod that ended (code below 0: its node killed it)."""
        code = self.ended(pod)
        if 0 <= code < EXIT_CRASHED:
            raise BrokenPromiseError(f"exit code {code} ends the job for good\n{pod.text()[-3000:]}")
        again: Node = pod.again()  # type: ignore[attr-defined]
        return again

    def kill(self, pod: Node) -> None:
        """A whole pod at once, as when its node loses power."""
        for pid in (pod.process.pid, *pod.everything()):
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(pid, signal.SIGKILL)

    def keep(self, folder: Path) -> None:
        """Judge a copy of a folder that is about to go away."""
        copy = self.folder / "kept"
        shutil.copytree(folder, copy)
        self.storage = LocalStorage(copy)

    def close(self) -> None:
        """Nothing of it is left running."""
        self.proxy.behave = self.proxy.honest
        self.proxy.back()
        self.stop_all()

    def stop_all(self) -> None:
        """End every pod, whatever state it is in."""
        for pod in self.pods:
            self.kill(pod)
            pod.end()

    # ------------------------------------------------------------------ waiting

    def until(self, what: Callable[[], Any], told: str, *, alive: bool = True) -> Any:
        """Wait for something; its value."""
        deadline = time.monotonic() + DEADLINE_SECONDS + self.lasts_seconds
        while not (found := what()):
            if alive and not any(pod.process.is_alive() for pod in self.pods):
                raise BrokenPromiseError(f"every pod has ended before {told}\n{self.pods[-1].text()[-3000:]}")
            if time.monotonic() > deadline:
                raise BrokenPromiseError(f"it never came about: {told}\n{self.pods[-1].text()[-3000:]}")
            time.sleep(0.03)
        return found

    def until_step(self, step: int) -> None:
        """Somebody did this step."""
        self.until(lambda: any(note["step"] >= step for note in self.witness.steps()), f"step {step}")

    def until_committed(self, count: int = 1, *, after: float = 0.0) -> None:
        """So many checkpoints were committed since."""
        self.until(
            lambda: len([note for note in self.witness.notes("commit") if note["at"] > after]) >= count,
            f"{count} checkpoints are committed",
        )

    # ------------------------------------------------------------------ the fault

    def strike(self, cause: Callable[[], Any], *, restarts: bool = True) -> None:
        """Cause the fault, now. `restarts`: the next step is to come from a new start."""
        self.restarts = restarts
        self.struck = time.monotonic()
        cause()

    def strike_inside(self, sabotage: inside.Sabotage) -> None:
        """Wait until a rank has done it to itself."""
        marker = Path(sabotage.marker)
        self.until(marker.exists, f"the rank does it ({sabotage.kind})", alive=False)
        self.until(lambda: marker.read_text(), "its moment is known", alive=False)
        self.struck = float(marker.read_text())

    def until_next_step(self) -> None:
        """The first step after the fault: of a start that began after it, if it takes one."""
        assert self.struck is not None
        struck = self.struck

        def found() -> Note | None:
            begun = [note for note in self.witness.starts() if note["at"] > struck]
            if self.restarts and not begun:
                return None
            pids = {note["pid"] for note in begun}
            steps = self.witness.steps(after=struck)
            return next((note for note in steps if not self.restarts or note["pid"] in pids), None)

        self.next_step = float(self.until(found, "the next step", alive=False)["at"])

    def finish(self, steps: int = SAVE_EVERY_STEPS + 3) -> None:
        """Let it go on for a while, then ask it to stop: that loses nothing, and the last checkpoint can be judged."""
        began = time.monotonic()
        self.until(lambda: len(self.witness.steps(after=began)) >= steps, "it goes on")
        running = [pod for pod in self.pods if pod.process.is_alive()]
        for pod in running:
            pod.signal(signal.SIGTERM)
        for pod in running:
            if (code := self.ended(pod)) != 143:
                raise BrokenPromiseError(f"asked to stop, it ended with {code}\n{pod.text()[-3000:]}")

    # ------------------------------------------------------------------ evidence

    def end_of(self, start: int) -> dict[str, Any]:
        """The record of a start's end; {} where there is none."""
        return read_record(self.storage, layout.end_key(self.run, start)) or {}

    def cause(self, start: int = 1, *, expected: str) -> str:
        """What the record of a start's end says of its cause, which has to be this."""
        end = self.end_of(start)
        if end.get("cause") != expected:
            raise BrokenPromiseError(f"start {start} ended with cause {end.get('cause')!r}, not {expected!r}")
        return f"end record: {expected} ({end['exit_code']})"

    def said(self, pattern: str) -> str:
        """What a log says of it, which has to be there."""
        text = "".join(pod.text() for pod in self.pods)
        if re.search(pattern, text) is None:
            raise BrokenPromiseError(f"no log says {pattern!r}\n{text[-3000:]}")
        return pattern

    def committed(self) -> list[layout.CheckpointRef]:
        """Good commits that are there now, oldest first, but for those that this drill damaged."""
        from giblet.checkpoint.survey import survey

        found = [entry.ref for entry in survey(self.storage, self.run) if entry.committed and not entry.quarantined]
        return [ref for ref in found if (ref.step, ref.attempt) not in self.damaged]


@contextlib.contextmanager
def scene_of(drill: Drill, folder: Path, dataset: Path, server: EmbeddedServer, *, brief: bool) -> Iterator[Scene]:
    """A scene for one drill, with a proxy of its own; nothing of it is left running."""
    folder.mkdir(parents=True, exist_ok=True)
    with FaultProxy(server.endpoint_url) as proxy:
        scene = Scene(drill, folder, dataset, server, proxy, brief=brief)
        try:
            yield scene
        finally:
            scene.close()
