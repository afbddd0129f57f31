"""`ovr COMMAND key=value ...`: finds the command, hands its arguments to Hydra and reports errors.

Knows nothing of what a command does: each is a module `ovr.cli.<command>` with `run(cfg)`, imported only when it runs, so that
help and configuration errors need no torch. A finished command gives exit status 0, an error 1 with one message.
"""

import atexit
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ovr import __version__
from ovr.cli.class_words import ids_as_written
from ovr.cli.conf import COMMANDS, command_help, conf_dir, name_of, overview
from ovr.core.nearest import nearest
from ovr.errors import ConfigError, OvrError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["conf_dir", "main"]

INTERRUPTED = 130  # what shells report of a process that SIGINT ended
OTHERS_REPORT_S = 15
FLAGS = {"--contract": "contract=true", "--dry-run": "dry_run=true", "--force": "force=true"}  # what reads better as a flag
# Packages that commands need, and the extra that brings them.
EXTRAS = {
    **dict.fromkeys(("torch", "lightning", "torchmetrics", "onnxscript"), "pip install 'ovr[train]'"),
    **dict.fromkeys(
        ("hydra", "omegaconf", "onnx", "google", "tqdm", "tritonclient", "onnxruntime"),
        "pip install 'ovr[train]', or 'ovr[serve]' for what needs no torch",
    ),
}
LISTS = {"--changed": "changed"}  # what reads better as a flag with the value after it: `--changed fire_truck`
POSITIONAL = {  # what reads better by its place
    "head verify": ("old", "new"),
    "head diff": ("old", "new"),
    "edge diff": ("old", "new"),
    "edge apply": ("patch", "directory"),
}


class _JobError(BaseException):
    """Carries a job's exception through Hydra, which would add a line of its own to an `Exception`."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ovr` with these arguments (by default the process's own) and return the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] == "--version":
        print(f"ovr {__version__}")
        return 0
    command, *rest = args
    if rest and f"{command} {rest[0]}" in COMMANDS:
        command, *rest = f"{command} {rest[0]}", *rest[1:]
    rest = plain_arguments(command, rest)
    try:
        if command not in COMMANDS:
            raise ConfigError(f"{command!r} is not a command of ovr; {nearest(command, COMMANDS) or 'see ovr --help'}")
        if "-h" in rest or "--help" in rest:
            print(command_help(command))
            return 0
        run_command(command, rest)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if any(arg.lower() == "debug=true" for arg in rest):
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        return 1
    return 0


def plain_arguments(command: str, args: Sequence[str]) -> list[str]:
    """Return the arguments as key=value, where a command takes some by their place or as flags."""
    names = [name for name in POSITIONAL.get(command, ()) if not any(arg.startswith(f"{name}=") for arg in args)]
    plain: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg in LISTS:
            plain.append(f"{LISTS[arg]}=[{next(rest, '')}]")
        elif arg.startswith("-") or "=" in arg or not names:
            plain.append(FLAGS.get(arg, ids_as_written(arg)))
        else:
            plain.append(f"{names.pop(0)}={arg}")
    return plain


def run_command(command: str, args: Sequence[str]) -> None:
    """Run one command under Hydra; multirun, `--cfg job`, `--config-dir` and the like are Hydra's own.

    Raises:
        OvrError: what is wrong with the arguments or with what they name.
    """
    import hydra

    from ovr.cli.launch import own_record, ranks
    from ovr.cli.overrides import Invocation, check, parsed
    from ovr.cli.rundir import RunDirectory, point_run_dir_here, resumed

    rank = ranks(os.environ) if command == "train" else None
    hydra_args = resumed(args) if command == "train" else list(args)
    options, hydra_args = parsed([*hydra_args, *own_record(command, rank)])
    invocation = Invocation.from_options(name_of(command), options, conf_dir())
    existed_before = check(invocation, rank)
    program = sys.argv[0]

    def task(cfg: "DictConfig") -> Any:
        job = RunDirectory.current(existed_before=existed_before)
        # Launchers of several processes start them with this process's arguments and `hydra.run.dir`: both must mean this job.
        sys.argv = [program, *command.split(), *job.single_run_args(args, options.config_dir)]
        point_run_dir_here()
        try:
            with _own_processes():
                return job_of(command)(cfg)
        except Exception as error:
            here = ranks(os.environ)
            if here is None or here.rank == 0:
                job.discard_if_unused()
            if job.multirun:
                if here is not None:
                    _exit_with_error()
                raise  # Hydra says which of the jobs it was
            raise _JobError(error) from error

    task.__module__ = f"ovr.cli.{name_of(command)}"  # Hydra names the job and its log after it
    with _environment("HYDRA_FULL_ERROR", "1"), _argv([program, *hydra_args]):  # errors come here instead of being printed
        try:
            hydra.main(config_path=str(invocation.config_path), config_name=invocation.config_name, version_base="1.3")(task)()
        except _JobError as stopped:
            raise stopped.error from stopped.error.__cause__


def job_of(command: str) -> Callable[["DictConfig"], None]:
    """Return the function that does a command: `run` of its module, or of `head NAME` the function of that name."""
    family, _, name = command.partition(" ")
    module, function = f"ovr.cli.{name_of(command)}", "run"
    if family in ("head", "bundle", "edge"):  # one module for all of them, and one for those that need torch
        of_torch = command in ("head add", "head features", "head retrain", "head plan")
        module, function = f"ovr.cli.{family}{'_fit' if of_torch else ''}", f"{name}_{family}"
    job: Callable[[DictConfig], None] = getattr(importlib.import_module(module), function)
    return job


def is_expected(error: BaseException) -> bool:
    """Return whether the error tells of the user's input rather than of a bug."""
    if isinstance(error, OvrError):
        return True
    if "hydra" not in sys.modules:
        return False
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, HydraException | OmegaConfBaseException)


def explain(error: BaseException) -> str:
    """Return the message for the person at the terminal."""
    if isinstance(error, OvrError):
        return str(error)
    if is_expected(error):
        from omegaconf.errors import MissingMandatoryValue

        if isinstance(error, MissingMandatoryValue):
            return f"{error.full_key} is not given; add {error.full_key}=VALUE"
        cause = error.__cause__ if is_expected(error.__cause__ or Exception()) else None
        text = "; ".join(str(part).strip().split("\n")[0] for part in (error, cause) if part is not None and str(part).strip())
        return text or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").partition(".")[0]) in EXTRAS:
        return f"this command needs {package}, which is not installed: {EXTRAS[package]}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {error} (debug=true shows the traceback)"


@contextmanager
def _own_processes() -> Iterator[None]:
    """Take back what a launcher of several processes leaves behind, so that the next job of a multirun starts its own."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _exit_with_error() -> None:
    """Let this process end with status 1 whatever its launcher makes of it: with 0, the other ranks would wait for this one.

    With it they are ended. Wrong settings stop all of them alike, so each is left the time to report what is wrong.
    """

    def end() -> None:
        time.sleep(OTHERS_REPORT_S)
        os._exit(1)

    atexit.register(end)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextmanager
def _argv(value: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = value
    try:
        yield
    finally:
        sys.argv = before
