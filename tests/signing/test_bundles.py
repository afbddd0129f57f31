"""Signatures of bundles: anything that was changed since is found, and named."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from ovr.core.bundle import BUNDLE_SIGNATURE, MANIFEST, open_bundle
from ovr.errors import ArtifactError, ConfigError
from ovr.serving.head_signatures import sign_heads
from ovr.serving.signed_repository import check_repository
from ovr.serving.signing import Trust, check_signatures, sign_bundle
from tests.bundles import forge, small_bundle

pytest.importorskip("model_signing")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.signing.conftest import forged


def test_a_signed_bundle_is_the_one_that_was_signed_wherever_it_lies(made, bundle, keys, trust):
    assert bundle.bundle_sha256 == made.bundle_sha256
    assert check_signatures(bundle, trust) == (str(keys / "ann.pub"), {})
    both = Trust(keys=(keys / "mallory.pub", keys / "ann.pub"))
    assert check_signatures(bundle, both)[0] == str(keys / "ann.pub")


def test_the_tool_of_openssf_verifies_what_ovr_signed(bundle, keys):
    arguments = ["--signature", bundle.path / BUNDLE_SIGNATURE, "--public_key", keys / "ann.pub", "--ignore-paths"]
    command = [sys.executable, "-m", "model_signing", "verify", "key", bundle.path, *arguments, bundle.path / "signatures"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_byte_changed_in_any_file_is_found_and_the_file_named_though_every_digest_is_right(made, keys, trust, tmp_path):
    names = [name for name in json.loads((made.path / MANIFEST).read_bytes())["files"] if name.endswith(".onnx")]
    for number, relative in enumerate([*names, "fused/model.onnx"]):
        shutil.copytree(made.path, tmp_path / str(number))
        data = bytearray((made.path / relative).read_bytes())
        place = data.index(b"graph") if b"graph" in data else data.index(b"backbone") if b"backbone" in data else len(data) // 2
        data[place] ^= 1
        try:
            changed = forged(replace(made, path=tmp_path / str(number)), relative, bytes(data))
        except ArtifactError:  # another backbone fits no head
            assert relative == "backbone/model.onnx"
            continue
        with pytest.raises(ArtifactError, match=rf"is not what .*ann\.pub signed: .*{relative} is not the one that was signed"):
            check_signatures(changed, trust)


def test_a_manifest_that_is_not_the_signed_one_is_found(bundle, trust):
    name = "heads/cat/1/head.json"
    changed = forged(bundle, name, (bundle.path / name).read_bytes().replace(b'"ok"', b'"no_rows"'))
    with pytest.raises(ArtifactError, match=rf"{name} is not the one .*; manifest\.json is not the one"):
        check_signatures(changed, trust)


def test_files_more_or_less_than_were_signed_are_named(bundle, keys, trust):
    more = forged(bundle, "notes.json", b"")
    with pytest.raises(ArtifactError, match=r"notes\.json is not signed"):
        check_signatures(more, trust)
    sign_bundle(more, key=keys / "ann.pem")
    (bundle.path / "notes.json").unlink()
    forge(bundle.path, {}, lambda manifest: manifest["files"].pop("notes.json"))
    with pytest.raises(ArtifactError, match=r"notes\.json is signed and is not there"):
        check_signatures(open_bundle(bundle.path), trust)


def test_a_signature_that_does_not_count_says_why(bundle, keys, trust):
    with pytest.raises(ArtifactError, match=r"is not signed by one who is trusted \(.*mallory\.pub: Key mismatch"):
        check_signatures(bundle, Trust(keys=(keys / "mallory.pub",)))
    file = bundle.path / BUNDLE_SIGNATURE
    text = file.read_text()
    other = small_bundle(bundle.path.parent / "other")
    sign_bundle(other, key=keys / "mallory.pem")
    ours, theirs = (json.loads(path.read_bytes())["dsseEnvelope"] for path in (file, other.path / BUNDLE_SIGNATURE))
    swapped = [text.replace(ours["payload"], theirs["payload"])]
    swapped.append(text.replace(ours["signatures"][0]["sig"], theirs["signatures"][0]["sig"]))
    for bad in ("", "{", "[" * 100_000, text[:-200], *swapped):
        file.write_text(bad)
        with pytest.raises(ArtifactError, match="is not signed by one who is trusted"):
            check_signatures(bundle, trust)
    os.truncate(file, (1 << 28) + 1)
    with pytest.raises(ArtifactError, match="at most 268435456 are read as a signature"):
        check_signatures(bundle, trust)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"is not signed: it has no bundle\.sig; sign it with `ovr sign`"):
        check_signatures(bundle, trust)
    file.symlink_to(keys / "ann.pub")
    with pytest.raises(ArtifactError, match=r"signatures/bundle\.sig is no regular file"):
        open_bundle(bundle.path)


def test_nothing_else_may_lie_among_the_signatures(bundle):
    (bundle.path / "signatures" / "more.sig").touch()
    with pytest.raises(ArtifactError, match=r"signatures/more\.sig is not named in the manifest"):
        open_bundle(bundle.path)


def test_a_certificate_is_trusted_by_its_root(made, keys, tmp_path):
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name, issuer, public, private, **usage):
        flags = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            public,
            x509.random_serial_number(),
            now - datetime.timedelta(days=1),
            now + datetime.timedelta(days=1),
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=usage["key_cert_sign"], path_length=None), critical=True)
        signed = builder.add_extension(x509.KeyUsage(**flags, **usage), critical=True).sign(private, hashes.SHA256())
        (tmp_path / f"{name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    root = ec.generate_private_key(ec.SECP256R1())
    other = ec.generate_private_key(ec.SECP256R1())
    leaf = serialization.load_pem_private_key((keys / "ann.pem").read_bytes(), None).public_key()
    certificate("root", "root", root.public_key(), root, digital_signature=False, key_cert_sign=True)
    certificate("other", "other", other.public_key(), other, digital_signature=False, key_cert_sign=True)
    certificate("leaf", "root", leaf, root, digital_signature=True, key_cert_sign=False)
    bundle = replace(made, path=tmp_path / "bundle")
    shutil.copytree(made.path, bundle.path)
    sign_bundle(bundle, key=keys / "ann.pem", certificate=tmp_path / "leaf.crt", chain=[tmp_path / "root.crt"])
    assert check_signatures(bundle, Trust(certificates=(tmp_path / "root.crt",)))[0].startswith("certificates below")
    for trust in (Trust(certificates=(tmp_path / "other.crt",)), Trust(keys=(keys / "ann.pub",))):
        with pytest.raises(ArtifactError, match="is not signed by one who is trusted"):
            check_signatures(bundle, trust)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"key": None}, "sign with key=FILE or with sigstore=true, one of them"),
        ({"key": "ann.pem", "sigstore": True}, "one of them"),
        ({"key": None, "certificate": "ann.pub", "sigstore": True}, "certificate= belongs to a key"),
        ({"key": "rsa.pem"}, "cannot sign: .*; expected a private EC key"),
        ({"key": "locked.pem"}, "cannot sign: .*; expected a private EC key"),
        ({"key": "ann.pub"}, "cannot sign"),
        ({"key": "nobody.pem"}, "cannot sign"),
        ({"key": "ann.pem", "certificate": "ann.pub"}, "cannot sign"),
    ],
)
def test_a_key_that_cannot_sign_is_told(bundle, keys, settings, words):
    before = (bundle.path / BUNDLE_SIGNATURE).read_bytes()
    paths = {name: keys / value if isinstance(value, str) else value for name, value in settings.items()}
    with pytest.raises(ConfigError, match=words):
        sign_bundle(bundle, **paths)
    assert (bundle.path / BUNDLE_SIGNATURE).read_bytes() == before


def test_a_password_stands_in_the_environment(bundle, keys, monkeypatch):
    monkeypatch.setenv("OVR_KEY_PASSWORD", "secret")
    sign_bundle(bundle, key=keys / "locked.pem")
    assert check_signatures(bundle, Trust(keys=(keys / "locked.pub",)))[0] == str(keys / "locked.pub")


def test_trust_that_cannot_be_used_is_told(bundle, keys):
    with pytest.raises(ConfigError, match=r"no such key or certificate: .*nobody\.pub"):
        Trust(keys=(keys / "nobody.pub",))
    with pytest.raises(ConfigError, match="sigstore_identity and sigstore_issuer belong together"):
        Trust(sigstore_identity="ann@example.org")
    with pytest.raises(ConfigError, match="no signer of bundles is trusted"):
        check_signatures(bundle, Trust())
    with pytest.raises(ConfigError, match="no signer of bundles is trusted"):
        check_repository(bundle.path, Trust())
    with pytest.raises(ConfigError, match=r"rsa\.pub cannot verify signatures"):
        check_signatures(bundle, Trust(keys=(keys / "rsa.pub",)))


def test_without_model_signing_it_is_told_what_to_install(bundle, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    with pytest.raises(ConfigError, match=r"pip install 'ovr\[sign\]'"):
        sign_bundle(bundle, key=keys / "ann.pem")
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(ConfigError, match=r"pip install 'ovr\[sign\]'"):
        sign_heads(bundle, keys / "ann.pem", password=None)
