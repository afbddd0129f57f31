"""What versions, aliases and lineage promise, of every store alike. MLflow's is skipped where it is not installed."""

import json
import shutil
import time

import pytest

from ovr.core.bundle import BUNDLE_SIGNATURE, FUSED_ONNX, HEAD_SIGNATURES, MANIFEST, SIGNATURES, open_bundle
from ovr.core.files import canonical_json, sha256_bytes, sha256_file
from ovr.core.signature_files import signatures_in
from ovr.errors import ArtifactError, ConfigError, TaxonomyError
from ovr.registry.aliases import bundle_path, find, known_versions, opened, promote
from ovr.registry.entries import HeadPlace, Move, Version
from ovr.registry.lineage import lineage
from tests.core.parts import graph

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own
BY = {"who": "ann", "why": "because"}


def files(path):
    return {each.relative_to(path).as_posix(): sha256_file(each) for each in path.rglob("*") if each.is_file()}


def test_versions_count_and_hold_the_bundles_byte_for_byte(store, bundle_of):
    first, second = bundle_of(1), bundle_of(2)
    assert [store.register(bundle, "pets", **BY).version for bundle in (first, second)] == [1, 2]
    assert store.register(first, "cars", **BY).version == 1
    assert store.models() == ["cars", "pets"]
    assert [version.bundle_sha256 for version in store.versions("pets")] == [first.bundle_sha256, second.bundle_sha256]
    for version, bundle in zip(store.versions("pets"), (first, second), strict=True):
        assert files(store.bundle_path(version)) == files(bundle.path)
        assert opened(store, version).bundle_sha256 == bundle.bundle_sha256
    assert store.versions("nothing") == []


def test_the_same_bundle_is_the_same_version(store, bundle_of):
    for number in (1, 2, 1):
        store.register(bundle_of(number) if number != 1 or not store.models() else open_bundle_again(store), "pets", **BY)
    assert [version.version for version in store.versions("pets")] == [1, 2]
    again = store.register(open_bundle_again(store), "pets", who="bob", why="again")
    assert (again.version, again.who, again.why) == (1, "ann", "because")


def test_a_bundle_that_is_signed_later_is_signed_in_the_registry_too(store, bundle_of):
    bundle = bundle_of(1)
    version = store.register(bundle, "pets", **BY)
    kept = store.bundle_path(version)
    (bundle.path / SIGNATURES).mkdir()
    for signature, ours, theirs in ((b"1", "a", {"a": "x"}), (b"2", "b", {"a": "x", "b": "x"})):
        (bundle.path / BUNDLE_SIGNATURE).write_bytes(signature)
        (bundle.path / HEAD_SIGNATURES).write_bytes(canonical_json({"schema_version": 1, "heads": {"cat": {ours: "x"}}}))
        assert store.register(open_bundle(bundle.path), "pets", **BY) == version
        assert (opened(store, version).path / BUNDLE_SIGNATURE).read_bytes() == signature
        assert signatures_in(kept / HEAD_SIGNATURES) == {"cat": theirs}  # none is lost
    shutil.rmtree(bundle.path / SIGNATURES)
    store.register(open_bundle(bundle.path), "pets", **BY)
    assert (kept / BUNDLE_SIGNATURE).read_bytes() == b"2"


def test_a_bundle_with_another_fused_graph_is_not_the_version_that_has_its_digest(store, bundle_of):
    bundle = bundle_of(1)
    store.register(bundle, "pets", **BY)
    manifest = json.loads((bundle.path / MANIFEST).read_bytes())
    data = graph(b"another")
    manifest["derived"][FUSED_ONNX] = {"sha256": sha256_bytes(data), "size_bytes": len(data)}
    for name, content in ((FUSED_ONNX, data), (MANIFEST, canonical_json(manifest))):
        (bundle.path / name).unlink()  # it may be a hard link
        (bundle.path / name).write_bytes(content)
    other = open_bundle(bundle.path)
    assert other.bundle_sha256 == bundle.bundle_sha256
    with pytest.raises(
        ArtifactError, match=r"is registered already, and .* one of the two has a fused graph that is not of its heads"
    ):
        store.register(other, "pets", **BY)


def open_bundle_again(store):
    return open_bundle(bundle_path(store, "pets", 1))


def test_what_is_noted_of_a_version(store, bundle_of):
    first = bundle_of(1)
    noted = store.register(first, "pets", **BY)
    card = sha256_file(first.path / "data" / "card.json")
    expected = Version("pets", 1, first.bundle_sha256, None, card, "c0ffee", "ann", noted.when, "because")
    assert noted == expected
    assert store.versions("pets") == [expected]
    assert time.strptime(noted.when, "%Y-%m-%dT%H:%M:%SZ")
    assert store.register(bundle_of(2, parent=first.bundle_sha256), "pets", **BY).parent_bundle_sha256 == first.bundle_sha256


def test_an_alias_moves_back_and_forth_and_every_move_is_kept(store, bundle_of):
    for number in (1, 2):
        store.register(bundle_of(number), "pets", **BY)
    for reference, why in ((1, "first"), ("2", "better"), (1, "rollback")):
        promote(store, "pets", reference, "champion", who="ann", why=why)
        assert find(store, "pets", "champion").version == int(reference)
    assert promote(store, "pets", 1, "champion", **BY) == []
    promote(store, "pets", "champion", "before-winter", who="bob", why="keep")
    told = [(m.alias, m.class_id, m.before, m.version, m.head_version, m.who, m.why) for m in store.moves("pets")]
    assert told == [
        ("champion", None, None, 1, None, "ann", "first"),
        ("champion", None, 1, 2, None, "ann", "better"),
        ("champion", None, 2, 1, None, "ann", "rollback"),
        ("before-winter", None, None, 1, None, "bob", "keep"),
    ]
    assert store.aliases("pets").model == {"champion": 1, "before-winter": 1}


def test_a_head_has_aliases_of_its_own(store, bundle_of):
    for number in (1, 2):
        store.register(bundle_of(number), "pets", **BY)
    promote(store, "pets", 1, "champion", **BY)
    moves = promote(store, "pets", 2, "champion", class_ids=["cat", "../é/\n"], **BY)
    assert [(move.class_id, move.before, move.version, move.head_version) for move in moves] == [
        ("cat", None, 2, 2),
        ("../é/\n", None, 2, 2),
    ]
    assert store.moves("pets")[1:] == moves
    promote(store, "pets", 1, "candidate", class_ids=["cat"], **BY)
    aliases = store.aliases("pets")
    assert aliases.model == {"champion": 1}
    assert aliases.heads == {
        "cat": {"champion": HeadPlace(2, 2), "candidate": HeadPlace(1, 1)},
        "../é/\n": {"champion": HeadPlace(2, 2)},
    }
    assert bundle_path(store, "pets", "champion", class_id="cat") == store.bundle_path(store.versions("pets")[1])
    assert bundle_path(store, "pets", "champion") == store.bundle_path(store.versions("pets")[0])
    with pytest.raises(ConfigError, match=r"class 'cat' of 'pets' has no alias 'champoin'; nearest: champion"):
        find(store, "pets", "champoin", class_id="cat")
    with pytest.raises(ConfigError, match=r"class 'cta' of 'pets' has no aliases; nearest: cat"):
        find(store, "pets", "champion", class_id="cta")
    with pytest.raises(ConfigError, match=r"class 'train' of 'pets' has no alias 'champion'; it has none"):
        find(store, "pets", "champion", class_id="train")


def test_an_alias_that_moved_meanwhile_stays(store, bundle_of):
    for number in (1, 2):
        store.register(bundle_of(number), "pets", **BY)
    promote(store, "pets", 1, "champion", expect="none", **BY)
    with pytest.raises(ArtifactError, match=r"'champion' of 'pets' names version 1 by now, not no version; ann moved it"):
        promote(store, "pets", 2, "champion", expect="none", **BY)
    with pytest.raises(ArtifactError, match=r"names version 1 by now, not version 2; .*nothing was moved"):
        promote(store, "pets", 1, "champion", expect=2, **BY)
    with pytest.raises(ArtifactError, match="alias 'new' of 'cat' names no version by now, not version 1; nothing was moved"):
        promote(store, "pets", 1, "new", class_ids=["cat"], expect=1, **BY)
    assert len(store.moves("pets")) == 1
    promote(store, "pets", 2, "champion", expect=1, **BY)
    assert find(store, "pets", "champion").version == 2


def test_the_order_is_that_of_numbers_when_the_clock_goes_back(store, bundle_of, monkeypatch):
    clock = iter([2e9, 1e9, 5e8, 4e8])
    monkeypatch.setattr(time, "gmtime", lambda real=time.gmtime: real(next(clock)))
    for number in (1, 2):
        store.register(bundle_of(number), "pets", **BY)
        promote(store, "pets", number, "champion", **BY)
    assert [version.version for version in store.versions("pets")] == [1, 2]
    assert [move.version for move in store.moves("pets")] == [1, 2]
    assert find(store, "pets", "champion").version == 2
    whens = [store.versions("pets")[0].when, *(move.when for move in store.moves("pets"))]
    assert sorted(whens, reverse=True) == whens


def test_a_version_that_comes_while_its_alias_is_read_is_found(store, bundle_of, monkeypatch):
    store.register(bundle_of(1), "pets", **BY)
    second, aliases = bundle_of(2), type(store).aliases

    def aliases_after_a_move(self, model):
        if len(store.versions("pets")) == 1:
            store.register(second, "pets", **BY)
            promote(store, "pets", 2, "champion", **BY)
        return aliases(self, model)

    monkeypatch.setattr(type(store), "aliases", aliases_after_a_move)
    assert find(store, "pets", "champion").version == 2


def test_what_is_not_there_is_told_with_the_nearest(store, bundle_of):
    with pytest.raises(ConfigError, match=r"has no model 'pets'; it has none: `ovr bundle register` adds one"):
        known_versions(store, "pets")
    store.register(bundle_of(1), "pets", **BY)
    with pytest.raises(ConfigError, match="has no model 'pest'; nearest: pets"):
        find(store, "pest", 1)
    with pytest.raises(ConfigError, match="has no model 'zebra'; there are: pets"):
        find(store, "zebra", 1)
    with pytest.raises(ConfigError, match="'pets' has no version 2; it has 1 alone"):
        find(store, "pets", 2)
    store.register(bundle_of(2), "pets", **BY)
    with pytest.raises(ConfigError, match="'pets' has no version 7; it has 1 to 2"):
        find(store, "pets", "7")
    with pytest.raises(ConfigError, match="'pets' has no alias 'champion'; it has none"):
        find(store, "pets", "champion")
    promote(store, "pets", 1, "champion", **BY)
    with pytest.raises(ConfigError, match="'pets' has no alias 'champoin'; nearest: champion"):
        find(store, "pets", "champoin")
    with pytest.raises(TaxonomyError, match="version 1 of 'pets' has no class 'cats'; nearest: cat"):
        promote(store, "pets", 1, "champion", class_ids=["train", "cats"], **BY)
    assert store.aliases("pets").heads == {}
    for reference in (True, 1.0, None):
        with pytest.raises(ConfigError, match=rf"version is {reference}; expected a number or an alias"):
            find(store, "pets", reference)


def test_names_and_reasons_are_checked_before_anything_is_written(store, bundle_of):
    bundle = bundle_of(1)
    for name, message in (("", "printable"), (" a", "printable"), ("a\nb", "printable"), ("x" * 201, "1 to 200"), ("7", "numbers")):
        with pytest.raises(ConfigError, match=f"^model is .*{message}"):
            store.register(bundle, name, **BY)
    with pytest.raises(ConfigError, match="why is ' '; expected some text"):
        store.register(bundle, "pets", who="ann", why=" ")
    with pytest.raises(ConfigError, match="who is ''; expected some text"):
        store.register(bundle, "pets", who="", why="w")
    assert store.models() == []
    store.register(bundle, "pets", **BY)
    with pytest.raises(ConfigError, match="alias is '3'; numbers are for versions"):
        promote(store, "pets", 1, "3", **BY)
    with pytest.raises(ConfigError, match="why is ''; expected some text"):
        promote(store, "pets", 1, "champion", who="ann", why="")
    for expect in ("1", True, 1.5):
        with pytest.raises(ConfigError, match="expected the number of a version, or none"):
            promote(store, "pets", 1, "champion", expect=expect, **BY)
    assert store.moves("pets") == []


def test_lineage_goes_back_to_the_data_and_the_code(store, bundle_of):
    first = bundle_of(1)
    second = bundle_of(2, parent=first.bundle_sha256)
    for bundle in (second, first):  # registered late: the steps stand in the bundle
        store.register(bundle, "pets", **BY)
    promote(store, "pets", 2, "champion", **BY)
    promote(store, "pets", 1, "champion", who="bob", why="better")
    told = lineage(store, find(store, "pets", "champion"))
    assert [(s.command, s.bundle_sha256, s.parent_bundle_sha256, s.version) for s in told.steps] == [
        ("train", first.bundle_sha256, None, 2),
        ("calibrate", second.bundle_sha256, first.bundle_sha256, 1),
    ]
    assert [[file["sha256"] for file in step.files] for step in told.steps] == [["cd"], ["ab"]]
    assert [(step.git_commit, step.who, step.when) for step in told.steps] == [
        ("c0ffee", None, "2026-01-01T00:00:00Z"),
        ("beef", "ann", "2026-01-02T00:00:00Z"),
    ]
    assert [(move.before, move.version, move.who) for move in told.moves] == [(2, 1, "bob")]
    value = told.to_json()
    assert value["version"]["bundle_sha256"] == second.bundle_sha256
    assert value["steps"][1]["details"]["why"] == "w"
    assert Move.from_json(value["moves"][0]) == told.moves[0]


def test_a_version_that_is_damaged_is_not_promoted(store, bundle_of):
    for number in (1, 2):
        store.register(bundle_of(number), "pets", **BY)
    first, second = (store.bundle_path(version) for version in store.versions("pets"))
    (first / "report" / "metrics.json").unlink()
    with pytest.raises(ArtifactError, match=r"report/metrics\.json is missing"):
        promote(store, "pets", 1, "champion", **BY)
    first.rename(first.with_name("old"))
    second.rename(first)
    with pytest.raises(ArtifactError, match="version 1 of 'pets' was registered as"):
        promote(store, "pets", 1, "champion", **BY)
    assert store.moves("pets") == []
