import subprocess
import sys
from importlib.util import find_spec

import pytest

CODE = """
import sys
import torch
from ovr.torchvision_ops import declare_missing_ops

assert not hasattr(torch.ops.torchvision, "nms")
declare_missing_ops()
declare_missing_ops()
print(hasattr(torch.ops.torchvision, "nms"), hasattr(torch.ops.torchvision, "qnms"), "torchvision" in sys.modules)
"""


@pytest.mark.parametrize(("installed", "expected"), [(True, "True True False"), (False, "False False False")])
def test_operators_of_a_torchvision_that_does_not_load_are_declared(tmp_path, monkeypatch, installed, expected):
    if installed:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
        (tmp_path / "torchvision" / "_C.so").write_bytes(b"needs CUDA")
    elif find_spec("torchvision"):
        pytest.skip("torchvision is installed")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
