"""Signatures of edge exports and of their patches: made by `ovr sign` and `ovr edge diff`, required on a device."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf

from ovr import EdgePredictor
from ovr.cli import edge, sign, verify
from ovr.cli.main import main
from ovr.edge.__main__ import main as edge_main
from ovr.edge.apply import apply_patch
from ovr.errors import ArtifactError, ConfigError
from ovr.lifecycle.edge_diff import write_patch
from ovr.lifecycle.edge_export import EdgeOptions, export_edge
from ovr.runtime import predictor
from ovr.runtime.edge_files import sign_export
from ovr.runtime.edge_signatures import signed_model
from tests.bundles import small_bundle
from tests.cli.test_main import error_of
from tests.edge.exports import content

pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Two exports, of which the second has another second head."""
    folder = tmp_path_factory.mktemp("edge")
    for name, seeds in (("old", (0, 1, 2)), ("new", (0, 9, 2))):
        bundle = small_bundle(folder / f"bundle {name}", head_seeds=seeds, versions=(1, seeds[1], 1))
        export_edge(bundle, folder / name, EdgeOptions())
    return folder


@pytest.fixture
def device(exports, tmp_path):
    return shutil.copytree(exports / "old", tmp_path / "device")


def test_an_export_is_signed_verified_and_required_to_be(device, keys, tmp_path, capsys):
    ann, bob, mallory = (str(keys / f"{name}.pub") for name in ("ann", "bob", "mallory"))
    np.save(tmp_path / "x.npy", np.ones((2, 6), np.float32))
    predict = [str(device), str(tmp_path / "x.npy")]
    with pytest.raises(ArtifactError, match=r"device is not signed by .*ann.pub: it has no signature"):
        EdgePredictor(device, trusted_keys=[ann])
    assert "it has no signature" in error_of(capsys, "verify", f"bundle={device}", f"trusted_keys=[{ann}]")
    assert main(["sign", f"bundle={device}", f"key={keys / 'ann.pem'}"]) == 0
    assert f"signed {device}: {device / 'signatures' / 'export.json'}" in capsys.readouterr().out
    assert main(["verify", f"bundle={device}", f"trusted_keys=[{bob},{ann}]"]) == 0
    assert f"{device}: signed by {ann}" in capsys.readouterr().out
    assert len(EdgePredictor(device, trusted_keys=[ann]).predict(np.ones((2, 6))).prob_BK) == 2
    EdgePredictor(device)  # nobody is asked for
    assert edge_main([*predict, "--require-signature", ann]) == 0
    assert edge_main([*predict, "--require-signature", mallory, "--require-signature", ann]) == 0
    capsys.readouterr()
    assert edge_main([*predict, "--require-signature", mallory]) == 1
    assert "its 1 signatures are of other keys, or of something else" in capsys.readouterr().err
    sign_export(device, keys / "bob.pem", None)  # beside the other
    for key in (ann, bob):
        EdgePredictor(device, trusted_keys=[key])


def test_what_was_changed_since_it_was_signed_is_refused(device, exports, keys):
    ann = keys / "ann.pub"
    sign_export(device, keys / "ann.pem", None)
    good = content(device)

    def refused(said):
        with pytest.raises(ArtifactError, match=said):
            EdgePredictor(device, trusted_keys=[ann])
        for name, data in good.items():
            (device / name).write_bytes(data)

    for name in ("model.onnx", "card.json"):  # another export in place of it, whole and with its card
        shutil.copy(exports / "new" / name, device)
    refused("of other keys, or of something else")
    (device / "card.json").write_bytes(good["card.json"].replace(b'"target":"edge"', b'"target": "edge"'))
    refused("of other keys, or of something else")
    (device / "model.onnx").write_bytes(good["model.onnx"] + b"\0")
    refused("model.onnx was changed or cut short")
    signature = device / "signatures" / "export.json"
    signature.write_bytes(signature.read_bytes().replace(b'":"M', b'":"N'))
    refused("of other keys, or of something else")
    signature.write_bytes(b'{"schema_version":2,"signatures":{}}')
    refused("holds no signatures that this ovr reads; sign it again")
    (device / "notes.txt").write_text("")
    with pytest.raises(ArtifactError, match=r"holds notes.txt, which is no part"):
        sign_export(device, keys / "ann.pem", None)


def test_what_takes_its_place_between_check_and_use_is_not_opened(device, exports, keys, monkeypatch):
    sign_export(device, keys / "ann.pem", None)

    check, replacements = predictor.checked_model, []

    def swapped(directory, trusted_keys):
        found = check(directory, trusted_keys)
        shutil.copytree(replacements[-1], directory, dirs_exist_ok=True)
        return found

    monkeypatch.setattr(predictor, "checked_model", swapped)
    model = exports.parent / "model"
    model.mkdir(exist_ok=True)
    shutil.copyfile(exports / "new" / "model.onnx", model / "model.onnx")
    good = content(device)
    for replacement, said in ((model, "was changed while it was opened"), (exports / "new", "is not signed by .*ann.pub")):
        replacements.append(replacement)
        with pytest.raises(ArtifactError, match=said):
            EdgePredictor(device, trusted_keys=[keys / "ann.pub"])
        for name, data in good.items():
            (device / name).write_bytes(data)
    replacements.append(shutil.copytree(exports / "new", device.parent / "signed"))  # as by a patch that is applied meanwhile
    sign_export(replacements[-1], keys / "ann.pem", None)
    opened = EdgePredictor(device, trusted_keys=[keys / "ann.pub"])
    assert opened.card == EdgePredictor(exports / "new").card


def test_a_signed_export_in_the_runtime_s_own_format_is_opened(keys, tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    export_edge(bundle, tmp_path / "ort", EdgeOptions(format="ort"))
    sign_export(tmp_path / "ort", keys / "ann.pem", None)
    x = np.ones((2, 6), np.float32)
    signed = EdgePredictor(tmp_path / "ort", trusted_keys=[keys / "ann.pub"])
    np.testing.assert_array_equal(signed.predict_proba(x), EdgePredictor(bundle.path).predict_proba(x))


def test_what_is_removed_while_it_is_opened_is_told(device, keys):
    sign_export(device, keys / "ann.pem", None)
    (device / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model.onnx was removed while it was opened; open it again"):
        signed_model(device / "model.onnx", device / "card.json", [keys / "ann.pub"])


def test_a_patch_is_signed_and_a_foreign_one_is_refused(device, exports, keys, tmp_path, capsys):
    ann, mallory = keys / "ann.pub", keys / "mallory.pub"
    write_patch(exports / "old", exports / "new", tmp_path / "plain")
    command = ["edge", "diff", str(exports / "old"), str(exports / "new"), f"out={tmp_path / 'signed'}"]
    assert main([*command, f"key={keys / 'ann.pem'}"]) == 0
    assert f"signed with {keys / 'ann.pem'}" in capsys.readouterr().out
    for file, key, said in (("plain", ann, "it has no signature"), ("signed", mallory, "are of other keys")):
        assert edge_main(["apply", str(tmp_path / file), str(device), "--require-signature", str(key)]) == 1
        assert said in capsys.readouterr().err
    assert content(device) == content(exports / "old")
    required = ["edge", "apply", str(tmp_path / "signed"), str(device), "require_signature=true"]
    assert "are of other keys" in error_of(capsys, *required, f"trusted_keys=[{mallory}]")
    for settings in ({"require_signature": True, "trusted_keys": []}, {"require_signature": False, "trusted_keys": [str(ann)]}):
        with pytest.raises(ConfigError, match=r"require_signature=true and trusted_keys=\[FILE\] belong together"):
            edge.apply_edge(OmegaConf.create(settings))
    assert apply_patch(tmp_path / "signed", device, trusted_keys=[mallory, ann]).is_new
    assert content(device) == content(exports / "new")
    with pytest.raises(ConfigError, match=r"rsa\.pem is no private EC key that can be used"):
        write_patch(exports / "new", exports / "old", tmp_path / "rsa", key=keys / "rsa.pem")
    assert not (tmp_path / "rsa").exists()


def test_a_patch_brings_the_signature_of_the_new_export(device, exports, keys, tmp_path):
    new = shutil.copytree(exports / "new", tmp_path / "new")
    for directory in (device, new):
        sign_export(directory, keys / "ann.pem", None)
    write_patch(device, new, tmp_path / "patch", key=keys / "ann.pem")
    apply_patch(tmp_path / "patch", device, trusted_keys=[keys / "ann.pub"])
    assert content(device) == content(new)
    EdgePredictor(device, trusted_keys=[keys / "ann.pub"])


def test_what_does_not_go_together_is_told(device, exports, keys):
    with pytest.raises(ConfigError, match="which is no directory of `ovr export target=edge`; those of bundles are checked by"):
        EdgePredictor(exports / "bundle old", trusted_keys=[keys / "ann.pub"])
    with pytest.raises(ConfigError, match="expected a list of files"):
        EdgePredictor(device, trusted_keys=str(keys / "ann.pub"))
    with pytest.raises(ConfigError, match=r"rsa.pub is no public EC key that can be used: expected a key of P-256"):
        EdgePredictor(device, trusted_keys=[keys / "rsa.pub"])
    nothing = {"key": None, "certificate": None, "sigstore": False, "heads": None, "heads_from": None, "bundle": str(device)}
    for more in ({"sigstore": True}, {"key": "k", "heads": "all"}, {"heads_from": str(exports)}, {}):
        with pytest.raises(ConfigError, match="is an edge export, which is signed whole and with a key alone"):
            sign.run(OmegaConf.create({**nothing, **more}))
    nobody = {"trusted_keys": [], "trusted_certificates": [], "owner_keys": None, "head_keys": [], "repository": None}
    nobody |= {"sigstore_identity": None, "sigstore_issuer": None, "bundle": str(device)}
    for more in ({}, {"trusted_keys": [str(keys / "ann.pub")], "head_keys": [str(keys / "ann.pub")]}):
        with pytest.raises(ConfigError, match="whose signatures are of keys alone"):
            verify.run(OmegaConf.create({**nobody, **more}))


def test_without_cryptography_it_is_said_how_to_get_it(device, keys):
    code = (
        "import sys; sys.modules['cryptography'] = None; from ovr import EdgePredictor; EdgePredictor(sys.argv[1])\n"
        "EdgePredictor(sys.argv[1], trusted_keys=[sys.argv[2]])"
    )
    done = subprocess.run([sys.executable, "-c", code, device, keys / "ann.pub"], capture_output=True, text=True, check=False)
    assert "signatures need cryptography, which is not installed" in done.stderr
    assert "'ovr[verify]' on a device" in done.stderr
