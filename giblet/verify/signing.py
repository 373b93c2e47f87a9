"""Signatures of manifests: whoever holds the key says that the judge accepted exactly these bytes.

An Ed25519 signature (RFC 8032) of the manifest's bytes as they were read, 64 bytes of its own in `MANIFEST.json.sig`
beside it. The manifest names every object with its checksum, its run, step and attempt, so that a signature holds for
one checkpoint and no other. `openssl pkeyutl -verify -rawin` checks it without giblet.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from giblet.checkpoint.layout import MANIFEST, SIGNATURE
from giblet.errors import ConfigError
from giblet.storage import Storage
from giblet.verify.report import Check
from giblet.verify.sources import Source

SIGNATURE_BYTES = 64
_MOST_KEY_BYTES = 1 << 16
_NEW_KEY = "openssl genpkey -algorithm ed25519 -out signing.pem; openssl pkey -in signing.pem -pubout -out signing.pub"


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key."""

    key: Ed25519PrivateKey

    @classmethod
    def read(cls, path: Path) -> Signer:
        """From a PEM file. Raises `ConfigError` if it is none, or not an Ed25519 key."""
        data = _pem(path, "private")
        try:
            key = load_pem_private_key(data, password=None)
        except TypeError:
            raise ConfigError(f"{path}: the private key has a passphrase", remedy="give one without") from None
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(f"{path}: holds no private key in PEM", remedy=f"make one: {_NEW_KEY}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path}: is not an Ed25519 key", remedy=f"make one: {_NEW_KEY}")
        return cls(key)

    @property
    def name(self) -> str:
        """The public key's fingerprint."""
        return fingerprint(self.key.public_key())

    def sign(self, storage: Storage, prefix: str, manifest: bytes) -> None:
        """Write the signature of `manifest` beside it; `prefix` is the checkpoint's folder, with its slash."""
        storage.put(prefix + SIGNATURE, self.key.sign(manifest))


def read_public_key(path: Path) -> Ed25519PublicKey:
    """From a PEM file. Raises `ConfigError` if it is none, or not an Ed25519 key."""
    data = _pem(path, "public")
    if b"PRIVATE KEY" in data:
        remedy = f"openssl pkey -in {path} -pubout -out signing.pub"
        raise ConfigError(f"{path}: is a private key, and only the public one is needed to check", remedy=remedy)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: holds no public key in PEM", remedy=f"make one: {_NEW_KEY}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: is not an Ed25519 key", remedy=f"make one: {_NEW_KEY}")
    return key


def _pem(path: Path, which: Literal["private", "public"]) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_KEY_BYTES)
    except OSError as error:
        remedy = f"make one: {_NEW_KEY}" if isinstance(error, FileNotFoundError) else "is it readable by this user?"
        raise ConfigError(f"{path}: the {which} key cannot be read: {error.strerror}", remedy=remedy) from None


def fingerprint(key: Ed25519PublicKey) -> str:
    """`SHA256:` and the hash of the public key's 32 bytes, in hexadecimal."""
    return "SHA256:" + hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def signed(source: Source, key: Ed25519PublicKey) -> Check:
    """Whether the signature beside a checkpoint's manifest is by `key`, and of the bytes that were judged."""
    if source.manifest_bytes is None:
        return Check("signed", "failed", f"not signed: a {source.kind} file has no manifest that could be")
    try:
        signature = source.storage.get(source.place + SIGNATURE)
    except KeyError:
        return Check("signed", "failed", f"not signed: there is no {SIGNATURE} beside its {MANIFEST}")
    try:
        key.verify(signature, source.manifest_bytes)
    except InvalidSignature:
        of = "" if len(signature) == SIGNATURE_BYTES else f" ({len(signature):,} bytes, not {SIGNATURE_BYTES})"
        return Check(
            "signed", "failed", f"{SIGNATURE}{of} is not the signature of this {MANIFEST} by {fingerprint(key)}"
        )
    return Check("signed", "passed", f"its {MANIFEST} is signed by {fingerprint(key)}")
