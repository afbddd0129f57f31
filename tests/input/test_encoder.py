"""What encoders need where they run, told from their JSON alone."""

import tomllib
from pathlib import Path

import pytest

from ovr.input.encoder import PACKAGES, packages_of

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
WORDS, TOKENS = {"kind": "text"}, {"kind": "tokens"}


@pytest.mark.parametrize(
    ("encoder", "packages"),
    [
        (None, []),
        (WORDS, []),
        ({"kind": "image"}, EXTRAS["images"]),
        (TOKENS, EXTRAS["text"][:1]),
        ({"kind": "joined", "parts": [["words", WORDS], ["more", WORDS]]}, []),
        ({"kind": "joined", "parts": [["words", WORDS], ["tokens", TOKENS]]}, EXTRAS["text"][:1]),
    ],
)
def test_the_packages_are_those_of_the_extras(encoder, packages):
    assert packages_of(encoder) == packages
    assert set(packages) <= set(PACKAGES.values())
