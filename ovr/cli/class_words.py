"""Class ids and names of the command line, as they are written: Hydra would read 1.50 as a number and lose its spelling."""

import re

KEYS = ("class", "classes", "changed", "name", "names", "heads", "frozen_heads", "backbone_grad")
# What Hydra reads as a number, a truth value or nothing: digits with a point, an exponent or underscores, and its words.
_NO_TEXT = re.compile(r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[+-]?\d[\d_]*)?|[+-]?(inf|nan)|true|false|null", re.IGNORECASE)
_ELEMENT = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\[\],'"]+""")


def ids_as_written(arg: str) -> str:
    """Return `key=value` with quotes around ids that Hydra would read as something else, or not at all as those with letters
    beyond ASCII; `class=null` stays what is not given.
    """
    key, _, value = arg.partition("=")
    if key not in KEYS:
        return arg
    if value.startswith("[") and value.endswith("]"):
        return f"{key}={_ELEMENT.sub(lambda found: _quoted(found[0]), value)}"
    return arg if value == "null" else f"{key}={_quoted(value)}"


def _quoted(word: str) -> str:
    plain = word.strip()
    quoted = plain[:1] in ("'", '"')
    return f"'{plain}'" if _NO_TEXT.fullmatch(plain) or not (quoted or plain.isascii()) else word
