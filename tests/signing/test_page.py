"""The model of a page is signed, verified and required to be as that of any edge export; patches say that they are of no pages."""

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.cli.main import main
from ovr.edge.__main__ import main as edge_main
from ovr.errors import ArtifactError
from ovr.lifecycle.edge_export import EdgeOptions, export_edge
from ovr.lifecycle.web_export import export_web
from ovr.runtime.edge_files import sign_export
from tests.bundles import small_bundle
from tests.cli.test_main import error_of
from tests.edge.exports import content, patch

pytest.importorskip("cryptography")
RUNTIME = {"ort.wasm.bundle.min.js": b"export {}"}


@pytest.fixture
def page(tmp_path):
    """A page of a bundle that has a signature."""
    bundle = small_bundle(tmp_path / "bundle")
    (bundle.path / "signatures").mkdir()
    (bundle.path / "signatures" / "bundle.sig").write_text("{}")
    export_edge(bundle, tmp_path / "edge", EdgeOptions())
    export_web(bundle, tmp_path / "page", EdgeOptions(), RUNTIME)
    return tmp_path / "page"


def test_its_model_is_signed_verified_and_required_to_be(page, keys, tmp_path, capsys):
    assert (tmp_path / "edge" / "signatures" / "bundle.sig").is_file()
    assert not (page / "signatures").exists()  # anybody could read it
    ann, mallory = keys / "ann.pub", keys / "mallory.pub"
    np.save(tmp_path / "x.npy", np.ones((2, 6), np.float32))
    predict = [str(page), str(tmp_path / "x.npy"), "--require-signature"]
    assert edge_main([*predict, str(ann)]) == 1
    assert "it has no signature" in capsys.readouterr().err
    before = content(page)
    assert main(["sign", f"bundle={page}", f"key={keys / 'ann.pem'}"]) == 0
    assert content(page) == {**before, "signatures/export.json": (page / "signatures" / "export.json").read_bytes()}
    assert main(["verify", f"bundle={page}", f"trusted_keys=[{ann}]"]) == 0
    assert f"{page}: its model and card.json, not its page, are signed by {ann}" in capsys.readouterr().out
    assert edge_main([*predict, str(ann)]) == 0
    with pytest.raises(ArtifactError, match="of other keys, or of something else"):
        EdgePredictor(page, trusted_keys=[mallory])
    (page / "model.onnx").write_bytes(before["model.onnx"][:-1])
    assert "model.onnx was changed or cut short" in error_of(capsys, "verify", f"bundle={page}", f"trusted_keys=[{ann}]")
    with pytest.raises(ArtifactError, match=r"model.onnx was changed or cut short"):
        sign_export(page, keys / "bob.pem", None)


def test_a_patch_is_neither_made_of_it_nor_applied_to_it(page, tmp_path, capsys):
    said = (
        f"{page} is a page that `ovr export target=web` wrote, and patches are of directories of target=edge alone; export the page"
    )
    edge, file = tmp_path / "edge", tmp_path / "patch"
    for old, new in ((page, edge), (edge, page)):
        assert said in error_of(capsys, "edge", "diff", str(old), str(new), f"out={file}")
    assert not file.exists()
    before = content(page)
    assert edge_main(["apply", str(patch(edge, edge, file)), str(page)]) == 1
    assert said in capsys.readouterr().err
    assert content(page) == before
