import json

import numpy as np
import pytest

from ovr.cli.main import main, plain_arguments
from ovr.core.bundle import open_bundle
from tests.cli.test_main import error_of
from tests.export.sample import sample_bundle, sample_model
from tests.lifecycle.conftest import with_weights

CLASS_IDS = ("cat", "dog", "größe")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    made, _ = sample_bundle(tmp_path_factory.mktemp("head") / "bundle", sample_model(num_heads=3), CLASS_IDS)
    return made


@pytest.fixture
def args(bundle, tmp_path):
    return [f"bundle={bundle.path}", f"out={tmp_path / 'out'}"]


def test_a_class_is_retired_and_comes_back_and_the_lists_tell(bundle, args, tmp_path, capsys):
    first, *_ = CLASS_IDS
    assert main(["head", "retire", *args, f"class={first}", "why=no longer asked for", "who=me"]) == 0
    assert main(["head", "list", f"bundle={tmp_path / 'out'}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [first, first, "retired", "1"] in lines
    assert main(["head", "rollback", f"bundle={tmp_path / 'out'}", f"out={tmp_path / 'back'}", f"class={first}"]) == 0
    assert main(["head", "verify", str(bundle.path), str(tmp_path / "back"), "changed=[]"]) == 0
    out = capsys.readouterr().out
    assert "unchanged: 3 heads" in out
    assert main(["head", "show", f"bundle={tmp_path / 'back'}", f"class={first}"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [step["command"] for step in said["history"]] == ["head retire", "head rollback"]
    assert said["history"][0]["why"] == "no longer asked for"
    assert said["history"][0]["who"] == "me"
    assert (said["in_use"], said["kept"], said["head"]["class_id"]) == (1, [], first)


def test_a_dry_run_says_what_would_change_and_writes_nothing(args, tmp_path, capsys):
    assert main(["head", "rename", *args, f"class={CLASS_IDS[1]}", "name=Dog", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "dry run: nothing was written" in out
    assert [CLASS_IDS[1], "name", CLASS_IDS[1], "Dog"] in [line.split() for line in out.splitlines()]
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    assert "exists already" in error_of(capsys, "head", "rename", *args, f"class={CLASS_IDS[1]}", "name=Dog", "--dry-run")


def test_commands_that_only_read_take_classes_and_a_dry_run_too(bundle, args, tmp_path, capsys):
    assert main(["head", "rename", *args, "classes=[dog,cat]", "names=[Dog,Cat]"]) == 0
    old, new = str(bundle.path), str(tmp_path / "out")
    for words in (["list", f"bundle={new}"], ["diff", old, new]):
        capsys.readouterr()
        assert main(["head", *words, "class=dog", "--dry-run"]) == 0
        assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"class", "dog"}
        assert main(["head", *words, "classes=[dog,cat]"]) == 0
        assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"class", "cat", "dog"}
        assert "nearest: dog" in error_of(capsys, "head", *words, "class=dogs")
    assert main(["head", "show", f"bundle={new}", "class=dog", "--dry-run"]) == 0
    assert main(["head", "verify", old, new, "changed=[cat,dog]", f"proof={tmp_path / 'proof.json'}", "--dry-run"]) == 0
    assert not (tmp_path / "proof.json").exists()
    assert "expected 'dog' alone to differ" in error_of(capsys, "head", "verify", old, new, "changed=dog")
    assert "class 'dog' is named more than once" in error_of(capsys, "head", "rename", *args, "classes=[dog,dog]", "owner=x")


def test_several_classes_are_renamed_and_shown_at_once(args, tmp_path, capsys):
    assert main(["head", "rename", *args, "classes=[dog,cat]", "names=[1.50,Cat]", "owner=team"]) == 0
    specs = open_bundle(tmp_path / "out").taxonomy
    assert [spec.name for spec in specs] == ["Cat", "1.50", "größe"]
    assert [spec.owner for spec in specs] == ["team", "team", ""]
    capsys.readouterr()
    assert main(["head", "show", f"bundle={tmp_path / 'out'}", "classes=[cat,größe]"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(each["class"]["name"], len(each["history"])) for each in said] == [("Cat", 1), ("größe", 0)]
    assert "version is 1.0; expected" in error_of(capsys, "head", "show", f"bundle={tmp_path / 'out'}", "class=cat", "version=1.0")


@pytest.mark.parametrize("step", [["retire"], ["rollback"], ["replace", "--force"]])
def test_each_step_takes_several_classes_and_a_dry_run(bundle, args, tmp_path, step, capsys):
    """Those that fit heads are in tests/lifecycle/test_head_commands.py."""
    source = args[0]
    if step[0] == "rollback":
        assert main(["head", "retire", *args, "classes=[cat,dog]"]) == 0
        source = f"bundle={tmp_path / 'out'}"
    of = [f"from={bundle.path}"] if step[0] == "replace" else []
    command = ["head", *step, source, f"out={tmp_path / 'then'}", *of, "classes=[cat,dog]"]
    assert main([*command, "--dry-run"]) == 0
    assert "dry run: nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "then").exists()
    assert main(command) == 0
    assert open_bundle(tmp_path / "then").provenance["history"][-1]["classes"] == ["cat", "dog"]


def test_the_proof_leads_from_one_root_to_the_other(bundle, args, tmp_path, capsys):
    assert main(["head", "rename", *args, f"class={CLASS_IDS[1]}", "owner=team", "max_ece=0.02", "critical=true"]) == 0
    told = capsys.readouterr().out
    for name, value in (("owner", "team"), ("critical", "true"), ("max_ece", "0.02")):
        assert [CLASS_IDS[1], name, value] in [line.split() for line in told.splitlines()]
    spec = open_bundle(tmp_path / "out").taxonomy[1]
    assert (spec.owner, spec.max_ece, spec.critical, spec.name) == ("team", 0.02, True, CLASS_IDS[1])
    proof = tmp_path / "proof.json"
    verify = ["head", "verify", str(bundle.path), str(tmp_path / "out"), "--changed", CLASS_IDS[1], f"proof={proof}"]
    assert main(verify) == 0
    told = capsys.readouterr().out.splitlines()
    assert f"described: {CLASS_IDS[1]}" in told
    said = json.loads(proof.read_text())
    assert (said["old_root"], said["new_root"]) == (bundle.merkle_root, open_bundle(tmp_path / "out").merkle_root)
    (change,) = said["changes"]
    assert (change["old"]["class"]["owner"], change["new"]["class"]["owner"]) == ("", "team")
    assert main(["head", "verify", f"check={proof}", *told[-2:]]) == 0  # old_root=ROOT and new_root=ROOT
    assert capsys.readouterr().out == f"the proof holds: {CLASS_IDS[1]} alone differs\n"
    proof.write_text(json.dumps(said | {"old_root": said["new_root"]}))
    assert "the proof is of roots" in error_of(capsys, "head", "verify", f"check={proof}", *told[-2:])
    assert "needs old_root=ROOT new_root=ROOT" in error_of(capsys, "head", "verify", f"check={proof}")
    assert "give two bundles" in error_of(capsys, "head", "verify", str(bundle.path))
    assert "exists" in error_of(capsys, "head", "verify", str(bundle.path), str(tmp_path / "out"), f"proof={proof}")


def test_heads_are_taken_from_another_bundle_and_the_difference_is_told(bundle, args, tmp_path, capsys):
    step = ["head", "replace", *args, f"from={bundle.path}", f"classes=['{CLASS_IDS[2]}']"]
    assert f"is the one that {bundle.path} has already as version 1" in error_of(capsys, *step)
    model = sample_model(num_heads=3)
    with_weights(model, 2.0)
    other, _ = sample_bundle(tmp_path / "other", model, CLASS_IDS)
    capsys.readouterr()
    step[-2] = f"from={other.path}"
    assert "the gate refuses 1 of 1 heads" in error_of(capsys, *step)  # the bundle keeps no calibration rows
    assert main([*step, "--force"]) == 0
    assert open_bundle(tmp_path / "out").provenance["history"][-1]["forced"] == [CLASS_IDS[2]]
    capsys.readouterr()
    assert main(["head", "diff", str(bundle.path), str(tmp_path / "out")]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [[CLASS_IDS[2], "version", "1", "2"]]
    assert main(["head", "diff", str(bundle.path), str(bundle.path)]) == 0
    assert "the bundles' heads are the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["retire"], "give class=ID or classes=[ID,...], and not both"),
        (["retire", "class=dgo"], "has no class 'dgo'; nearest: dog"),
        (["rename", "class=dog"], "neither name nor owner nor anything else is given"),
        (["rollback", "class=dog"], "is at version 1, the first that bundle"),
        (["rollback", "class=dog", "version=7"], "keeps no version 7 of head 'dog'; it has versions 1"),
        (["rollback", "class=dog", "version=1"], "is at version 1 already"),
        (["rollback", "class=dog", "version=1.0"], "version is 1.0; expected the whole number of a version"),
        (["rollback", "class=dog", "version=true"], "version is True; expected the whole number"),
        (["rollback", "class=dog", "version='1'"], "version is '1'; expected the whole number"),
        (["retire", "classes=[dog,dog]"], "class 'dog' is named more than once"),
        (["rollback", "classes=[]"], "classes is an empty list"),
        (["retire", "class=1.50"], "has no class '1.50'"),
        (["retire", "class=[dog]"], "class is ['dog'], which is no text"),
        (["retire", "classes=[cat,dog,größe]"], "a bundle needs at least one head"),
        (["rollback", "class=größer"], "has no class 'größer'; nearest: größe"),
        (["rename", "class=dog", "name=A", "names=[A]"], "give name=NAME or names=[NAME,...], and not both"),
        (["rename", "classes=[dog,cat]", "name=A"], "name=A is of one class, got 2; give names=[NAME,...]"),
        (["rename", "classes=[dog,cat]", "names=[A]"], "names has 1 for 2 classes"),
        (["rename", "classes=[dog,dog]", "owner=x"], "class 'dog' is named more than once"),
        (["retire", "class=dog", "out=null"], "out is not given"),
    ],
)
def test_what_cannot_be_done_is_said(args, tmp_path, extra, message, capsys):
    name, *rest = extra
    assert message in error_of(capsys, "head", name, *args, *rest)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (["gate=null"], "gate=null: expected the name of an option, or no gate= at all; all: default"),
        (["gate=nonsense"], "gate=nonsense: there is no such option; all: default, mine, other, worded"),
        (["~gate"], "there is no gate; expected a policy, such as gate=default"),
        (["gate.min_positives=many"], "the gate's min_positives is 'many'; expected a whole number of at least 0"),
        (["gate=other"], "gate is a Identity; expected ovr.lifecycle.gate.Gate"),
        (["~gate._target_"], "and no _target_; expected"),
        (["gate=mine"], "the gate's policy has no 'min_positive'; nearest: min_positives"),
        (["gate=worded"], "and no _target_; expected"),
    ],
)
def test_a_gate_that_is_none_is_refused(bundle, args, tmp_path, gate, message, capsys):
    policies = tmp_path / "conf/gate"
    policies.mkdir(parents=True)
    (policies / "mine.yaml").write_text("_target_: ovr.lifecycle.gate.Gate\nmin_positive: 3\n")
    (policies / "worded.yaml").write_text("min_positives: 3\n")
    (policies / "other.yaml").write_text("_target_: ovr.calibrator.identity.Identity\n")
    step = ["head", "replace", *args, f"from={bundle.path}", "class=dog", "--config-dir", str(tmp_path / "conf"), *gate]
    assert message in error_of(capsys, *step)
    assert not (tmp_path / "out").exists()


def test_a_retired_class_is_told_as_such(args, tmp_path, capsys):
    assert main(["head", "retire", *args, "class=dog"]) == 0
    assert "has no class 'dog'; it is retired" in error_of(capsys, "head", "retire", f"bundle={tmp_path / 'out'}", "class=dog")


def test_arguments_by_place_and_flags_become_keys():
    assert plain_arguments("head verify", ["A", "B", "changed=[x]"]) == ["old=A", "new=B", "changed=[x]"]
    assert plain_arguments("head verify", ["old=A", "B"]) == ["old=A", "new=B"]
    assert plain_arguments("head retire", ["--dry-run", "x"]) == ["dry_run=true", "x"]
    assert plain_arguments("evaluate", ["--contract"]) == ["contract=true"]


def test_the_reference_answers_are_those_of_the_heads(bundle, args, tmp_path):
    from ovr.runtime.predictor import EdgePredictor

    assert main(["head", "retire", *args, "class=dog"]) == 0
    out = tmp_path / "out"
    x, prob_NK = (np.load(out / "reference" / f"{name}.npy") for name in ("x", "prob"))
    np.testing.assert_allclose(EdgePredictor(out).predict(x).prob_BK, prob_NK, atol=1e-5)
