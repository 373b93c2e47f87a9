"""Write the files that are generated (from the schema, by ci/dashboards, or copies); with --check, only say which are
stale (exit 1)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dashboards import BOARDS, dashboard_text
from metrics_page import metrics_page

from giblet.config.generate import never_null_text, reference_text, values_schema_text

ROOT = Path(__file__).resolve().parent.parent
GENERATED: dict[str, Callable[[], str]] = {
    "helm/giblet/values.schema.json": values_schema_text,
    "helm/giblet/files/never-null.txt": never_null_text,
    "configs/README.md": reference_text,
    "docs/metrics.md": metrics_page,
    # kustomize reads nothing outside its folder
    "k8s/monitoring/rules.yaml": lambda: (ROOT / "helm/giblet/files/monitoring/rules.yaml").read_text(encoding="utf-8"),
    **{f"helm/giblet/files/monitoring/{name}.json": partial(dashboard_text, name) for name in BOARDS},
}


def main() -> int:
    """Compare or write each file."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, make in GENERATED.items():
        path, text = ROOT / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'stale; run `make generated`' if check else 'written'}", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
