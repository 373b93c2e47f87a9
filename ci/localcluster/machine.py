"""A machine of the cluster: one process in a network, mount and process namespace of its own.

Nothing is registered anywhere: the kernel keeps the namespaces for as long as their first process lives, and ends every
process in them with it. So killing that one process leaves no daemon, container, mount, interface or route behind,
however far a start had come. Processes are found by a marker in their environment, which no later process that got
the same number can carry.

Only control groups are not namespaced (and stay empty, when the processes are gone): see `remove_cgroups`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from localcluster.settings import Paths
from localcluster.shell import ClusterError, run, tail, wait_for

MACHINE = "GIBLET_MACHINE"
DAEMON = "GIBLET_DAEMON"
CGROUPS = Path("/sys/fs/cgroup")

# The first process of a machine. /run and /var are the machine's own, since kubelet, containerd and the CNI plugins
# write to fixed paths there; /run is memory, so the mark that all is set up ends with the machine. An empty resolv.conf
# makes a look-up of an outer name fail at once, where it would otherwise wait for a server that cannot be reached.
_INIT = """
set -e
mount --make-rshared /
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p "$1/var/lib" "$1/var/log" "$1/var/tmp"
ln -sfn /run "$1/var/run"
mount --bind "$1/var" /var
if [ -e /etc/resolv.conf ]; then : > /run/resolv.conf; mount --bind /run/resolv.conf /etc/resolv.conf; fi
ip link set lo up
touch /run/giblet-machine
exec "$2" -P
"""


class Machine:
    """One namespace set; `start` is idempotent, and `daemon` starts programs in it."""

    def __init__(self, paths: Paths, name: str) -> None:
        self.paths = paths
        self.name = name
        self.folder = paths.state / name
        self.marker = f"{paths.identity}/{name}"

    @property
    def init_pid(self) -> int | None:
        """The first process, by its number outside; None when the machine is not running."""
        for pid in marked_processes(MACHINE, self.marker):
            if _namespace_pids(pid)[-1:] == [1] and len(_namespace_pids(pid)) > 1:
                return pid
        return None

    @property
    def configured(self) -> Path:
        """A file that exists once the network is set up; it lies in the machine's memory, and ends with it."""
        return Path(f"/proc/{self.init_pid}/root/run/giblet-network")

    def start(self, catatonit: Path) -> None:
        """Make the namespaces, unless they are there. One that was left half-made is made again."""
        pid = self.init_pid
        if pid is not None and self.configured.exists():
            return
        self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.paths.log(f"{self.name}-init")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        _spawn([*command, "sh", "-c", _INIT, "sh", str(self.folder), str(catatonit)], self._environment(), log)
        wait_for(
            f"machine {self.name}", lambda: self._is_up(catatonit), timeout_seconds=10, poll_seconds=0.02,
            hint=lambda: tail(log),
        )  # fmt: skip

    def _is_up(self, catatonit: Path) -> bool:
        """Whether the first process is what it stays. While it turns into that, its environment cannot be read."""
        pid = self.init_pid
        if pid is None or not Path(f"/proc/{pid}/root/run/giblet-machine").exists():
            return False
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(f"{catatonit}\0".encode())
        return False

    def enter(self, *, processes: bool = True) -> list[str]:
        """The words before a command that run it in here; without `processes`, process numbers are the outer ones."""
        pid = self.init_pid
        if pid is None:
            raise ClusterError(f"{self.name} is not running", remedy="ci/cluster up")
        return ["nsenter", f"--target={pid}", "--net", "--mount", *(["--pid"] if processes else [])]

    def run(self, *command: str | Path) -> str:
        """Run a command in here to its end."""
        return run([*self.enter(processes=False), *command])

    def daemon(self, name: str, command: Sequence[str | Path], *, pass_fds: Sequence[int] = ()) -> None:
        """Start a program in here that outlives us, unless it runs; its output goes to logs/<machine>-<name>.log."""
        if self.daemon_pid(name) is not None:
            return
        environment = self._environment() | {DAEMON: f"{self.marker}/{name}={Path(command[0]).name}"}
        log = self.paths.log(f"{self.name}-{name}")
        words = [*self.enter(), "setsid", "--fork", *(str(word) for word in command)]
        process = _spawn(words, environment, log, pass_fds=pass_fds)
        if process.wait() != 0:
            raise ClusterError(f"cannot start {name} on {self.name}\n    {tail(log)}")

    def daemon_pid(self, name: str) -> int | None:
        """The process of a daemon; None when it does not run. (Its children inherit the marker, but not its name.)"""
        for pid in marked_processes(DAEMON, f"{self.marker}/{name}=", prefix=True):
            with contextlib.suppress(OSError):
                process = Path(f"/proc/{pid}")
                argv0 = (process / "cmdline").read_bytes().split(b"\0")[0].decode()
                marked = f"={Path(argv0).name}\0".encode() in (process / "environ").read_bytes()
                if marked and _status(pid).get("PPid") == str(self.init_pid):
                    return pid
        return None

    def stop(self) -> None:
        """End every process of the machine, and wait until the kernel has let go of them.

        The first process ends those inside with it; `unshare` outside then ends by itself, having read its status.
        """
        pid = self.init_pid
        if pid is not None:
            _kill(pid)
            with contextlib.suppress(ClusterError):
                wait_for(self.name, self._is_gone, timeout_seconds=5, poll_seconds=0.02)
        for straggler in marked_processes(
            MACHINE, self.marker
        ):  # a start that was killed before it had a first process
            _kill(straggler)
        wait_for(f"the end of {self.name}", self._is_gone, timeout_seconds=15, poll_seconds=0.02)

    def _is_gone(self) -> bool:
        return not any(marked_processes(MACHINE, self.marker))

    def _environment(self) -> dict[str, str]:
        path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
        return {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", MACHINE: self.marker}


def marked_processes(variable: str, value: str, *, prefix: bool = False) -> Iterator[int]:
    """Processes with `variable=value` (or, with `prefix`, a value that starts so) in their environment."""
    wanted = f"{variable}={value}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                words = (folder / "environ").read_bytes().split(b"\0")
                if any(word.startswith(wanted) if prefix else word == wanted for word in words):
                    yield int(folder.name)


def machines(paths: Paths) -> set[str]:
    """Names of all machines of this cluster that have a process, recorded or not."""
    names = set()
    for pid in marked_processes(MACHINE, f"{paths.identity}/", prefix=True):
        with contextlib.suppress(OSError):
            for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if word.startswith(f"{MACHINE}={paths.identity}/".encode()):
                    names.add(word.decode().rpartition("/")[2])
    return names


def make_cgroups(path: str) -> None:
    """Make a group for a node's pods in every hierarchy; version 1's cpuset starts empty, and must be filled."""
    cluster = Path(path).parts[0]
    if (CGROUPS / "cgroup.controllers").exists():
        _make_unified_cgroup(path)
        _weigh(CGROUPS / cluster / "cpu.weight", 100)
        return
    for hierarchy in _hierarchies():
        (hierarchy / path).mkdir(parents=True, exist_ok=True)
    _weigh(CGROUPS / "cpu" / cluster / "cpu.shares", 1024)
    for setting in ("cpuset.cpus", "cpuset.mems"):
        folder = CGROUPS / "cpuset"
        if (folder / setting).exists():
            allowed = (folder / setting).read_text()
            for part in Path(path).parts:
                folder = folder / part
                (folder / setting).write_text(allowed)


def _weigh(setting: Path, of_one_process: int) -> None:
    """Let all pods together have as much of the processor, when others want it, as eight processes outside.

    A group counts as one process, whatever is in it: beside other tests, a cluster's pods stood almost still.
    """
    if setting.exists():
        setting.write_text(str(8 * of_one_process))


def _make_unified_cgroup(path: str) -> None:
    folder = CGROUPS
    for part in Path(path).parts:
        wanted = " ".join(f"+{name}" for name in (folder / "cgroup.controllers").read_text().split())
        (folder / "cgroup.subtree_control").write_text(wanted)
        folder = folder / part
        folder.mkdir(exist_ok=True)


def remove_cgroups(path: str) -> None:
    """Remove a group and all below it in every hierarchy; the processes in it must have ended."""
    for hierarchy in _hierarchies():
        root = hierarchy / path
        if not root.exists():
            continue
        for folder, _, _ in os.walk(root, topdown=False):
            group = Path(folder)
            for pid in (group / "cgroup.procs").read_text().split():
                _kill(int(pid))
            wait_for(f"the end of {group}", lambda group=group: _removed(group), timeout_seconds=10)  # type: ignore[misc]


def cgroups_left(path: str) -> list[str]:
    """The folders of a group that still exist."""
    return [str(hierarchy / path) for hierarchy in _hierarchies() if (hierarchy / path).exists()]


def _hierarchies() -> list[Path]:
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [folder for folder in CGROUPS.iterdir() if folder.is_dir() and not folder.is_symlink()]


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _spawn(
    command: Sequence[str], environment: dict[str, str], log: Path, *, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,
            pass_fds=pass_fds,
        )


def _status(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {}


def _namespace_pids(pid: int) -> list[int]:
    """A process's numbers, from our namespace inwards; [] when it is gone."""
    return [int(number) for number in _status(pid).get("NSpid", "").split()]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
