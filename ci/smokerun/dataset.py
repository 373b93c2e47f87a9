"""A small prepared dataset in the run's bucket: the first minutes of the example film, with a simulated brain.

It is made and published from here, so here must reach the bucket. An endpoint inside the cluster
(`http://NAME.NAMESPACE.svc:PORT`) is reached through `kubectl port-forward`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from localcluster.settings import Paths

from giblet.config import GibletConfig
from giblet.errors import GibletError
from smokerun.errors import CannotStartError

_SERVICE = re.compile(r"^(?P<name>[a-z0-9-]+)\.(?P<namespace>[a-z0-9-]+)\.svc(\.cluster\.local)?$")


def publish_example(config: GibletConfig, say: Callable[[str], None]) -> str:
    """Make the dataset unless it is there, and return its address. Needs `reaching` around it.

    Raises CannotStartError if it cannot be made, or the bucket cannot be written.
    """
    from giblet.data.example.write import write_example
    from giblet.data.prepare import prepare
    from giblet.data.transfer import dataset_key, publish
    from giblet.storage import open_storage

    cache = Paths.from_environment().cache.parent / "smoke"
    try:
        say("data: the example film's first four minutes, one simulated subject (the first time takes minutes)")
        write_example(cache / "bids", resolution_mm=6, subjects=1, minutes=4)
        here = {"bids": str(cache / "bids"), "prepared": None, "cache_dir": str(cache / "datasets")}
        dataset = prepare(config.data.model_copy(update=here))
        sent = publish(dataset, open_storage(config.checkpoint.url, config.checkpoint))
    except GibletError as error:
        remedy = error.remedy or "name a dataset that is there: --dataset s3://…/datasets/HASH"
        raise CannotStartError(f"the example dataset cannot be made: {error.message}", remedy=remedy) from error
    address = f"{config.checkpoint.url.rstrip('/')}/{dataset_key(dataset.manifest.content_hash).rstrip('/')}"
    say(f"data: {address} ({sent / 2**20:.1f} MiB sent)")
    return address


def delete_run(config: GibletConfig) -> int:
    """Remove what a run left in the bucket; returns how many objects. Needs `reaching` around it."""
    from giblet.storage import open_storage

    storage = open_storage(config.checkpoint.url, config.checkpoint)
    keys = [found.key for found in storage.list(f"runs/{config.run.name}/")]
    for key in keys:
        storage.delete(key)
    return len(keys)


@contextlib.contextmanager
def reaching(config: GibletConfig, secret: Mapping[str, str], context: str | None) -> Iterator[GibletConfig]:
    """The configuration with an endpoint that answers from here, and the run's credentials in the environment."""
    before = {key: os.environ.get(key) for key in secret}
    os.environ.update(secret)
    try:
        with _forwarded(config.checkpoint.endpoint_url, context) as endpoint:
            checkpoint = config.checkpoint.model_copy(update={"endpoint_url": endpoint})
            yield config.model_copy(update={"checkpoint": checkpoint})
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


@contextlib.contextmanager
def _forwarded(endpoint: str | None, context: str | None) -> Iterator[str | None]:
    """The endpoint itself, or a port on loopback if it is a Service."""
    parts = urlsplit(endpoint or "")
    service = _SERVICE.match(parts.hostname or "")
    if service is None:
        yield endpoint
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    command = ["kubectl", *(["--context", context] if context else []), "--namespace", service["namespace"]]
    command += ["port-forward", f"service/{service['name']}", f":{port}"]
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        except FileNotFoundError:
            remedy = "install kubectl, or name a dataset that is there: --dataset s3://…/datasets/HASH"
            raise CannotStartError(
                f"{endpoint} is inside the cluster, and kubectl is not here", remedy=remedy
            ) from None
        try:
            assert process.stdout is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            if found is None:
                errors.seek(0)
                raise CannotStartError(f"{endpoint} cannot be reached through kubectl: {errors.read().strip()}")
            yield f"{parts.scheme}://127.0.0.1:{found.group(1)}"
        finally:
            process.terminate()
            process.wait()
