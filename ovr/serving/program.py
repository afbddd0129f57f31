"""Which tritonserver is run: the one on PATH, else the embedded one; how old it is, and which flags it knows.

Knows nothing of the flags' meaning or of the repository's content.
"""

import logging
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ovr.errors import ServingError
from ovr.runtime.triton import onnxruntime_backend_source
from ovr.serving import embedded

log = logging.getLogger(__name__)

FLOOR = (2, 68)  # of NVIDIA's container 26.04, the first without the advisories of its bulletin 5828
HELP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Program:
    """A server's executable with the flags that it must have, and its environment."""

    command: tuple[str, ...]
    env: dict[str, str]
    is_embedded: bool

    def known_flags(self) -> frozenset[str]:
        """Return the flags that `--help` names.

        Raises:
            OSError: it cannot be executed.
            ServingError: it does not answer.
        """
        try:
            done = subprocess.run(
                [self.command[0], "--help"],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=HELP_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise ServingError(f"`{self.command[0]} --help` does not end within {HELP_TIMEOUT_S:.0f} s") from None
        return frozenset(re.findall(r"^\s+(--[a-z0-9-]+)", done.stdout.decode(errors="replace"), re.MULTILINE))


def find_program(scratch: Path, *, allow_old: bool, install: bool, home: Path | None) -> Program:
    """Return the server to run, with its backends laid out in `scratch` where it is the embedded one.

    Raises:
        ServingError: there is none; or the one on PATH says, before it is started, that it is older than `FLOOR`.
    """
    if (native := shutil.which("tritonserver")) is not None:
        told = Path(native).resolve().parent.parent / "TRITON_VERSION"  # in NVIDIA's containers
        if told.is_file():
            check_version(told.read_text(errors="replace").strip(), native, allow_old=allow_old)
        log.info("serving with %s", native)
        return Program((native,), dict(os.environ), is_embedded=False)
    if (server := embedded.find(home)) is None:
        if not install:
            raise ServingError(
                f"no tritonserver is on PATH, and the embedded one is not installed in {home or embedded.default_home()}; "
                "install it with `python -m ovr.serving.embedded`"
            )
        server = embedded.install(home)
    log.info(
        "serving with the embedded Triton server, of 2024 and with known advisories: for this machine and for tests; "
        "production is NVIDIA's container, 26.04 or later"
    )
    backends = scratch / "backends"
    (backends / "onnxruntime").mkdir(parents=True)
    (backends / "python").symlink_to(server.python_backend)
    (backends / "onnxruntime" / "model.py").write_bytes(onnxruntime_backend_source())
    command = (str(server.tritonserver), f"--backend-directory={backends}")
    return Program(command, server.environment(), is_embedded=True)


def check_version(version: str, program: str, *, allow_old: bool) -> None:
    """Raise ServingError where a server of this version, such as "2.51.0", is older than `FLOOR` or does not say how old it is."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is not None and (int(match[1]), int(match[2])) >= FLOOR:
        return
    if allow_old:
        log.warning("%s is Triton %s, with known advisories: older than %d.%d of container 26.04", program, version, *FLOOR)
        return
    raise ServingError(
        f"{program} is Triton {version or 'of an unknown version'}, with known advisories; expected {FLOOR[0]}.{FLOOR[1]} "
        "(container 26.04) or later, or allow_old_server=true"
    )
