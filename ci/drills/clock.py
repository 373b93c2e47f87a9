"""A wrong clock for one process: a library to preload that shifts the time of day, and no other clock.

libfaketime 0.9.10 was tried first: it also changes how Python sleeps, which then raises.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from drills.drill import NotHereError

SHIFT = "GIBLET_DRILL_SHIFT_SECONDS"
_SOURCE = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long shift(void) { const char *s = getenv("GIBLET_DRILL_SHIFT_SECONDS"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
    int answer = syscall(SYS_clock_gettime, id, t);
    if (answer == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += shift();
    return answer;
}
int gettimeofday(struct timeval *t, void *zone) {
    int answer = syscall(SYS_gettimeofday, t, zone);
    if (answer == 0 && t) t->tv_sec += shift();
    return answer;
}
time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""


def preload(folder: Path) -> Path:
    """The library, compiled into `folder`. Raises `NotHereError` where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotHereError("there is no C compiler, to make a clock wrong with")
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return library
