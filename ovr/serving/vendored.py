"""The files of ovr that a published Python model needs, found by following its imports. Knows nothing of Triton.

A repository runs where no ovr is installed; what it carries is a copy of the modules themselves, never another version of them.
"""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@cache
def import_closure(module: str, *, root: Path = PACKAGE_ROOT) -> Mapping[str, bytes]:
    """Return the source of `module` and of all that it imports of its own top-level package when it is loaded.

    Imports within functions and for type checkers alone are not followed. Files are read once a process.

    Args:
        module: dotted name, such as `ovr.runtime.triton.router`.
        root: the directory that holds the top-level package.

    Returns:
        Content by path relative to `root`, with the `__init__.py` of every package on the way.
    """
    files: dict[str, bytes] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = _source(name, root)
        if path is None:
            continue  # a name within a module, not a module
        relative = path.relative_to(root).as_posix()
        if relative in files:
            continue
        files[relative] = path.read_bytes()
        pending += _imports(ast.parse(files[relative]), name.partition(".")[0])
        pending += [name.rpartition(".")[0]] if "." in name else []
    return files


def _source(name: str, root: Path) -> Path | None:
    path = root.joinpath(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _imports(node: ast.AST, package: str) -> list[str]:
    """Return the dotted names under `package` that are imported when `node` runs; what its functions do is left out."""
    names = []
    children: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        children = list(node.orelse)
    for child in children:
        if isinstance(child, ast.Import):
            names += [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            names += [child.module, *(f"{child.module}.{alias.name}" for alias in child.names)]
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names += _imports(child, package)
    return [name for name in names if name.partition(".")[0] == package]
