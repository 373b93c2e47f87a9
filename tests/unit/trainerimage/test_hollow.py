"""docker/without_accelerator.py: the hollow libraries that stand in for CUDA's in an image for CPUs."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "docker/without_accelerator.py"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="ELF for x86-64: needs Linux on it"
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("without_accelerator", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loader_takes_it_and_each_function_returns_an_error(script, tmp_path):
    names = [f"gpu_function_{number}".encode() for number in range(500)]
    path = tmp_path / "libgpu.so.7"
    path.write_bytes(script.hollow_library(path.name, names, [b"libgpu.so.7", b"GPU_2"]))
    library = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    assert {getattr(library, name.decode())() for name in names} == {1}
    with pytest.raises(AttributeError):
        _ = library.never_defined


def test_what_it_writes_it_reads(script):
    names = sorted(f"f{number}".encode() for number in range(40))
    content = _with_sections(script.hollow_library("liba.so.1", names, [b"liba.so.1", b"V_1"]), script)
    assert content == (names, [b"liba.so.1", b"V_1"])


def _with_sections(library: bytes, script: ModuleType) -> tuple[list[bytes], list[bytes]]:
    """Names and versions by the dynamic section's word, since hollow libraries carry no section headers."""
    dynamic = {}
    for start in range(4096, 4096 + 16 * 10, 16):
        tag, value = int.from_bytes(library[start : start + 8], "little"), library[start + 8 : start + 16]
        dynamic[tag] = int.from_bytes(value, "little")
    strings, symbols, count = dynamic[5], dynamic[6], int.from_bytes(library[dynamic[4] + 4 : dynamic[4] + 8], "little")
    places = [int.from_bytes(library[symbols + 24 * n : symbols + 24 * n + 4], "little") for n in range(1, count)]
    names = [library[strings + p : library.index(b"\0", strings + p)] for p in places]
    versions, at = [], dynamic[0x6FFFFFFC]
    for _ in range(dynamic[0x6FFFFFFD]):
        place = int.from_bytes(library[at + 20 : at + 24], "little")
        versions.append(library[strings + place : library.index(b"\0", strings + place)])
        at += int.from_bytes(library[at + 16 : at + 20], "little")
    return names, versions


@pytest.mark.skipif(shutil.which("gcc") is None, reason="a compiler makes the library that is read")
def test_a_real_library_s_names_and_versions_are_read(script, tmp_path):
    (tmp_path / "a.c").write_text(
        "int seen(void){return 3;} static int unseen(void){return 4;} int b(void){return unseen();}"
    )
    (tmp_path / "a.map").write_text("VERS_1 { global: seen; b; local: *; };")
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,liba.so.1", f"-Wl,--version-script={tmp_path / 'a.map'}"]
    subprocess.run([*command, "-o", tmp_path / "liba.so.1", tmp_path / "a.c"], check=True)
    content = (tmp_path / "liba.so.1").read_bytes()
    assert {b"seen", b"b"} <= set(script.exported(content))
    assert b"unseen" not in set(script.exported(content))
    assert script.versions(content) == [b"liba.so.1", b"VERS_1"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="a compiler makes the program that wants the library")
def test_a_program_that_binds_everything_at_once_starts_with_it(script, tmp_path):
    """As Python loads torch: every function of every needed library, with its version, or the import fails."""
    (tmp_path / "real.c").write_text("int launch(void){return 0;}")
    (tmp_path / "real.map").write_text("libgpu.so.7 { global: launch; local: *; };")
    (tmp_path / "user.c").write_text("int launch(void); int go(void){return launch();}")
    real = tmp_path / "libgpu.so.7"
    link = ["gcc", "-shared", "-fPIC"]
    versions = f"-Wl,--version-script={tmp_path / 'real.map'}"
    subprocess.run([*link, "-Wl,-soname,libgpu.so.7", versions, "-o", real, tmp_path / "real.c"], check=True)
    user = [*link, "-Wl,-z,now", "-o", tmp_path / "user.so", tmp_path / "user.c", real, f"-Wl,-rpath,{tmp_path}"]
    subprocess.run(user, check=True)
    content = real.read_bytes()
    real.unlink()
    real.write_bytes(script.hollow_library(real.name, sorted(set(script.exported(content))), script.versions(content)))
    program = f"import ctypes; print(ctypes.CDLL({str(tmp_path / 'user.so')!r}).go())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "1\n"
