"""`ovr bundle`: the page's commands as they stand, and what each prints."""

import getpass
import json
import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ovr.cli.bundle import gate_words, print_table, text, who
from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from ovr.errors import ConfigError
from ovr.registry.directory import Directory
from tests.bundles import small_bundle
from tests.cli.test_main import error_of

PAGE = Path(__file__).parents[2] / "docs" / "registry.md"
CLASS_IDS = ("3", "8", "owl")


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVR_REGISTRY", raising=False)
    small_bundle(tmp_path / "outputs" / "digits" / "bundle", CLASS_IDS)
    small_bundle(tmp_path / "outputs" / "calibrated", CLASS_IDS, version=2)
    return tmp_path / "outputs"


def printed(capsys, line):
    """Return what a command of a shell prints; $( ) is replaced by what the command within prints."""
    line = re.sub(r"\$\((.*?)\)", lambda inner: printed(capsys, inner[1]).strip(), line)
    program, *args = shlex.split(line)
    assert program == "ovr"
    assert main(args) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_commands_of_the_page_do_what_it_says(outputs, capsys):
    (block,) = re.findall(r"<!-- run: registry -->\n```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    told = [printed(capsys, line) for line in block.splitlines()]
    assert re.fullmatch(r"bundle \w{12} is now version 1 of digits, in the registry outputs/registry\n", told[0])
    assert told[1] == "champion of digits: none -> 1\n"
    assert told[3] == "champion of digits: 1 -> 2\n"
    header, newest, oldest = told[4].splitlines()
    assert header.split() == ["model", "version", "aliases", "bundle", "parent", "who", "when", "why"]
    assert newest.startswith("digits  2        champion  ")
    assert oldest.endswith("first model")
    assert "registered by" in told[5]
    assert told[6].endswith("published into " + str(outputs / "repository") + "\n")
    assert told[7] == "champion of digits: 2 -> 1\n"
    again = printed(capsys, "ovr bundle register model=digits bundle=outputs/calibrated why=again")
    assert re.fullmatch(r"bundle \w{12} is version 2 of digits, in the registry outputs/registry\n", again)
    assert (
        error_of(capsys, "bundle", "path", "model=digits", "version=champoin")
        == "'digits' has no alias 'champoin'; nearest: champion"
    )


def test_aliases_of_heads_and_json(outputs, capsys):
    store = Directory("outputs/registry")
    noted = store.register(open_bundle(outputs / "calibrated"), "digits", who="ann", why="w")
    moved = printed(capsys, "ovr bundle promote model=digits version=1 alias=champion class=3 expect=none why=w who=ann")
    assert moved == "champion of class 3 of digits: none -> 1 (head version 2)\n"
    assert printed(capsys, "ovr bundle path model=digits version=champion class=3") == "outputs/registry/digits/versions/1/bundle\n"
    listed = json.loads(printed(capsys, "ovr bundle list json=true"))
    heads = {"3": {"champion": {"version": 1, "head_version": 2}}}
    assert listed == {"digits": {"versions": [noted.to_json()], "aliases": {"model": {}, "heads": heads}}}
    lineage = json.loads(printed(capsys, "ovr bundle lineage model=digits version=1 json=true"))
    assert (lineage["version"], lineage["moves"]) == (noted.to_json(), [move.to_json() for move in store.moves("digits")])
    assert [step["bundle_sha256"] for step in lineage["steps"]] == [noted.bundle_sha256]


def test_who_and_why_are_texts(monkeypatch):
    assert text(OmegaConf.create({"model": 7}), "model") == "7"
    with pytest.raises(ConfigError, match="why is True, which is no text; quote"):
        text(OmegaConf.create({"why": True}), "why")
    assert who(OmegaConf.create({"who": "ann"})) == "ann"
    monkeypatch.setattr(getpass, "getuser", lambda: "bob")
    assert who(OmegaConf.create({"who": None})) == "bob"

    def nameless():
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nameless)
    with pytest.raises(ConfigError, match="the user of this process has no name; say who=NAME"):
        who(OmegaConf.create({"who": None}))


def test_a_table_is_cut_and_says_so(capsys):
    print_table([["a", "b"], [1, None], [2, "x"]], max_lines=1)
    assert capsys.readouterr().out == "a  b\n1\nand 1 more; json=true prints all of them\n"
    for value in (-1, True, "x"):
        with pytest.raises(ConfigError, match=r"max_lines is .*; expected a whole number of at least 0"):
            print_table([["a"]], max_lines=value)


def test_a_registry_that_is_not_there_is_told(outputs, capsys):
    assert error_of(capsys, "bundle", "list") == "the registry outputs/registry has no models; `ovr bundle register` adds one"


def test_a_step_tells_what_the_gate_said():
    passed = {"undecided": [], "looser_than_default": []}
    open_to_all = {"undecided": ["calibration", "not worse"], "looser_than_default": ["worse"]}
    assert gate_words({"command": "train"}) == ""
    assert gate_words({"gated": False, "num_changed_heads": 2}) == "none"
    assert gate_words({"gated": False, "num_changed_heads": 0}) == ""
    assert gate_words({"gate": {"a": passed}, "forced": []}) == "passed"
    assert gate_words({"gate": {"a": passed, "b": open_to_all}}) == "passed; undecided: calibration, not worse; looser: worse"
    assert gate_words({"gate": {"a": passed}, "forced": ["a"]}) == "forced: a"
    assert gate_words({"gate": {"a": passed}, "ungated": ["b"]}) == "passed; none: b"
    assert gate_words({"gate": {"a": {"passed": True, "checks": {}}}}) == "passed"  # as older bundles have it
