import hashlib
import itertools

import pytest

from ovr.core.merkle import ABSENT, DEPTH, ChangeProof, differing, leaf_hash, path, prove_changes, root, root_over
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


@pytest.mark.parametrize("new", [["a", "X", "c"], ["a", "b", "c", "d"], ["X", "b", "Y", "d", "e"]])
def test_proofs_lead_from_the_old_root_to_the_new_one_leaf_by_leaf(new):
    old_L, new_L = leaf_list("a", "b", "c"), leaf_list(*new)
    proofs = prove_changes(old_L, new_L)
    assert [proof.index for proof in proofs] == differing(old_L, new_L)
    reached = root(old_L)
    for proof in proofs:
        reached = proof.root_after(reached)
    assert reached == root(new_L)


def test_a_proof_of_another_change_is_refused():
    old_L = leaf_list("a", "b", "c")
    (proof,) = prove_changes(old_L, leaf_list("a", "X", "c"))
    for index, leaf, beside in itertools.product((0, 1, 2), (proof.old_leaf, "0" * 64), (proof.hashes, proof.hashes[::-1])):
        if (index, leaf, beside) != (1, proof.old_leaf, proof.hashes):
            with pytest.raises(ArtifactError, match="the proof is of a tree with root"):
                ChangeProof(index, leaf, proof.new_leaf, beside).root_after(root(old_L))
    # The new leaf may be any: then the root is another.
    assert ChangeProof(1, proof.old_leaf, "0" * 64, proof.hashes).root_after(root(old_L)) != root(leaf_list("a", "X", "c"))


@pytest.mark.parametrize(
    "change", [{"hashes": ("0" * 64,)}, {"index": -1}, {"index": 2**DEPTH}, {"new_leaf": "x"}, {"old_leaf": 3}]
)
def test_what_is_no_proof_is_refused(change):
    (proof,) = prove_changes(leaf_list("a"), leaf_list("b"))
    values = {name: getattr(proof, name) for name in ("index", "old_leaf", "new_leaf", "hashes")}
    with pytest.raises(ArtifactError, match="a proof is two leaves and 24 hashes"):
        ChangeProof(**(values | change)).root_after(root(leaf_list("a")))
