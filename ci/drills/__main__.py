"""`python -m drills` with ci/ and the repository's root on the path; `make drills` does that."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "ci")]

from drills.cli import start  # noqa: E402

if __name__ == "__main__":
    sys.exit(start())
