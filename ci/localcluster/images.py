"""Container images for the add-ons: a few files on an empty root, written as OCI images and pushed over HTTP.

Nothing is pulled from anywhere. Layers stay uncompressed: they travel from one folder of this machine to another.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localcluster.shell import ClusterError, write_atomically

_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class ImageSpec:
    """A small image: `files` maps paths inside to files here; a dynamic program brings its libraries along."""

    name: str
    files: Mapping[str, Path]
    entrypoint: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """An image as blobs in the cache; `tag` is made of its content, so a changed program has another name."""

    name: str
    tag: str
    layer: Path
    layer_digest: str
    config: bytes
    manifest: bytes


class ImageCache:
    """Builds images once; the key is the programs' paths, sizes and times."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def built(self, spec: ImageSpec) -> bool:
        """Whether the layer of this image is there."""
        return self._record(spec).exists()

    def image(self, spec: ImageSpec) -> Image:
        """The image, built now if it is not cached."""
        record = self._record(spec)
        if not record.exists():
            self._build(spec)
        facts = json.loads(record.read_text())
        digest, size = facts["digest"], facts["size"]
        config = _json(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Entrypoint": list(spec.entrypoint), "Env": ["PATH=/bin:/usr/bin"], "User": "65532:65532"},
                "rootfs": {"type": "layers", "diff_ids": [digest]},
            }
        )
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST_TYPE,
                "config": {"mediaType": _CONFIG_TYPE, "digest": _digest(config), "size": len(config)},
                "layers": [{"mediaType": _LAYER_TYPE, "digest": digest, "size": size}],
            }
        )
        layer = self._layer(spec)
        return Image(spec.name, _digest(manifest)[7:19], layer, digest, config, manifest)

    def _key(self, spec: ImageSpec) -> str:
        facts = [
            (inside, str(path), path.stat().st_size, path.stat().st_mtime_ns) for inside, path in spec.files.items()
        ]
        text = json.dumps([facts, dict(spec.links)])
        return f"{spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _record(self, spec: ImageSpec) -> Path:
        return self.folder / f"{self._key(spec)}.json"

    def _layer(self, spec: ImageSpec) -> Path:
        return self.folder / f"{self._key(spec)}.tar"

    def _build(self, spec: ImageSpec) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        layer = self._layer(spec)
        unfinished = layer.with_suffix(".new")
        _write_layer(spec, unfinished)
        digest = hashlib.sha256()
        with unfinished.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        size = unfinished.stat().st_size
        unfinished.replace(layer)
        write_atomically(self._record(spec), json.dumps({"digest": f"sha256:{digest.hexdigest()}", "size": size}))


def push(image: Image, port: int) -> None:
    """Push to the registry on the host's loopback; blobs that it has are not sent again."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        _push_blob(connection, image.name, image.layer_digest, image.layer)
        _push_blob(connection, image.name, _digest(image.config), image.config)
        _request(
            connection,
            "PUT",
            f"/v2/{image.name}/manifests/{image.tag}",
            image.manifest,
            {"Content-Type": _MANIFEST_TYPE},
            expected=201,
        )
    finally:
        connection.close()


def _push_blob(connection: http.client.HTTPConnection, name: str, digest: str, content: bytes | Path) -> None:
    connection.request("HEAD", f"/v2/{name}/blobs/{digest}")
    answer = connection.getresponse()
    answer.read()
    if answer.status == 200:
        return
    location = _request(connection, "POST", f"/v2/{name}/blobs/uploads/", b"", {}, expected=202)
    address = location[location.index("/v2/") :]
    separator = "&" if "?" in address else "?"
    length = len(content) if isinstance(content, bytes) else content.stat().st_size
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
    stream = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    with stream:
        _request(connection, "PUT", f"{address}{separator}digest={digest}", stream, headers, expected=201)


def _request(
    connection: http.client.HTTPConnection,
    method: str,
    address: str,
    body: Any,
    headers: dict[str, str],
    *,
    expected: int,
) -> str:
    connection.request(method, address, body=body, headers=headers)
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != expected:
        raise ClusterError(f"the local registry answered {answer.status} to {method} {address}: {said[:300]!r}")
    return answer.getheader("Location") or ""


def _write_layer(spec: ImageSpec, target: Path) -> None:
    """A tar with fixed times and owners, so that the same programs always give the same digest."""
    files = dict(spec.files)
    for path in spec.files.values():
        files |= {str(library): library.resolve() for library in shared_libraries(path)}
    links = dict(spec.links)
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        folders = {str(parent) for inside in [*files, *links] for parent in Path(inside).parents}
        for folder in sorted(folders - {"/"}):
            archive.addfile(_entry(folder, tarfile.DIRTYPE, 0o755))
        archive.addfile(_entry("/tmp", tarfile.DIRTYPE, 0o1777))
        for inside, path in sorted(files.items()):
            entry = _entry(inside, tarfile.REGTYPE, 0o755)
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(entry, content)
        for inside, destination in sorted(links.items()):
            entry = _entry(inside, tarfile.SYMTYPE, 0o777)
            entry.linkname = destination
            archive.addfile(entry)


def _entry(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.type, entry.mode = kind, mode
    return entry


def shared_libraries(program: Path) -> list[Path]:
    """What ldd says a program loads; [] for a static one."""
    said = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", said)]


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
