"""Keys of a few people, and a bundle that they signed."""

import shutil

import pytest

from ovr.core.bundle import open_bundle
from ovr.serving.head_signatures import sign_heads
from ovr.serving.signing import Trust, sign_bundle
from tests.bundles import forge, small_bundle

pytest.importorskip("model_signing")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

IDS, OWNERS = ("cat", "dog", "owl"), ("ann", "bob", "bob")


def write_key(folder, name, private, password=None):
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / f"{name}.pem").write_bytes(private.private_bytes(pem, form, lock))
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return private


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with a key pair a person; mallory's is another's, and rsa's of a kind that is not taken."""
    folder = tmp_path_factory.mktemp("keys")
    for name, curve in (("ann", ec.SECP256R1()), ("bob", ec.SECP384R1()), ("mallory", ec.SECP256R1())):
        write_key(folder, name, ec.generate_private_key(curve))
    write_key(folder, "rsa", rsa.generate_private_key(65537, 2048))
    write_key(folder, "locked", ec.generate_private_key(ec.SECP521R1()), b"secret")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, keys):
    bundle = small_bundle(tmp_path_factory.mktemp("signed") / "bundle", IDS, owners=OWNERS)
    sign_bundle(bundle, key=keys / "ann.pem")
    sign_heads(bundle, keys / "ann.pem", password=None, class_ids=["cat"])
    sign_heads(bundle, keys / "bob.pem", password=None, class_ids=["dog", "owl"])
    return bundle


@pytest.fixture
def bundle(made, tmp_path):
    shutil.copytree(made.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.fixture
def trust(keys):
    return Trust(keys=(keys / "ann.pub",))


def forged(bundle, relative, data):
    """Return the bundle with another file in it, and every digest right."""
    forge(bundle.path, {relative: data})
    return open_bundle(bundle.path)
