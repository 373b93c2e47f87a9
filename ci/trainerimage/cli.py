"""ci/image: the image that runs in a cluster.

    ci/image build [--accelerator none]      → its name; again: seconds, unless a file of it changed
    ci/image push REGISTRY/NAME[:TAG]        builds it if need be; → its reference by digest, for `image:` of the values
    ci/image test [REFERENCE]                as uid 123456, without capabilities, on a read-only root: --version, a tiny
                                             data set prepared, a training run, its checkpoint verified
    ci/image sizes                           each layer's bytes

With a Docker engine it builds with BuildKit; without one, as root on Linux, with buildah (installed if missing). The
whole image is about 6 GB: CUDA's libraries are most of it. `--accelerator none` leaves those out, for CI: 2.5 GB.
The first build downloads 2.9 GB of packages and takes 5 to 10 minutes; a change of code, half a minute.

`test` uses Docker if there, else a pod of the cluster that `ci/cluster` found or made. To a registry of a lab:
`docker login REGISTRY` (or `buildah login REGISTRY`) first; no password is ever given to this program.

Caches: $XDG_CACHE_HOME/giblet/image (~/.cache/giblet/image), and the builder's own store.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from localcluster.settings import Paths
from localcluster.shell import ClusterError
from localcluster.steps import Step, Steps

from trainerimage import check
from trainerimage.builders import Builder, choose
from trainerimage.inputs import ACCELERATORS, Inputs


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _VERBS[options.verb](options)
    except ClusterError as error:
        print(f"ci/image {options.verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ci/image {options.verb}: stopped; run it again to go on from the last finished layer", file=sys.stderr)
        return 130


def cache_folder() -> Path:
    """Where wheels and timings are kept, beside ci/cluster's cache."""
    return Paths.from_environment().cache.parent / "image"


def built(builder: Builder, inputs: Inputs, steps: Steps) -> tuple[str, float]:
    """The local name of the image, built now unless it is there, and the seconds that took."""
    inputs = replace(inputs, base_image=builder.base_image(inputs.base_image))
    tag = f"localhost/giblet:{inputs.accelerator}-{inputs.key()}"
    return tag, 0.0 if builder.has(tag) else steps.run(builder.steps(inputs, tag))


def _build(options: argparse.Namespace) -> int:
    tag, seconds = built(choose(cache_folder(), options.builder), _inputs(options), _steps())
    print(f"{'was there' if not seconds else f'built in {seconds:.0f} s'}", file=sys.stderr)
    print(json.dumps({"image": tag, "seconds": round(seconds, 1)}) if options.json else tag)
    return 0


def _push(options: argparse.Namespace) -> int:
    builder, steps = choose(cache_folder(), options.builder), _steps()
    tag, _ = built(builder, _inputs(options), steps)
    last = options.target.rpartition("/")[2]
    target = options.target if ":" in last else f"{options.target}:{tag.rpartition(':')[2]}"
    digests: list[str] = []

    def push() -> None:
        digests.append(builder.push(tag, target, insecure=options.insecure))

    steps.run([Step(f"push {target}", push, 90)])
    repository, _, name = target.rpartition(":")
    facts = {"repository": repository, "tag": name, "digest": digests[0], "image": f"{repository}@{digests[0]}"}
    print(json.dumps(facts) if options.json else facts["image"])
    return 0


def _test(options: argparse.Namespace) -> int:
    facts = check.run_anywhere(options.reference, cache_folder(), _inputs(options), _steps(), builder=options.builder)
    print(json.dumps(facts, indent=2) if options.json else check.table(facts))
    return 0


def _sizes(options: argparse.Namespace) -> int:
    builder = choose(cache_folder(), options.builder)
    tag, _ = built(builder, _inputs(options), _steps())
    rows = builder.layers(tag)
    if options.json:
        print(json.dumps([{"bytes": size, "made_by": made_by} for made_by, size in rows]))
    else:
        for made_by, size in rows:
            print(f"{size / 1e6:9.1f} MB  {' '.join(made_by.split())[:110]}")
        print(f"{sum(size for _, size in rows) / 1e6:9.1f} MB  {tag}")
    return 0


_VERBS = {"build": _build, "push": _push, "test": _test, "sizes": _sizes}


def _steps() -> Steps:
    return Steps(cache_folder() / "timings.json")


def _inputs(options: argparse.Namespace) -> Inputs:
    return Inputs(options.accelerator, options.base_image, options.source)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ci/image", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="build|push|test|sizes")
    for verb in _VERBS:
        sub = verbs.add_parser(verb)
        sub.add_argument("--accelerator", choices=ACCELERATORS, default="cuda", help="default: cuda; none: CPU only")
        sub.add_argument(
            "--base-image", default="", metavar="REF", help="a Debian with Python 3.11 (default: by digest)"
        )
        sub.add_argument("--source", default="", metavar="URL", help="where the source lies, for the image's label")
        sub.add_argument("--builder", choices=("auto", "docker", "buildah"), default="auto")
        sub.add_argument("--json", action="store_true", help="one JSON document on standard output")
        if verb == "push":
            sub.add_argument("target", metavar="REGISTRY/NAME[:TAG]")
            sub.add_argument("--insecure", action="store_true", help="speak to the registry without TLS")
        if verb == "test":
            sub.add_argument("reference", nargs="?", default="", metavar="REFERENCE", help="default: what build makes")
    return parser
