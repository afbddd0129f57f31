"""Signatures of heads by the owners of their classes."""

import json
import threading

import pytest

from ovr.core import scale
from ovr.core.bundle import HEAD_SIGNATURES, open_bundle
from ovr.core.files import canonical_json
from ovr.core.ledger import HeadVersion
from ovr.errors import ArtifactError, ConfigError, TaxonomyError
from ovr.lifecycle.heads import retire, rollback
from ovr.serving import head_signatures
from ovr.serving.head_signatures import carry_signatures, check_owners, read_signatures, sign_heads, signers
from ovr.serving.repository import publish
from ovr.serving.signed_repository import check_repository
from ovr.serving.signing import Trust, check_signatures, sign_bundle
from tests.bundles import forge, small_bundle
from tests.cohorts import some_cohorts
from tests.core import test_sharded_bundle

pytest.importorskip("model_signing")

from tests.signing.conftest import IDS, OWNERS


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
