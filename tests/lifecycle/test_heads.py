import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ovr.calibrator.temperature import Temperature
from ovr.core.artifact import Calibration
from ovr.core.bundle import BUNDLE_SIGNATURE, FUSED_ONNX, MANIFEST, head_directory, open_bundle
from ovr.core.files import canonical_json, sha256_bytes
from ovr.core.ledger import HeadVersion
from ovr.core.taxonomy import ClassSpec
from ovr.errors import ArtifactError, ConfigError, TaxonomyError
from ovr.lifecycle.assemble import NewModel
from ovr.lifecycle.calibrate import calibrate
from ovr.lifecycle.calibration_rows import AddedRows
from ovr.lifecycle.decide import redecide
from ovr.lifecycle.head_rows import known_rows
from ovr.lifecycle.heads import last_version, replace_heads, respecified, retire, rollback
from ovr.lifecycle.logits import bundle_features
from ovr.lifecycle.put import NewHead, put
from ovr.lifecycle.rows import labelled_logits
from ovr.lifecycle.verify import differences, verify
from ovr.runtime.predictor import EdgePredictor
from ovr.serving.head_signatures import sign_heads, signers
from tests.bundles import forge, small_bundle
from tests.lifecycle.conftest import CLASS_IDS, rows_of


@pytest.fixture(scope="module", params=["linear", "mlp"])
def bundle(request, trained):
    return trained(request.param)[1]


@pytest.fixture(scope="module")
def twice(bundle, tmp_path_factory):
    """The bundle, with head 1 in version 3 and version 2 kept."""
    out = tmp_path_factory.mktemp("twice") / "bundle"
    return calibrate(bundle, out, halved(bundle), calibrator=Temperature(), class_ids=[CLASS_IDS[1]]).bundle


def halved(bundle):
    rows = labelled_logits(bundle, None)
    rows.logits.logit_NK[:, 1] *= 0.5
    return rows


def new_head(class_id, bundle, *, kind="linear", seed=0, units=6):
    rng = np.random.default_rng(seed)
    num_features = bundle_features(bundle, rows_of(0, 1)).shape[1]
    shapes = {"weight": (1, num_features if kind == "linear" else units), "bias": (1,)}
    if kind == "mlp":
        shapes |= {"hidden_weight": (units, num_features), "hidden_bias": (units,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return NewHead(ClassSpec(class_id), NewModel(kind, weights), Calibration(scale=0.7, bias=0.1, kind="platt", status="ok"), 0.4)


def probs(bundle, x):
    return EdgePredictor(bundle.path).predict(x).prob_BK


def same_files(old, new, ids):
    for class_id in ids:
        for name in ("head.json", "model.onnx"):
            assert os.path.samefile(*(b.path / head_directory(b.head(class_id)) / name for b in (old, new)))


def test_a_new_class_is_a_further_column_and_the_others_keep_their_bits_and_files(bundle, tmp_path):
    made = put(bundle, tmp_path / "out", [new_head("new", bundle)], entry={"command": "test", "why": "asked for"})
    opened = open_bundle(tmp_path / "out")
    assert opened == made.bundle
    assert opened.taxonomy.ids == (*CLASS_IDS, "new")
    assert opened.head("new").version == 1
    same_files(bundle, opened, CLASS_IDS)
    x = rows_of(7, 65)
    for size in range(1, 66):
        np.testing.assert_array_equal(probs(opened, x[:size])[:, :4], probs(bundle, x[:size]))
    found = verify(bundle, opened, changed=["new"])
    assert found.states == dict.fromkeys(CLASS_IDS, "unchanged") | {"new": "added"}
    assert opened.provenance["history"][-1]["why"] == "asked for"
    assert opened.provenance["history"][-1]["parent_bundle_sha256"] == bundle.bundle_sha256
    assert opened.provenance["history"][-1].keys() >= {"git_commit", "git_dirty"}


def test_its_answers_are_those_of_its_weights_in_float64(bundle, tmp_path):
    new = new_head("new", bundle, kind="mlp")
    made = put(bundle, tmp_path / "out", [new], entry={})
    x = rows_of(8, 9)
    z = bundle_features(bundle, x).astype(np.float64)
    weights = {name: value.astype(np.float64) for name, value in new.model.weights.items()}
    hidden = np.maximum(z @ weights["hidden_weight"].T + weights["hidden_bias"], 0)
    logit = (hidden @ weights["weight"].T + weights["bias"])[:, 0]
    np.testing.assert_allclose(probs(made.bundle, x)[:, -1], 1 / (1 + np.exp(-(0.7 * logit + 0.1))), atol=1e-6)


def test_heads_past_a_block_of_columns_keep_all_bits(bundle, tmp_path):
    many = [new_head(f"new {k}", bundle, kind=("linear", "mlp")[k % 2], seed=k) for k in range(40)]
    first = put(bundle, tmp_path / "first", many, entry={}).bundle
    second = put(first, tmp_path / "second", [new_head("last", bundle)], entry={}).bundle
    assert len(verify(first, second, changed=["last"]).ids("unchanged")) == 44
    third = retire(second, tmp_path / "third", [CLASS_IDS[0], "new 3"]).bundle
    assert verify(second, third, changed=[CLASS_IDS[0], "new 3"]).ids("retired") == (CLASS_IDS[0], "new 3")


def test_a_head_in_use_is_replaced_in_its_column_as_the_next_version(twice, tmp_path):
    made = put(twice, tmp_path / "out", [new_head(CLASS_IDS[1], twice)], entry={}).bundle
    assert made.taxonomy.ids == CLASS_IDS
    assert made.heads[1].version == 4
    assert made.ledger.versions(CLASS_IDS[1]) == [2, 3]
    assert verify(twice, made, changed=[CLASS_IDS[1]]).ids("unchanged") == (CLASS_IDS[0], *CLASS_IDS[2:])


def test_rolling_back_uses_the_very_files_of_the_earlier_version(bundle, twice, tmp_path):
    back = rollback(twice, tmp_path / "back", [last_version(twice, CLASS_IDS[1])], entry={"who": "me"}).bundle
    assert back.heads == bundle.heads
    assert back.merkle_root == bundle.merkle_root
    same_files(bundle, back, CLASS_IDS)
    x = rows_of(9, 30)
    np.testing.assert_array_equal(probs(back, x), probs(bundle, x))
    assert back.ledger.versions(CLASS_IDS[1]) == [3]  # forward again
    again = rollback(back, tmp_path / "again", [HeadVersion(CLASS_IDS[1], 3)]).bundle
    assert again.merkle_root == twice.merkle_root
    assert again.next_version(CLASS_IDS[1]) == 4
    assert back.provenance["history"][-1]["versions"] == [2]


def test_the_order_is_that_of_the_history_when_the_clock_goes_back(bundle, twice, tmp_path, monkeypatch):
    clock = iter([1e9, 5e8])
    monkeypatch.setattr(time, "gmtime", lambda real=time.gmtime: real(next(clock)))
    gone = retire(twice, tmp_path / "gone", [CLASS_IDS[1]]).bundle
    back = rollback(gone, tmp_path / "back", [last_version(gone, CLASS_IDS[1])]).bundle
    steps = back.provenance["history"][-3:]
    assert [step["command"] for step in steps] == ["calibrate", "head retire", "head rollback"]
    assert sorted((step["created_at"] for step in steps), reverse=True) == [step["created_at"] for step in steps]
    assert back.head(CLASS_IDS[1]) == twice.head(CLASS_IDS[1])
    assert last_version(back, CLASS_IDS[1]) == last_version(twice, CLASS_IDS[1])


def test_a_retired_class_answers_no_more_and_comes_back_as_it_was(bundle, tmp_path):
    gone = retire(bundle, tmp_path / "gone", [CLASS_IDS[2]], entry={"why": "merged into another"}).bundle
    assert gone.taxonomy.ids == (*CLASS_IDS[:2], CLASS_IDS[3])
    assert gone.ledger.retired == (bundle.taxonomy[2],)
    x = rows_of(3, 20)
    np.testing.assert_array_equal(probs(gone, x), probs(bundle, x)[:, [0, 1, 3]])
    back = rollback(gone, tmp_path / "back", [last_version(gone, CLASS_IDS[2])]).bundle
    assert back.taxonomy.ids == (*CLASS_IDS[:2], CLASS_IDS[3], CLASS_IDS[2])
    np.testing.assert_array_equal(probs(back, x), probs(bundle, x)[:, [0, 1, 3, 2]])
    assert verify(bundle, back, changed=[]).ids("unchanged") == CLASS_IDS
    assert back.merkle_root == bundle.merkle_root
    # an id is for ever: a new head of that class goes on with its numbers
    assert put(gone, tmp_path / "new", [new_head(CLASS_IDS[2], gone)], entry={}).bundle.head(CLASS_IDS[2]).version == 4


def test_a_description_changes_and_no_answer(bundle, tmp_path):
    spec = replace(bundle.taxonomy[1], name="B", owner="someone")
    made = respecified(bundle, tmp_path / "out", [spec]).bundle
    assert made.taxonomy[1] == spec
    told = made.provenance["history"][-1]
    assert told["described"] == {CLASS_IDS[1]: {"name": [CLASS_IDS[1], "B"], "owner": ["", "someone"]}}
    found = verify(bundle, made, changed=[CLASS_IDS[1]])
    assert found.ids("described") == (CLASS_IDS[1],)
    assert made.heads == bundle.heads


def test_a_description_changes_in_a_bundle_with_head_shards(sharded, tmp_path):
    bundle = sharded[1]
    made = respecified(bundle, tmp_path / "out", [replace(bundle.taxonomy[3], owner="someone")]).bundle
    opened = open_bundle(made.path)
    assert (opened.taxonomy[3].owner, opened.heads) == ("someone", bundle.heads)
    for shard in bundle.shards:
        for name in (shard.heads_file, shard.onnx_file):
            assert os.path.samefile(bundle.path / name, opened.path / name)
    x = rows_of(4, 20)
    np.testing.assert_array_equal(probs(opened, x), probs(bundle, x))
    assert differences(bundle, opened) == [["train", "owner", "", "someone"]]
    assert opened.provenance["history"][-1]["classes"] == ["train"]


def test_heads_come_from_another_bundle_with_the_same_backbone(bundle, twice, tmp_path):
    source = put(twice, tmp_path / "source", [new_head("new", twice)], entry={}).bundle
    made = replace_heads(bundle, tmp_path / "out", source, [CLASS_IDS[1], "new"]).bundle
    assert [head.version for head in made.heads] == [1, 3, 3, 4, 1]
    x = rows_of(4, 33)
    np.testing.assert_array_equal(probs(made, x), probs(source, x))
    assert made.heads[1].provenance == {"from_bundle_sha256": source.bundle_sha256, "from_version": 3}
    verify(bundle, made, changed=[CLASS_IDS[1], "new"])


def test_rows_that_the_other_bundle_was_made_from_count_for_its_heads(bundle, tmp_path):
    rows = replace(halved(bundle), digest_N=np.array([2**63 + 1, 7], np.uint64))
    source = calibrate(bundle, tmp_path / "source", rows, calibrator=Temperature()).bundle
    made = replace_heads(bundle, tmp_path / "out", source, [CLASS_IDS[1]]).bundle
    np.testing.assert_array_equal(np.load(made.path / "data/calib_rows_1.npy"), np.array([7, 2**63 + 1], np.uint64))
    assert not (made.path / "data/train_rows_1.npy").exists()  # the same as the bundle's
    again = replace_heads(made, tmp_path / "again", source, [CLASS_IDS[2]]).bundle
    for class_id, seen in ((CLASS_IDS[1], True), (CLASS_IDS[2], True), ("cat", False)):
        assert np.isin(rows.digest_N, known_rows(again, class_id)).all() == seen
    assert set(known_rows(made, CLASS_IDS[1])) <= set(known_rows(again, CLASS_IDS[1]))
    # rows of a head that is not taken are none of those that are
    settings = {"class_ids": ["cat"], "settings": {"classes": ["cat"]}}
    one = calibrate(bundle, tmp_path / "one", rows, calibrator=Temperature(), **settings).bundle
    other = replace_heads(bundle, tmp_path / "other", one, [CLASS_IDS[1]]).bundle
    assert not (other.path / "data/calib_rows_1.npy").exists()


def test_labels_of_calibration_rows_stay_and_logits_follow_the_heads(bundle, tmp_path):
    first = put(bundle, tmp_path / "first", [new_head("new", bundle)], entry={}).bundle
    logit_NK, target_NK, mask_NK = (np.load(first.path / f"calibration/{name}.npy") for name in ("logit", "target", "mask"))
    old = [np.load(bundle.path / f"calibration/{name}.npy") for name in ("logit", "target", "mask")]
    np.testing.assert_array_equal(logit_NK[:, :4], old[0])
    np.testing.assert_array_equal(target_NK[:, :4], old[1])
    np.testing.assert_array_equal(mask_NK[:, :4], old[2])
    assert not mask_NK[:, 4].any()


def test_rows_join_the_calibration_rows_with_the_logits_of_all_heads(bundle, tmp_path):
    z_MD = bundle_features(bundle, rows_of(5, 7))
    target_M, mask_M = np.arange(7) % 2 == 0, np.arange(7) < 6
    made = put(
        bundle, tmp_path / "out", [new_head("new", bundle)], entry={}, rows=AddedRows(z_MD, {"new": (target_M, mask_M)})
    ).bundle
    logit_NK, target_NK, mask_NK = (np.load(made.path / f"calibration/{name}.npy")[-6:] for name in ("logit", "target", "mask"))
    np.testing.assert_array_equal(target_NK[:, 4], target_M[:6])  # the row of which nothing is known is left out
    assert mask_NK[:, 4].all()
    assert not mask_NK[:, :4].any()
    prob_NK = probs(made, rows_of(5, 7))[:6]
    scale, bias = (np.array([getattr(head.calibration, name) for head in made.heads]) for name in ("scale", "bias"))
    np.testing.assert_allclose(1 / (1 + np.exp(-(scale * logit_NK + bias))), prob_NK, atol=1e-5)
    again = calibrate(made, tmp_path / "again", labelled_logits(made, None), calibrator=Temperature(), class_ids=["new"]).bundle
    assert again.head("new").calibration.num_rows == 6
    # rows of which no label counts any more stay, for versions that may come back
    other = put(made, tmp_path / "other", [new_head("new", bundle, seed=1)], entry={}).bundle
    assert len(np.load(other.path / "calibration/mask.npy")) == len(labelled_logits(made, None).labels)
    assert len(labelled_logits(other, None).labels) == len(labelled_logits(bundle, None).labels)
    none = put(other, tmp_path / "none", [new_head(class_id, bundle) for class_id in other.taxonomy.ids], entry={}).bundle
    with pytest.raises(ArtifactError, match="calibration rows, and no label of them counts for the heads that it has by now"):
        labelled_logits(none, None)


def test_heads_that_stay_keep_their_signatures_and_the_bundle_s_own_is_not_carried_over(bundle, tmp_path):
    pytest.importorskip("cryptography", reason="signatures need pip install '.[sign]'")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    signed = put(bundle, tmp_path / "signed", [new_head("new", bundle)], entry={}).bundle
    assert sign_heads(signed, tmp_path / "key.pem", password=None) == 5
    (signed.path / BUNDLE_SIGNATURE).write_bytes(b"{}")
    made = retire(open_bundle(signed.path), tmp_path / "out", ["new"]).bundle
    key = [str(tmp_path / "key.pub")]
    assert signers(open_bundle(made.path), [tmp_path / "key.pub"]) == dict.fromkeys(CLASS_IDS, key)
    assert not (made.path / BUNDLE_SIGNATURE).exists()
    back = rollback(open_bundle(made.path), tmp_path / "back", [HeadVersion("new", 1)]).bundle  # which is the head that was signed
    assert signers(open_bundle(back.path), [tmp_path / "key.pub"]) == dict.fromkeys((*CLASS_IDS, "new"), key)


def test_an_id_that_looks_like_that_of_a_class_or_retired_one_is_not_brought_in(tmp_path):
    one, two = "caf\u00e9", "cafe\u0301"
    source = small_bundle(tmp_path / "source", (two, "dog"))
    bundle = small_bundle(tmp_path / "bundle", (one, "dog"))
    retired = retire(bundle, tmp_path / "retired", [one]).bundle
    for old in (bundle, retired):
        with pytest.raises(TaxonomyError, match="ids must differ in more than blanks"):
            replace_heads(old, tmp_path / "out", source, [two])
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_is_there_has_its_signatures_whenever_its_writer_is_killed(tmp_path):
    command = [sys.executable, "-m", "tests.lifecycle.killed_heads", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    num_kills, num_there = map(int, done.stdout.split())
    assert num_kills > num_there > 0


def test_a_limit_of_abstention_is_stale_once_heads_are_others(tmp_path, bundle, caplog):
    assert "abstention_status" not in put(bundle, tmp_path / "no", [new_head("new", bundle)], entry={}).bundle.provenance
    rows = labelled_logits(bundle, None)
    limited = redecide(bundle, tmp_path / "limited", rows, policy=replace(bundle.policy, abstain_below=0.3)).bundle
    for made in (
        put(limited, tmp_path / "put", [new_head("new", bundle)], entry={}).bundle,
        retire(limited, tmp_path / "gone", ["cat"]).bundle,
    ):
        assert made.provenance["abstention_status"].startswith("stale: ")
        assert made.provenance["history"][-1]["abstention_status"].startswith("stale: ")
    assert "abstain_below=0.3000 was chosen with other heads" in caplog.text
    named = respecified(limited, tmp_path / "named", [replace(bundle.taxonomy[0], name="Cat")]).bundle
    assert named.provenance["abstention_status"] == limited.provenance["abstention_status"]


def refused(error, match, step, *args, **kwargs):
    with pytest.raises(error, match=match):
        step(*args, **kwargs)


def test_what_cannot_be_done_is_said_and_nothing_is_written(bundle, twice, sharded, tmp_path):
    out = tmp_path / "out"
    refused(ArtifactError, "a bundle needs at least one head", retire, bundle, out, list(CLASS_IDS))
    refused(ConfigError, "no class is named", retire, bundle, out, [])
    refused(TaxonomyError, "named more than once", retire, bundle, out, ["cat", "cat"])
    refused(TaxonomyError, "'lion' is not in the taxonomy", retire, bundle, out, ["lion"])
    refused(TaxonomyError, "'lion' is not in the taxonomy", last_version, bundle, "lion")
    refused(ArtifactError, "at version 2, the first that bundle .* has", last_version, bundle, CLASS_IDS[1])
    refused(
        ArtifactError, r"keeps no version 9 of head .*; it has versions 2, 3", rollback, twice, out, [HeadVersion(CLASS_IDS[1], 9)]
    )
    refused(ArtifactError, "is at version 3 already", rollback, twice, out, [HeadVersion(CLASS_IDS[1], 3)])
    refused(ArtifactError, "heads in shards", retire, sharded[1], out, ["cat"])
    refused(ArtifactError, "lies within the bundle", retire, bundle, bundle.path / "out", ["cat"])
    other = small_bundle(tmp_path / "other", ["cat"])
    refused(ArtifactError, "was trained on backbone", replace_heads, bundle, out, other, ["cat"])
    refused(ArtifactError, "other backbones", verify, bundle, other)
    refused(ArtifactError, "heads in shards", verify, bundle, sharded[1])
    assert not out.exists()


def test_verify_finds_what_was_not_to_change(bundle, twice, tmp_path):
    refused(ArtifactError, "expected no head alone to differ: .*differ too", verify, bundle, twice, changed=[])
    refused(ArtifactError, r"'cat' do not differ", verify, bundle, twice, changed=["cat", CLASS_IDS[1]])
    gone = retire(bundle, tmp_path / "gone", ["cat"]).bundle
    refused(ArtifactError, "was not made of", verify, put(gone, tmp_path / "x", [new_head("y", gone)], entry={}).bundle, bundle)


def test_a_version_that_is_kept_for_rollback_has_the_same_files_in_both(bundle, twice, tmp_path):
    version = HeadVersion(CLASS_IDS[1], 2)
    assert twice.ledger.earlier == (version,)
    back = rollback(twice, tmp_path / "back", [version]).bundle
    assert verify(bundle, back, changed=[]).kept == (HeadVersion(CLASS_IDS[1], 3),)
    assert verify(twice, back).kept == ()
    for number, relative in enumerate(("model.onnx", "head.json")):
        shutil.copytree(twice.path, tmp_path / str(number))
        name = f"{version.directory}/{relative}"
        data = (twice.path / name).read_bytes()
        forge(
            tmp_path / str(number),
            {name: data.replace(b'"weight"', b'"weiGht"').replace(b'"ok"', b'"no"').replace(b"logit", b"loGit")},
        )
        odd = open_bundle(tmp_path / str(number))
        assert odd.merkle_root == twice.merkle_root
        for other in (twice, bundle):  # that keeps it too, and that uses it
            refused(ArtifactError, rf"version 2 of head .* is another in .*: {name}; a version never changes", verify, other, odd)


def test_verify_finds_answers_that_differ_though_the_files_say_the_same(bundle, tmp_path):
    """A fused graph that is not that of its heads: its digests are right, and so is the Merkle root."""
    made = put(bundle, tmp_path / "out", [new_head("new", bundle)], entry={}).bundle
    fused = made.path / FUSED_ONNX
    tampered = put(bundle, tmp_path / "other", [new_head("new", bundle)], entry={}).bundle
    model = onnx.load(fused)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("/bias") and "hidden" not in t.name and "heads" in t.name)
    value = numpy_helper.to_array(tensor).copy()
    value[0] = np.nextafter(value[0], np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    data = model.SerializeToString()
    (tampered.path / FUSED_ONNX).unlink()
    (tampered.path / FUSED_ONNX).write_bytes(data)
    manifest = json.loads((tampered.path / MANIFEST).read_text())
    manifest["derived"][FUSED_ONNX] = {"sha256": sha256_bytes(data), "size_bytes": len(data)}
    (tampered.path / MANIFEST).write_bytes(canonical_json(manifest))
    refused(ArtifactError, "has the same files in both bundles and another answer", verify, bundle, open_bundle(tampered.path))
