"""`ovr sign`, `ovr verify`, and commands that require signatures."""

import pytest
from omegaconf import OmegaConf

from ovr.cli import predict, sign, verify
from ovr.cli.main import main
from ovr.cli.signatures import required_trust
from ovr.errors import ConfigError
from ovr.serving import signing
from ovr.serving.repository import publish
from tests.bundles import small_bundle

pytest.importorskip("model_signing")

from tests.signing.conftest import IDS, OWNERS

PREDICT = ["predict", "bundle={b}", "input=x.npy", "output=y.csv"]


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
