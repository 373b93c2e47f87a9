"""libfaketime, for a process whose clock is wrong: installed, or unpacked from Debian's package into the cache."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from drills.drill import NotHereError

_NAME = "usr/lib/*/faketime/libfaketimeMT.so.1"


def preload(cache: Path) -> Path:
    """The library to preload. Raises `NotHereError` where it is not, and cannot be fetched."""
    folder = cache / "faketime"
    for root in (Path("/"), folder):
        if (found := next(root.glob(_NAME), None)) is not None:
            return found
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NotHereError("libfaketime is not installed, and this is no Debian")
    folder.mkdir(parents=True, exist_ok=True)
    fetch = ["apt-get", "download", "-o", "APT::Sandbox::User=root", "libfaketime"]
    done = subprocess.run(fetch, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHereError(f"libfaketime is not installed, and cannot be fetched: {done.stderr.strip()[-200:]}")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
    return next(folder.glob(_NAME))
