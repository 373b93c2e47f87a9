"""A second Ctrl-C leaves at once, from a process of its own; the rest is in test_loop."""

import subprocess
import sys
from pathlib import Path

SIGNALS = Path(__file__).parents[3] / "giblet/training/signals.py"
PROGRAM = f"""
import importlib.util, os, signal, time
spec = importlib.util.spec_from_file_location("signals", {str(SIGNALS)!r})
signals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signals)
with signals.StopFlag() as stop:
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
        assert stop.requested
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_a_second_interrupt_leaves_at_once():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 128, ended.stderr
    assert ended.stdout == "still here\n"
    assert ended.stderr == "giblet: second interrupt: leaving without saving\n"
