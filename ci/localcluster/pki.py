"""Certificates for one cluster, and kubeconfigs that carry them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from localcluster.shell import run, write_atomically

_DAYS = "30"  # a cluster to try things on; a longer life would only be a longer risk
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Identity:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """The cluster's certificate authority. Files that exist are kept, so `up` after a kill goes on with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self.key = folder / "ca.key"

    def create(self) -> None:
        """Make the authority, and the key pair that signs service account tokens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not self.certificate.exists():
            new = ["openssl", "req", "-x509", *_KEY, "-days", _DAYS, "-subj", "/CN=giblet-local-cluster"]
            self._make([*new, "-keyout", "{key}", "-out", "{crt}"], Identity(self.certificate, self.key))
        if not self.service_accounts.certificate.exists():
            public = self.folder / "service-accounts.pub"
            key = run(["openssl", "genrsa", "2048"])
            write_atomically(self.service_accounts.key, key, 0o600)
            write_atomically(public, run(["openssl", "rsa", "-pubout"], stdin=key))

    @property
    def service_accounts(self) -> Identity:
        """Public and private half of the token-signing key."""
        return Identity(self.folder / "service-accounts.pub", self.folder / "service-accounts.key")

    def issue(self, name: str, common_name: str, *, group: str | None = None, hosts: tuple[str, ...] = ()) -> Identity:
        """A certificate for client and server use, signed by the authority; `hosts` as `IP:…` and `DNS:…`."""
        identity = Identity(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        if identity.certificate.exists():
            return identity
        subject = f"/CN={common_name}" if group is None else f"/O={group}/CN={common_name}"
        extensions = ["-addext", "extendedKeyUsage=clientAuth,serverAuth"]
        if hosts:
            extensions += ["-addext", f"subjectAltName={','.join(hosts)}"]
        signed = ["-x509", "-CA", str(self.certificate), "-CAkey", str(self.key), "-days", _DAYS]
        command = ["openssl", "req", *_KEY, *signed, "-subj", subject, *extensions]
        self._make([*command, "-addext", "basicConstraints=CA:FALSE", "-keyout", "{key}", "-out", "{crt}"], identity)
        return identity

    def kubeconfig(self, path: Path, identity: Identity, server: str) -> Path:
        """Write a kubeconfig (JSON is YAML) that needs no other file."""
        certificates = {
            "client-certificate-data": _base64(identity.certificate),
            "client-key-data": _base64(identity.key),
        }
        cluster = {"server": server, "certificate-authority-data": _base64(self.certificate)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "giblet", "cluster": cluster}],
            "users": [{"name": "giblet", "user": certificates}],
            "contexts": [{"name": "giblet", "context": {"cluster": "giblet", "user": "giblet"}}],
            "current-context": "giblet",
        }
        write_atomically(path, json.dumps(config, indent=1), 0o600)
        return path

    def _make(self, command: list[str], identity: Identity) -> None:
        """Run openssl into new files; the certificate, whose presence says that all is done, takes its name last."""
        new_key, new_certificate = (path.with_name(f"{path.name}.new") for path in (identity.key, identity.certificate))
        run([word.format(key=new_key, crt=new_certificate) for word in command])
        new_key.chmod(0o600)
        new_key.replace(identity.key)
        new_certificate.replace(identity.certificate)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
