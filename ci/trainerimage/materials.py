"""What a build without a registry or without a network inside needs first: wheels, and a base image."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from localcluster.settings import REPOSITORY
from localcluster.shell import ClusterError, run, succeeds
from localcluster.tools import install

from trainerimage.inputs import LOCKS, locks_key

DEBIAN = "bookworm"
STAND_IN = f"localhost/giblet-base:{DEBIAN}"
_PACKAGES = "python3,python3-venv,ca-certificates"
# Documentation, and what apt and dpkg only need again to install more.
_LEFT_OUT = ("var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man", "usr/share/locale")


def wheels_folder(cache: Path) -> Path:
    """Where the wheels of the current lock lie, or will."""
    return cache / "wheels" / locks_key()


def fetch_wheels(folder: Path) -> None:
    """Download every package of the locks, each checked against its hash (2.9 GB); older locks' folders go away.

    Builds may see no network, or a proxy whose certificate only this machine trusts; so it is done here, before.
    """
    if folder.exists():
        return
    if sys.version_info[:2] != (3, 11) or sys.platform != "linux":
        remedy = "run it with Python 3.11 on Linux, or build with Docker, which downloads by itself"
        raise ClusterError(
            "wheels are chosen for the Python that downloads them, and the image's is 3.11", remedy=remedy
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.iterdir():
        shutil.rmtree(old)
    unfinished = folder.with_suffix(".new")
    for lock in LOCKS:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        run([*command, "--requirement", REPOSITORY / lock, "--dest", unfinished])
    unfinished.rename(folder)


def has_stand_in() -> bool:
    """Whether buildah has the base that debootstrap made."""
    return succeeds(["buildah", "inspect", "--type=image", STAND_IN])


def make_stand_in() -> None:
    """A minimal Debian with Python 3.11 as an image of buildah's, for machines that reach no image registry."""
    if shutil.which("debootstrap") is None:
        install(["debootstrap"])
    with tempfile.TemporaryDirectory(prefix="giblet-base-") as folder:
        root = Path(folder) / "root"
        run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", DEBIAN, root])
        for name in _LEFT_OUT:
            shutil.rmtree(root / name)
            (root / name).mkdir()
        container = run(["buildah", "from", "scratch"]).strip()
        run(["buildah", "add", "--quiet", container, root, "/"])
        run(["buildah", "config", "--cmd", "python3", "--env", "LANG=C.UTF-8", container])
        run(["buildah", "commit", "--quiet", "--rm", container, STAND_IN])
