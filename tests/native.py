"""A `tritonserver` for PATH, as NVIDIA's container has one: a script that starts the embedded server with its backends."""

import shlex

from ovr.serving import embedded
from ovr.serving.program import find_program


def tritonserver_on_path(folder):
    """Write it to `folder`/bin and return its path; the environment that the server needs is in it."""
    embedded.install()
    (folder / "bin").mkdir()
    program = find_program(folder, allow_old=True, install=False, home=None)
    assert program.is_embedded
    settings = [f"{name}={program.env[name]}" for name in ("LD_LIBRARY_PATH", "PATH")]
    script = folder / "bin" / "tritonserver"
    script.write_text(f'#!/bin/sh\nexec env {shlex.join([*settings, *program.command])} "$@"\n')
    script.chmod(0o755)
    return script
