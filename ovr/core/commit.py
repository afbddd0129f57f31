"""The commit of the code that is at work. Knows git's command line alone."""

import subprocess
from typing import Any


def git_state() -> dict[str, Any]:
    """Return `git_commit` of the working directory, None outside a repository, and `git_dirty`, whether files differ from it."""
    return {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
