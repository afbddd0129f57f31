import hashlib

import pytest

from ovr.core.merkle import ABSENT, DEPTH, ChangeProof, check_proof, leaf_hash, path, prove_changes, root, root_over
from ovr.errors import ArtifactError


def leaf_list(*values):
    return [leaf_hash(value) for value in values]


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def test_the_root_is_that_of_the_whole_tree_computed_node_by_node(monkeypatch):
    monkeypatch.setattr("ovr.core.merkle.DEPTH", 3)
    a, b, c, d, e = some = leaf_list("a", "b", "c", "d", "e")
    assert a == hashlib.sha256(b'\x00"a"').digest()
    full = node(node(node(a, b), node(c, d)), node(node(e, ABSENT), node(ABSENT, ABSENT)))
    assert root(some) == full.hex()
    assert path(some, 4) == (ABSENT.hex(), node(ABSENT, ABSENT).hex(), node(node(a, b), node(c, d)).hex())


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_every_path_leads_to_the_root_and_those_of_absent_leaves_too(size):
    some = leaf_list(*range(size))
    for index in range(size + 3):
        leaf = some[index] if index < size else ABSENT
        assert len(path(some, index)) == DEPTH
        assert root_over(leaf, index, path(some, index)) == root(some)


def specs(*ids, **more):
    return [{"class": {"id": class_id}, **more} for class_id in ids]


def roots(old, new):
    return tuple(root([leaf_hash(leaf) for leaf in some]) for some in (old, new))


@pytest.mark.parametrize("changed", [[1], [3], [0, 2], []])
def test_proofs_lead_from_the_old_root_to_the_new_one_leaf_by_leaf(changed):
    old = specs("a", "b", "c")
    new = specs("a", "b", "c", "d") if 3 in changed else list(old)
    for index in changed:
        new[index] = new[index] | {"version": 2}
    first, last = roots(old, new)
    proofs = prove_changes(old, new)
    assert [proof.index for proof in proofs] == changed
    said = {"old_root": first, "new_root": last, "changes": [vars_of(proof) for proof in proofs]}
    assert check_proof(said, old_root=first, new_root=last) == tuple("abcd"[index] for index in changed)
    with pytest.raises(
        ArtifactError, match=f"the proof is of roots {first[:12]} and {last[:12]}; expected {last[:12]} and 000000000000"
    ):
        check_proof(said, old_root=last, new_root="0" * 64)
    if changed:
        with pytest.raises(ArtifactError, match="the changes lead to root"):
            check_proof(said | {"new_root": first}, old_root=first, new_root=first)
        with pytest.raises(ArtifactError, match="the proof is of a tree with root"):
            check_proof(said | {"old_root": "0" * 64}, old_root="0" * 64, new_root=last)


def test_a_proof_between_roots_of_somebodys_own_does_not_hold():
    old, forged = specs("a", "b"), specs("a", "x")
    first, last = roots(old, specs("a", "b", version=2))
    own = roots(old, forged)
    said = {"old_root": own[0], "new_root": own[1], "changes": [vars_of(proof) for proof in prove_changes(old, forged)]}
    with pytest.raises(ArtifactError, match="the proof is of roots"):
        check_proof(said, old_root=first, new_root=last)


def vars_of(proof):
    return {name: getattr(proof, name) for name in ("index", "old", "new", "hashes")}


def test_nothing_in_a_proof_can_be_another_thing():
    old, new = specs("a", "b", "c"), specs("a", "b", "c")
    new[1] = new[1] | {"version": 2}
    first, last = roots(old, new)
    (proof,) = prove_changes(old, new)
    said = vars_of(proof)
    other = {"index": 2, "old": specs("x")[0], "hashes": said["hashes"][::-1]}
    for name, value in other.items():
        with pytest.raises(ArtifactError, match="the proof is of a tree with root"):
            ChangeProof(**said | {name: value}).root_after(first)
    assert ChangeProof(**said | {"new": {"class": {"id": "b"}, "version": 3}}).root_after(first) != last
    with pytest.raises(ArtifactError, match="the leaves of a proof are of one class"):
        _ = ChangeProof(**said | {"new": specs("x")[0]}).class_id
    assert ChangeProof(0, {"input": 1}, {"input": 2}, said["hashes"]).class_id == ""


@pytest.mark.parametrize("change", [{"hashes": ("0" * 64,)}, {"index": -1}, {"index": 2**DEPTH}, {"hashes": ("x" * 64,) * DEPTH}])
def test_what_is_no_proof_is_refused(change):
    old, new = specs("a"), specs("a", version=2)
    (proof,) = prove_changes(old, new)
    with pytest.raises(ArtifactError, match="a proof has the index of a leaf and 24 hashes"):
        ChangeProof(**(vars_of(proof) | change)).root_after(roots(old, new)[0])
    with pytest.raises(ArtifactError, match="this is no proof of `ovr head verify`: KeyError"):
        check_proof({"changes": [{}]}, old_root="", new_root="")
    with pytest.raises(ArtifactError, match="this is no proof of `ovr head verify`: TypeError index is no whole number"):
        check_proof({"old_root": "", "new_root": "", "changes": [vars_of(proof) | {"index": "1"}]}, old_root="", new_root="")
