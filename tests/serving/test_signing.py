"""Signatures of bundles, heads and what is served of them: anything that was changed since is found, and named."""

import datetime
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from ovr.cli import predict, sign, verify
from ovr.cli.main import main
from ovr.cli.signatures import required_trust
from ovr.core import scale
from ovr.core.bundle import BUNDLE_SIGNATURE, HEAD_SIGNATURES, MANIFEST, open_bundle
from ovr.core.faults import PLAN, Faults
from ovr.core.files import canonical_json
from ovr.core.ledger import HeadVersion
from ovr.errors import ArtifactError, ConfigError, TaxonomyError
from ovr.lifecycle.heads import retire, rollback
from ovr.serving import head_signatures, signing
from ovr.serving import repository as repository_module
from ovr.serving.contents import read_config
from ovr.serving.head_signatures import carry_signatures, check_owners, read_signatures, sign_heads, signers
from ovr.serving.pbtxt import to_text
from ovr.serving.repository import publish
from ovr.serving.signed_repository import check_repository
from ovr.serving.signing import Trust, check_signatures, sign_bundle
from tests.bundles import changed_weight, forge, small_bundle, with_graph
from tests.cohorts import some_cohorts
from tests.core import test_sharded_bundle
from tests.hostile_models import PLAIN

pytest.importorskip("model_signing")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

PREDICT = ["predict", "bundle={b}", "input=x.npy", "output=y.csv"]
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


def test_each_head_is_signed_by_its_owner(bundle, keys):
    ann, bob = keys / "ann.pub", keys / "bob.pub"
    assert signers(bundle, [ann, bob]) == {"cat": [str(ann)], "dog": [str(bob)], "owl": [str(bob)]}
    assert check_owners(bundle, {"ann": ann, "bob": bob}) == {"cat": "ann", "dog": "bob", "owl": "bob"}
    assert check_owners(bundle, {"ann": ann}) == {"cat": "ann"}
    with pytest.raises(ArtifactError, match="head 'dog' is not signed by its owner bob; head 'owl' is not signed by its owner bob"):
        check_owners(bundle, {"ann": ann, "bob": keys / "mallory.pub"})
    with pytest.raises(ConfigError, match="owner_keys names 'eve', who owns no class; owners are ann, bob"):
        check_owners(bundle, {"eve": ann})
    with pytest.raises(ConfigError, match=r"rsa\.pub is no public EC key"):
        check_owners(bundle, {"ann": keys / "rsa.pub"})
    with pytest.raises(ConfigError, match=r"rsa\.pem is no private EC key"):
        sign_heads(bundle, keys / "rsa.pem", password=None)
    with pytest.raises(TaxonomyError, match="cow"):
        sign_heads(bundle, keys / "ann.pem", password=None, class_ids=["cow"])


def test_a_head_that_was_changed_is_named_and_the_others_keep_their_signatures(bundle, keys, tmp_path):
    owner_keys = {"ann": keys / "ann.pub", "bob": keys / "bob.pub"}
    new = small_bundle(tmp_path / "new", IDS, owners=OWNERS, head_seeds=[0, 9, 2], versions=[1, 2, 1])
    assert carry_signatures(bundle, new) == 2
    with pytest.raises(ArtifactError, match=r"new: head 'dog' is not signed by its owner bob$"):
        check_owners(new, owner_keys)
    sign_heads(new, keys / "bob.pem", password=None, class_ids=["dog"])
    assert set(check_owners(new, owner_keys)) == set(IDS)
    other = small_bundle(tmp_path / "other", IDS, owners=OWNERS, seed=1)
    assert carry_signatures(bundle, other) == 0
    assert not (other.path / HEAD_SIGNATURES).exists()


def test_a_signature_of_another_head_does_not_count(bundle, keys):
    file = bundle.path / HEAD_SIGNATURES
    value = json.loads(file.read_bytes())
    rows = value["heads"]
    rows["dog"], rows["owl"] = rows["owl"], rows["dog"]
    file.write_bytes(canonical_json(value))
    with pytest.raises(ArtifactError, match="head 'dog' is not the one that its owner bob signed; head 'owl' is not the one"):
        check_owners(bundle, {"bob": keys / "bob.pub"})
    rows["dog"] = dict.fromkeys(rows["dog"], "no base64")
    file.write_bytes(canonical_json(value))
    with pytest.raises(ArtifactError, match="head 'dog' is not the one"):
        check_owners(bundle, {"bob": keys / "bob.pub"})
    for bad in (b'{"schema_version":1}', b'{"schema_version":1,"heads":{"cat":3}}'):
        file.write_bytes(bad)
        with pytest.raises(ArtifactError, match="holds no signatures of heads"):
            signers(bundle, [])


def test_calibrations_of_cohorts_are_signed_too(keys, tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path / "bundle", IDS, owners=OWNERS, cohorts=some_cohorts(3))
    owner_keys = {"ann": keys / "ann.pub", "bob": keys / "bob.pub"}
    sign_bundle(bundle, key=keys / "ann.pem")
    monkeypatch.setattr(head_signatures, "_statements", before_cohorts(head_signatures._statements))
    sign_heads(bundle, keys / "ann.pem", password=None, class_ids=["cat"])
    monkeypatch.undo()
    sign_heads(bundle, keys / "bob.pem", password=None, class_ids=["dog", "owl"])
    with pytest.raises(ArtifactError, match=r"head 'cat' by its owner ann does not cover its calibrations of cohorts.* again$"):
        check_owners(bundle, owner_keys)
    sign_heads(bundle, keys / "ann.pem", password=None, class_ids=["cat"])
    assert set(check_owners(bundle, owner_keys)) == set(IDS)
    publish(bundle, tmp_path / "repository")
    check_repository(tmp_path / "repository", Trust(keys=(keys / "ann.pub",), owner_keys=owner_keys))

    gone = retire(bundle, tmp_path / "gone", ["dog"]).bundle
    back = rollback(gone, tmp_path / "back", [HeadVersion("dog", 1)]).bundle
    assert check_owners(back, owner_keys).keys() == set(IDS)
    forge(bundle.path, {}, lambda manifest: manifest["cohorts"]["scale"][0].__setitem__(1, 9.0))
    with pytest.raises(ArtifactError, match=r"bundle: head 'dog' is not the one that its owner bob signed$"):
        check_owners(open_bundle(bundle.path), owner_keys)


def before_cohorts(statements):
    """Return what an earlier ovr signed."""

    def without(bundle):
        signed = {}
        for class_id, value in statements(bundle).items():
            said = json.loads(value)
            kept = {name: said[name] for name in ("class_id", "version", "backbone_sha256", "files")}
            signed[class_id] = canonical_json({"kind": "ovr head 1", **kept})
        return signed

    return without


def test_heads_in_shards_are_signed_with_the_bundle(tmp_path, keys, monkeypatch):
    monkeypatch.setattr(scale, "SHARD_HEADS", 3)
    bundle = test_sharded_bundle.write(tmp_path / "bundle")
    with pytest.raises(ArtifactError, match="keeps its 7 heads in shards"):
        sign_heads(bundle, keys / "ann.pem", password=None)
    sign_bundle(bundle, key=keys / "ann.pem")
    assert check_signatures(open_bundle(bundle.path), Trust(keys=(keys / "ann.pub",)))


def test_a_repository_of_a_signed_bundle_is_vouched_for_and_every_change_in_it_is_named(bundle, keys, tmp_path):
    trust = Trust(keys=(keys / "ann.pub",), owner_keys={"bob": keys / "bob.pub"})
    publish(bundle, tmp_path / "fused")
    assert check_repository(tmp_path / "fused", trust) == dict.fromkeys(("ovr_scores", "ovr"), str(keys / "ann.pub"))
    repository = tmp_path / "repository"
    publish(bundle, repository, layout="per_head")
    assert set(check_repository(repository, trust)) == {"ovr_scores", "ovr", "ovr_heads", "backbone", *(f"head_{i}" for i in IDS)}
    files = [
        file
        for file in repository.rglob("*")
        if file.is_file() and (file.suffix != ".py" or file.name in ("model.py", "decide.py"))
    ]
    assert len(files) >= 17
    for file in files:
        good = file.read_bytes()
        file.unlink()  # a hard link to the bundle's
        file.write_bytes(good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 4]) + good[len(good) // 2 + 1 :])
        named = file.name if file.parent.name != "signatures" else "sign"
        with pytest.raises(ArtifactError, match=named):
            check_repository(repository, trust)
        file.write_bytes(good)
    cache = repository / "ovr/1/__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_bytes(b"evil")
    assert check_repository(repository, trust)
    assert not cache.exists()
    evil = 'name: "evil"\nversion_policy { specific { versions: 1 } }'
    for relative in ("evil/config.pbtxt", "evil/1/model.py", "ovr/1/evil.py", "ovr/2.py", "evil.py"):
        file = repository / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(evil if "config" in relative else "")
        with pytest.raises(ArtifactError, match=r"evil|ovr/2\.py"):
            check_repository(repository, trust)
        file.unlink()
        shutil.rmtree(repository / "evil", ignore_errors=True)
    assert check_repository(repository, trust)


def test_what_is_done_about_faults_is_the_publisher_s_to_say_but_no_head_of_another_bundle_is_served(bundle, keys, trust, tmp_path):
    repository, faults = tmp_path / "repository", Faults(fallback_of={"dog": "last_good", "cat": "prior"})
    publish(bundle, repository, layout="per_head", faults=faults)
    check_repository(repository, trust)
    second = small_bundle(tmp_path / "second", IDS, version=2, head_seeds=[5, 6, 7])
    sign_bundle(second, key=keys / "ann.pem")
    publish(second, repository, layout="per_head", faults=faults)
    with pytest.raises(ArtifactError, match=r"head_dog/config.pbtxt is another; .*head_dog/1/model.onnx is of no bundle"):
        check_repository(repository, trust)


def test_a_router_without_its_settings_is_refused(bundle, trust, tmp_path):
    publish(bundle, tmp_path / "repository")
    config = read_config(tmp_path / "repository", "ovr")
    del config.parameters[PLAN]
    (tmp_path / "repository/ovr/config.pbtxt").write_text(to_text(config))
    with pytest.raises(ArtifactError, match=r"ovr/config.pbtxt is none that `ovr publish` writes"):
        check_repository(tmp_path / "repository", trust)


def test_the_scores_of_a_bundle_with_cohorts_are_vouched_for(tmp_path, keys, trust):
    bundle = small_bundle(tmp_path / "bundle", cohorts=some_cohorts(3))
    sign_bundle(bundle, key=keys / "ann.pem")
    publish(bundle, tmp_path / "repository")
    assert set(check_repository(tmp_path / "repository", trust)) == {"ovr", "ovr_scores"}
    for name in ("ovr_scores/1/model.onnx", "ovr/1/signatures/fused.onnx"):
        file = tmp_path / "repository" / name
        data = file.read_bytes()
        file.unlink()  # it may be a hard link
        file.write_bytes(data[:-1])
        with pytest.raises(ArtifactError, match=f"{name} was changed"):
            check_repository(tmp_path / "repository", trust)
        file.write_bytes(data)


def test_a_repository_of_what_is_not_signed_is_refused(tmp_path, trust):
    with pytest.raises(ArtifactError, match="has no model 'ovr'"):
        check_repository(tmp_path, trust)
    publish(small_bundle(tmp_path / "bundle"), tmp_path / "repository")
    with pytest.raises(ArtifactError, match=r"version 1 of .*repository is not signed: it has no bundle\.sig"):
        check_repository(tmp_path / "repository", trust)
    config = tmp_path / "repository/ovr/config.pbtxt"
    config.write_text(config.read_text().replace("versions: 1", "versions: 1\n    versions: 2"))
    with pytest.raises(ArtifactError, match="a publication is not finished"):
        check_repository(tmp_path / "repository", trust)


@pytest.mark.parametrize("cohorts", [None, some_cohorts(3)], ids=["plain", "cohorts"])
def test_a_bundle_that_is_signed_after_it_was_published_is_vouched_for_once_it_is_published_again(tmp_path, keys, trust, cohorts):
    bundle, repository = small_bundle(tmp_path / "bundle", IDS, owners=OWNERS, cohorts=cohorts), tmp_path / "repository"
    before = publish(bundle, repository)
    sign_bundle(bundle, key=keys / "ann.pem")
    sign_heads(bundle, keys / "bob.pem", password=None, class_ids=["dog", "owl"])
    with pytest.raises(ArtifactError, match=r"is not signed: it has no bundle\.sig"):
        check_repository(repository, trust)
    assert publish(bundle, repository) == before
    assert check_repository(repository, replace(trust, owner_keys={"bob": keys / "bob.pub"}))
    with pytest.raises(ArtifactError, match=r"serves this bundle .* already, as version 1"):
        publish(bundle, repository)
    other = small_bundle(tmp_path / "other", IDS, head_seeds=[7, 8, 9], version=2, cohorts=cohorts)
    publish(other, repository)
    sign_bundle(bundle, key=keys / "mallory.pem")
    assert publish(bundle, repository).versions == before.versions  # with the newer signature
    assert check_repository(repository, Trust(keys=(keys / "mallory.pub",)))
    with pytest.raises(ArtifactError, match="is not signed by one who is trusted"):
        check_repository(repository, trust)


def test_another_graph_of_the_same_heads_is_a_version_of_its_own(bundle, tmp_path, trust):
    repository = tmp_path / "repository"
    odd = with_graph(bundle, tmp_path / "odd", changed_weight("heads/linear/bias", lambda value: value.fill(1)))
    publish(odd, repository)
    with pytest.raises(ArtifactError, match=r"ovr_scores/1/model.onnx was changed"):
        check_repository(repository, trust)
    assert publish(bundle, repository).versions == {"ovr_scores": 2, "ovr": 2}
    assert check_repository(repository, trust)


def test_a_repository_that_cannot_be_written_keeps_its_signatures(tmp_path, keys, monkeypatch):
    bundle = small_bundle(tmp_path / "bundle")
    publish(bundle, tmp_path / "repository")
    sign_bundle(bundle, key=keys / "ann.pem")

    def full(*_):
        raise OSError(28, "No space left on device", "bundle.sig")

    monkeypatch.setattr(repository_module, "take_over", full)
    with pytest.raises(ArtifactError, match=r"bundle\.sig cannot be written: No space left on device; nothing else was changed"):
        publish(bundle, tmp_path / "repository")


def test_a_repository_that_cannot_be_followed_is_told(tmp_path, keys, trust):
    bundle = small_bundle(tmp_path / "bundle", shape=(2,))
    changed = forged(bundle, "fused/model.onnx", PLAIN)
    sign_bundle(changed, key=keys / "ann.pem")
    publish(changed, tmp_path / "repository")
    with pytest.raises(ArtifactError, match=r"ovr_scores/1/model\.onnx has no model card that can be read"):
        check_repository(tmp_path / "repository", trust)
    sign_bundle(bundle := small_bundle(tmp_path / "other"), key=keys / "ann.pem")
    publish(bundle, tmp_path / "more")
    (tmp_path / "more/ovr_scores/config.pbtxt").write_text('name: "ovr_scores"')
    with pytest.raises(ArtifactError, match=r"ovr_scores/config\.pbtxt is none that `ovr publish` writes"):
        check_repository(tmp_path / "more", trust)


def test_the_commands_sign_verify_and_refuse(tmp_path, keys, capsys):
    def said(*arguments):
        status = main(list(arguments))
        shown = capsys.readouterr()
        return status, shown.out + shown.err

    bundle = small_bundle(tmp_path / "bundle", IDS, owners=OWNERS).path
    trusted, repository = f"trusted_keys=[{keys / 'ann.pub'}]", tmp_path / "repository"
    required = [f"bundle={bundle}", f"repository={repository}", "require_signature=true"]
    status, text = said("publish", *required, trusted)
    assert status == 1
    assert "is not signed: it has no bundle.sig" in text
    assert not repository.exists()
    assert said("sign", f"bundle={bundle}", f"key={keys / 'ann.pem'}")[0] == 0
    assert "signed 2 heads" in said("sign", f"bundle={bundle}", f"key={keys / 'bob.pem'}", "heads=[dog,owl]")[1]
    status, text = said("verify", f"bundle={bundle}", trusted, f"owner_keys={{bob: {keys / 'bob.pub'}}}")
    assert status == 0
    assert f"head dog: signed by {keys / 'bob.pub'} (its owner bob)" in text
    assert "head cat: signed by none of the keys" in text
    assert said("publish", *required, trusted)[0] == 0
    assert "ovr_scores: of a bundle signed by" in said("verify", f"repository={repository}", trusted)[1]
    (repository / "ovr/1/model.py").write_text("evil")
    status, text = said("serve", f"repository={repository}", "require_signature=true", trusted)
    assert status == 1
    assert "ovr/1/model.py is another" in text


def test_settings_that_do_not_go_together_are_told(bundle, keys, tmp_path):
    none = {"trusted_keys": [], "trusted_certificates": [], "owner_keys": None, "require_signature": True}
    none |= {"sigstore_identity": None, "sigstore_issuer": None}
    ann = {**none, "trusted_keys": [str(keys / "ann.pub")]}

    def refused(words, call, **settings):
        with pytest.raises(ConfigError, match=words):
            call(OmegaConf.create(settings))

    refused("require_signature=true trusts nobody", required_trust, **none)
    refused("sigstore_identity and sigstore_issuer belong together", required_trust, **{**none, "sigstore_identity": "ann"})
    refused("sigstore_issuer is given, but nothing", required_trust, **{**none, "sigstore_issuer": "i", "require_signature": False})
    refused("trusted_keys is given, but nothing is checked", required_trust, **{**ann, "require_signature": False})
    refused(r"trusted_keys=a\.pub must be a list", required_trust, **{**none, "trusted_keys": "a.pub"})
    refused("must name a key for each owner", required_trust, **{**ann, "owner_keys": ["a"]})
    refused("one of them", verify.run, **ann, bundle=None, repository=None)
    signing = dict.fromkeys(("key", "certificate", "heads", "heads_from")) | {"sigstore": False, "bundle": str(bundle.path)}
    refused("heads are signed with a key alone", sign.run, **{**signing, "heads": "all"})
    refused("takes signatures over", sign.run, **{**signing, "heads_from": str(bundle.path), "sigstore": True})
    sign.run(OmegaConf.create({**signing, "heads_from": str(bundle.path)}))
    rows = {"input": "x.npy", "output": str(tmp_path / "y.csv"), "batch_size": 1, "overwrite": False, "server": None, "outputs": []}
    rows |= {"part_rows": 1, "workers": 1, "resume": False, "on_error": "fail"}
    with pytest.raises(ConfigError, match="neither a server nor a fused ONNX file carries signatures"):
        predict.run(OmegaConf.create({**ann, **rows, "bundle": str(bundle.fused_onnx)}))


@pytest.mark.parametrize("command", [["publish", "bundle={b}", "repository={r}"], ["serve", "repository={r}"], PREDICT])
def test_a_sigstore_identity_can_be_required(bundle, tmp_path, monkeypatch, capsys, command):
    """Up to model-signing's own verifier, which needs the network."""
    asked = []

    def verifier(trust):
        asked.append((trust.sigstore_identity, trust.sigstore_issuer, trust.whole))
        return iter(())

    monkeypatch.setattr(signing, "_verifiers", verifier)
    places = {"b": bundle.path, "r": tmp_path / "repository"}
    if command[0] == "serve":
        publish(bundle, places["r"])
    who = ["require_signature=true", "sigstore_identity=ann@example.org", "sigstore_issuer=https://accounts.example.org"]
    assert main([word.format(**places) for word in command] + who) == 1
    assert "is not signed by one who is trusted" in capsys.readouterr().err
    assert asked == [("ann@example.org", "https://accounts.example.org", True)]


def test_owners_who_sign_at_once_lose_no_signature(bundle, keys):
    threads = [
        threading.Thread(target=sign_heads, args=(bundle, keys / f"{name}.pem"), kwargs={"password": None})
        for name in ("ann", "bob")
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {len(row) for row in read_signatures(bundle).values()} == {2}
