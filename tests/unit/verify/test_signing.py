"""Signatures of manifests: made by the judge alone, checked by anyone, by giblet or by openssl."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from giblet.checkpoint.layout import SIGNATURE
from giblet.cli import main
from giblet.errors import ConfigError
from giblet.storage import LocalStorage
from giblet.verify.signing import Signer, read_public_key
from tests.support.weights import Written, legacy_file, small_config, trained_tensors, training_state, write_checkpoint

CONFIG = small_config()
TENSORS = trained_tensors(CONFIG)


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, Path]:
    """Two pairs, as the documentation makes them, and keys of other kinds."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("lab", "other"):
        openssl("genpkey", "-algorithm", "ed25519", "-out", str(folder / f"{name}.pem"))
        openssl("pkey", "-in", str(folder / f"{name}.pem"), "-pubout", "-out", str(folder / f"{name}.pub"))
    openssl("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", str(folder / "locked.pem"))
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(folder / "curve.pem"))
    openssl("pkey", "-in", str(folder / "curve.pem"), "-pubout", "-out", str(folder / "curve.pub"))
    (folder / "words.pem").write_text("not a key")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def checkpoint(tmp_path) -> Written:
    return write_checkpoint(LocalStorage(tmp_path / "store"), TENSORS, training_state(CONFIG))


def sign(checkpoint: Written, keys: dict[str, Path]) -> None:
    assert main(["verify", checkpoint.url, "--record", "--sign-key", str(keys["lab.pem"])]) == 0


def check(checkpoint: Written, key: Path, capsys) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["verify", checkpoint.url, "--public-key", str(key)])
    return code, " ".join(capsys.readouterr().out.split())


def test_signed_by_the_judge_and_checked_by_giblet_and_openssl(checkpoint, keys, capsys):
    folder = Path(checkpoint.url)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    sign(checkpoint, keys)
    code, said = check(checkpoint, keys["lab.pub"], capsys)
    assert code == 0
    assert f"signed passed its MANIFEST.json is signed by {Signer.read(keys['lab.pem']).name[:20]}" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != SIGNATURE} == before
    openssl(
        "pkeyutl", "-verify", "-pubin", "-inkey", str(keys["lab.pub"]), "-rawin",
        "-in", str(folder / "MANIFEST.json"), "-sigfile", str(folder / SIGNATURE),
    )  # fmt: skip
    report = checkpoint.storage.get(checkpoint.ref.report_key)
    assert Signer.read(keys["lab.pem"]).name.encode() in report


def test_another_key(checkpoint, keys, capsys):
    sign(checkpoint, keys)
    code, said = check(checkpoint, keys["other.pub"], capsys)
    assert code == 1
    assert "signed failed MANIFEST.json.sig is not the signature of this MANIFEST.json" in said
    assert "UNSAFE" in said


def test_no_signature(checkpoint, keys, capsys):
    assert main(["verify", checkpoint.url, "--record"]) == 0
    code, said = check(checkpoint, keys["lab.pub"], capsys)
    assert code == 1
    assert "not signed: there is no MANIFEST.json.sig" in said


def test_a_manifest_that_was_changed_and_sealed_again(checkpoint, keys, capsys):
    sign(checkpoint, keys)
    checkpoint.rewrite_manifest(created_by="somebody else")
    code, said = check(checkpoint, keys["lab.pub"], capsys)
    assert code == 1
    assert "complete passed" in said
    assert "signed failed" in said


def test_the_signature_of_another_checkpoint(checkpoint, keys, capsys):
    counts = {name: torch.tensor(16.0) for name in TENSORS if name.startswith("optimizer.step.")}
    other = write_checkpoint(checkpoint.storage, {**TENSORS, **counts}, training_state(CONFIG, 16), step=16)
    sign(checkpoint, keys)
    sign(other, keys)
    assert check(other, keys["lab.pub"], capsys)[0] == 0
    other.replace(SIGNATURE, checkpoint.storage.get(checkpoint.ref.prefix + SIGNATURE))
    assert check(other, keys["lab.pub"], capsys)[0] == 1
    other.replace(SIGNATURE, b"short")
    code, said = check(other, keys["lab.pub"], capsys)
    assert code == 1
    assert "(5 bytes, not 64)" in said


def test_a_whole_checkpoint_put_in_the_place_of_a_later_one(checkpoint, keys, capsys):
    """The signature is right; the manifest says whose it is."""
    sign(checkpoint, keys)
    later = write_checkpoint(checkpoint.storage, TENSORS, training_state(CONFIG, 16), step=16)
    for path in Path(checkpoint.url).iterdir():
        later.replace(path.name, path.read_bytes())
    code, said = check(later, keys["lab.pub"], capsys)
    assert code == 1
    assert "signed passed" in said
    assert "consistent failed" in said


def test_what_is_unsafe_is_not_signed_and_loses_its_signature(checkpoint, keys, tmp_path):
    sign(checkpoint, keys)
    options = ["--record", "--sign-key", str(keys["lab.pem"]), "--set", "verify.magnitude_limit=1e-6"]
    assert main(["verify", checkpoint.url, *options]) == 1
    assert checkpoint.storage.head(checkpoint.ref.prefix + SIGNATURE) is None
    assert b'"signed_by": null' in checkpoint.storage.get(checkpoint.ref.report_key)


def test_the_key_of_the_configuration(checkpoint, keys):
    assert main(["verify", checkpoint.url, "--record", "--set", f"verify.signing_key={keys['lab.pem']}"]) == 0
    assert checkpoint.storage.head(checkpoint.ref.prefix + SIGNATURE) is not None


def test_another_programs_file_has_no_signature(tmp_path, keys, capsys):
    legacy_file(tmp_path / "old.pt", TENSORS)
    assert main(["verify", str(tmp_path / "old.pt"), "--public-key", str(keys["lab.pub"])]) == 1
    assert "a torch file has no manifest" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.pem", "cannot be read"), ("words.pem", "holds no private key"), ("locked.pem", "has a passphrase"),
        ("curve.pem", "not an Ed25519 key"), ("lab.pub", "holds no private key"),
    ],
)  # fmt: skip
def test_a_private_key_that_is_none(checkpoint, keys, capsys, name, words):
    path = keys.get(name, keys["lab.pem"].with_name(name))
    assert main(["verify", checkpoint.url, "--record", "--sign-key", str(path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert str(path) in said
    assert checkpoint.storage.head(checkpoint.ref.report_key) is None, "said before anything is read"


@pytest.mark.parametrize(
    ("name", "words"),
    [("absent.pub", "cannot be read"), ("words.pem", "holds no public key"), ("lab.pem", "is a private key"),
     ("curve.pub", "not an Ed25519 key")],
)  # fmt: skip
def test_a_public_key_that_is_none(keys, name, words):
    with pytest.raises(ConfigError, match=words):
        read_public_key(keys.get(name, keys["lab.pem"].with_name(name)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_key_file_without_permission(keys, tmp_path):
    path = tmp_path / "secret.pem"
    path.write_bytes(keys["lab.pem"].read_bytes())
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        Signer.read(path)


def test_signing_needs_a_record(checkpoint, keys, capsys):
    assert main(["verify", checkpoint.url, "--sign-key", str(keys["lab.pem"])]) == 2
    assert "--record" in capsys.readouterr().err


def test_retention_takes_the_signature_too(checkpoint, keys):
    from giblet.checkpoint.survey import survey

    sign(checkpoint, keys)
    (found,) = survey(checkpoint.storage, "movie")
    assert SIGNATURE in found.sizes
