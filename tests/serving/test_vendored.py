import subprocess
import sys

from ovr.serving.models import ROUTER
from ovr.serving.vendored import PACKAGE_ROOT, import_closure


def test_the_router_carries_exactly_what_python_loads_for_it(tmp_path):
    files = import_closure(ROUTER)
    (tmp_path / "triton_python_backend_utils.py").touch()
    for relative, content in files.items():
        (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / relative).write_bytes(content)
    code = f"import sys, {ROUTER}; print(*sorted(m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'ovr'))"
    run = [sys.executable, "-B", "-c", code]
    loaded = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert loaded == sorted(str(tmp_path / relative) for relative in files)


def test_nothing_it_carries_needs_more_than_numpy():
    for content in import_closure(ROUTER).values():
        for package in (b"torch", b"onnx", b"tritonclient", b"hydra", b"lightning"):
            assert b"\nimport " + package not in content
            assert b"\nfrom " + package not in content


def test_imports_that_do_not_run_are_not_followed(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("def f():\n    import pack.lazy\n")
    (package / "a.py").write_text(
        "import os\nif True:\n    from pack import b\nfrom pack.c import name\nif TYPE_CHECKING:\n    import pack.lazy\n"
    )
    for name in ("b", "lazy"):
        (package / f"{name}.py").write_text("")
    (package / "c.py").write_text("name = 1\n")
    assert sorted(import_closure("pack.a", root=tmp_path)) == ["pack/__init__.py", "pack/a.py", "pack/b.py", "pack/c.py"]


def test_a_copy_is_the_module_itself():
    assert all((PACKAGE_ROOT / relative).read_bytes() == content for relative, content in import_closure(ROUTER).items())
