"""What a run and a step of a bundle note of the code."""

import subprocess

from ovr.core.commit import git_state


def git(*arguments):
    name = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *name, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() == {"git_commit": None, "git_dirty": False}
    git("init")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-m", "m")
    assert git_state() == {"git_commit": git("rev-parse", "HEAD"), "git_dirty": False}
    (tmp_path / "f").write_text("2")
    assert git_state() == {"git_commit": git("rev-parse", "HEAD"), "git_dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_state() == {"git_commit": None, "git_dirty": False}
