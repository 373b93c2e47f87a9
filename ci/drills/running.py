"""Runs drills one after another, each to its row."""

from __future__ import annotations

import contextlib
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drills import cluster, processes, promises, stages, storage  # noqa: F401  (they add their drills)
from drills.drill import DRILLS, BrokenPromiseError, Drill, NotHereError, Row
from drills.lab import ClusterScene, judge
from drills.scene import Scene, scene_of
from giblet.storage.embedded import EmbeddedServer, embedded_s3
from tests.support.prepared import make_prepared

WHERE = {"processes": "processes, S3 server", "cluster": "local cluster"}


def chosen(names: Sequence[str], *, short: bool = False, where: str | None = None) -> list[Drill]:
    """The drills of these names (none: all), in the order of the table. Raises `KeyError` for a name that is none."""
    known = {drill.name for drill in DRILLS}
    for name in names:
        if name not in known:
            raise KeyError(name)
    found = [drill for drill in DRILLS if not names or drill.name in names]
    found = [drill for drill in found if where is None or drill.where == where]
    found = [drill for drill in found if drill.short or not short]
    return sorted(found, key=lambda drill: drill.where == "cluster")


@dataclass(frozen=True)
class Ground:
    """What drills on one machine share: a real S3 server and a tiny prepared dataset."""

    folder: Path
    server: EmbeddedServer
    dataset: Path


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """Ground for drills on one machine; nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="giblet-drills-") as name:
        folder = Path(name)
        dataset = make_prepared(folder / "dataset").path
        with embedded_s3(folder / "s3", bucket="giblet") as server:
            yield Ground(folder, server, dataset)


def run_here(drill: Drill, place: Ground, *, brief: bool) -> Row:
    """A drill on one machine, to its row. Whatever goes wrong is in `row.broken`."""
    row = Row(drill.name, drill.fault, WHERE[drill.where])
    with scene_of(drill, place.folder / drill.name, place.dataset, place.server, brief=brief) as scene:
        return to_row(row, scene, lambda: drill.run(scene))


def run_there(drill: Drill, scene: ClusterScene) -> Row:
    """A drill on the cluster's release, to its row; the release goes on to the next one."""
    row = Row(drill.name, drill.fault, WHERE[drill.where])
    scene.begin(drill)
    return to_row(row, scene, lambda: drill.run(scene))


def to_row(row: Row, scene: Scene | ClusterScene, run: Callable[[], str]) -> Row:
    """Run it, and judge what came of it."""
    began = time.monotonic()
    try:
        row.detected = run()
        if isinstance(scene, Scene):
            promises.judge(scene, row)
        else:
            judge(scene, row)
    except NotHereError as error:
        row.skipped = str(error)
    except (BrokenPromiseError, AssertionError) as error:
        row.broken.append(str(error))
    except Exception as error:
        traceback.print_exc()
        row.broken.append(f"the drill itself failed: {type(error).__name__}: {error}")
    row.person, row.notes = scene.person, scene.notes
    row.took_seconds = time.monotonic() - began
    return row
