"""The classes of a model, in the order of their columns. Knows nothing of weights or data.

This is the only place where a class id becomes a column, and the only place where it becomes a name on disk.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ovr.core import scale
from ovr.core.nearest import nearest
from ovr.errors import TaxonomyError

_PLAIN = re.compile(r"[a-z0-9_]{1,40}")
MAX_ID_CHARS = 1024


def slug(class_id: str) -> str:
    """Return the name of `class_id` on disk and in Triton: 1 to 53 characters of [a-z0-9_-].

    An id of [a-z0-9_]{1,40} is its own slug. Any other is cut to its readable part, a hyphen and 12 hexadecimal digits of its
    SHA-256; a plain id has no hyphen, so the two kinds never meet, not even on a file system that ignores case.
    """
    if _PLAIN.fullmatch(class_id):
        return class_id
    ascii_id = unicodedata.normalize("NFKD", class_id).encode("ascii", "ignore").decode().lower()
    readable = re.sub(r"[^a-z0-9_]+", "_", ascii_id).strip("_")[:40]
    return f"{readable or 'class'}-{hashlib.sha256(class_id.encode()).hexdigest()[:12]}"


def _look(class_id: str) -> str:
    """Return the same of ids that people cannot tell apart: without blanks at the ends and format characters, in NFKC."""
    if class_id.isascii():
        return class_id.strip()
    seen = "".join(character for character in class_id if unicodedata.category(character) != "Cf")
    return unicodedata.normalize("NFKC", seen).strip()


@dataclass(frozen=True, slots=True)
class ClassSpec:
    """One class. `id` never changes; `name` is what people read and defaults to the id; `parent` is the id of what it is part of,
    which need not be a class that the model has.

    `false_positive` and `false_negative` are what either mistake costs (threshold=cost), `max_ece` is the limit of its calibration
    error (the calibration contract). What is None is that of every class, as the command that uses it is configured.
    """

    id: str
    name: str = ""
    owner: str = ""
    critical: bool = False
    parent: str = ""
    false_positive: float | None = None
    false_negative: float | None = None
    max_ece: float | None = None

    def __post_init__(self) -> None:
        _check_id(self.id)
        for field in ("name", "owner", "parent"):
            _check_text(field, self.id, getattr(self, field))
        if not isinstance(self.critical, bool):
            raise TaxonomyError(f"critical of class {self.id!r} is {self.critical!r}; expected true or false")
        for field in ("false_positive", "false_negative"):
            price = getattr(self, field)
            if price is not None and not (_is_number(price) and 0 <= price < float("inf")):
                raise TaxonomyError(f"the cost of a {field} of class {self.id!r} is {price!r}; expected a number of at least 0")
        if self.false_positive == self.false_negative == 0:
            raise TaxonomyError(f"both costs of class {self.id!r} are 0; expected one above 0")
        if self.max_ece is not None and not (_is_number(self.max_ece) and 0 < self.max_ece <= 1):
            raise TaxonomyError(f"max_ece of class {self.id!r} is {self.max_ece!r}; expected a number above 0 and at most 1")
        if not self.name:
            object.__setattr__(self, "name", self.id)


class Taxonomy(Sequence[ClassSpec]):
    """The ordered classes of a model; `taxonomy[k]` is the class of column k."""

    __slots__ = ("_columns", "classes")

    def __init__(self, classes: Iterable[ClassSpec]) -> None:
        """Take the classes in column order.

        Raises:
            TaxonomyError: there is none, or two ids are equal or look alike: but for blanks at the ends, for characters that are
                not seen, and for how Unicode spells a character (NFKC).
        """
        self.classes = tuple(classes)
        if not self.classes:
            raise TaxonomyError("a model needs at least one class, got K = 0")
        self._columns: dict[str, int] = {}
        normalised: dict[str, str] = {}
        for column, spec in enumerate(self.classes):
            key = _look(spec.id)
            if key in normalised:
                how = "is there twice" if normalised[key] == spec.id else f"looks like {normalised[key]!r}, which is there too"
                raise TaxonomyError(
                    f"class id {spec.id!r} (column {column}) {how}; ids must differ in more than blanks at the ends, characters "
                    "that are not seen and how Unicode spells a character"
                )
            normalised[key] = spec.id
            self._columns[spec.id] = column

    @classmethod
    def from_ids(cls, class_ids: Iterable[str]) -> "Taxonomy":
        """Return the taxonomy of classes that have an id and nothing else."""
        return cls(ClassSpec(class_id) for class_id in class_ids)

    @classmethod
    def from_json(cls, value: list[dict[str, Any]] | dict[str, list[Any]]) -> "Taxonomy":
        """Return the taxonomy that `to_json` wrote; unknown keys are refused."""
        try:
            if isinstance(value, dict):
                return cls(ClassSpec(**dict(zip(value, row, strict=True))) for row in zip(*value.values(), strict=True))
            return cls(ClassSpec(**row) for row in value)
        except (TypeError, ValueError) as error:
            raise TaxonomyError(f"a class in the taxonomy cannot be read: {error}") from None

    def to_json(self) -> list[dict[str, Any]] | dict[str, list[Any]]:
        """Return the classes as plain dictionaries, in column order, without what is None.

        From `LARGE_K` classes on, a list for each field that any of them uses: a tenth of the text where they have ids alone.
        """
        if len(self) < scale.LARGE_K:
            return [{name: value for name, value in asdict(spec).items() if value is not None} for spec in self.classes]
        columns = {field.name: [getattr(spec, field.name) for spec in self.classes] for field in fields(ClassSpec)}
        unused = [field.name for field in fields(ClassSpec) if set(columns[field.name]) == {field.default}]
        unused += ["name"] if columns["name"] == columns["id"] else []
        return {name: column for name, column in columns.items() if name not in unused}

    def with_settings(self, settings: Mapping[str, Mapping[str, Any]]) -> "Taxonomy":
        """Return the taxonomy whose classes, by id, have other fields than their `id` set: {"fraud": {"false_negative": 50}}.

        Raises:
            TaxonomyError: a class that is not there (with those that are near), a field that there is not, or a value that it
                cannot have.
        """
        if unknown := self.unknown(settings):
            raise TaxonomyError(f"the taxonomy of {len(self)} classes does not have: {unknown}")
        known = [field.name for field in fields(ClassSpec) if field.name != "id"]
        for class_id, values in settings.items():
            if not isinstance(values, Mapping) or set(values) - set(known):
                raise TaxonomyError(f"class {class_id!r} is set to {values!r}; expected values of some of {', '.join(known)}")
        return Taxonomy(replace(spec, **settings[spec.id]) if spec.id in settings else spec for spec in self.classes)

    def unknown(self, class_ids: Iterable[str]) -> str:
        """Return which of the ids are none of the classes, each with those that are near: "'frod' (nearest: fraud), 'zzz'"."""
        shown = []
        for class_id in class_ids:
            if class_id not in self._columns:
                near = nearest(class_id, self.ids)
                shown.append(f"{class_id!r} ({near})" if near else repr(class_id))
        return ", ".join(shown)

    @property
    def ids(self) -> tuple[str, ...]:
        """The class ids in column order."""
        return tuple(spec.id for spec in self.classes)

    def column(self, class_id: str) -> int:
        """Return the column of `class_id`.

        Raises:
            TaxonomyError: it is not one of the classes.
        """
        try:
            return self._columns[class_id]
        except KeyError:
            shown = ", ".join(repr(known) for known in self.ids[:10]) + (", ..." if len(self) > 10 else "")
            raise TaxonomyError(f"class {class_id!r} is not in the taxonomy; its {len(self)} classes are {shown}") from None

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, column: Any) -> Any:
        return self.classes[column]

    def __iter__(self) -> Iterator[ClassSpec]:
        return iter(self.classes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Taxonomy) and self.classes == other.classes

    def __hash__(self) -> int:
        return hash(self.classes)

    def __repr__(self) -> str:
        return f"Taxonomy({list(self.ids)!r})"


def ancestors(class_id: str, *, separator: str = "/") -> tuple[str, ...]:
    """Return the ids that `class_id` is below, from the top: "a" and "a/b" of "a/b/c".

    An id with an empty part ("http://host", "/a", "a/") is no path, and has none.
    """
    parts = class_id.split(separator)
    return () if "" in parts else tuple(separator.join(parts[:depth]) for depth in range(1, len(parts)))


def with_parents(classes: Iterable[ClassSpec | str], *, separator: str = "/", add: bool = False) -> Taxonomy:
    """Return the taxonomy of `classes`, in which "a/b/c" has the parent "a/b"; a parent that a class names itself is kept.

    With `add`, ancestors that are not among the classes become classes too, each just before the first that is below it. They have
    positive rows only where the labels of rows are widened likewise.

    Raises:
        TaxonomyError: what `Taxonomy` refuses.
    """
    given = [spec if isinstance(spec, ClassSpec) else ClassSpec(spec) for spec in classes]
    known = {spec.id for spec in given}
    result = []
    for spec in given:
        above = ancestors(spec.id, separator=separator)
        for depth, class_id in enumerate(above if add else ()):
            if class_id not in known:
                known.add(class_id)
                result.append(ClassSpec(class_id, parent=above[depth - 1] if depth else ""))
        result.append(replace(spec, parent=above[-1]) if above and not spec.parent else spec)
    return Taxonomy(result)


def _check_id(class_id: object) -> None:
    if not isinstance(class_id, str):
        raise TaxonomyError(f"a class id is text, got {class_id!r} of type {type(class_id).__name__}; quote it")
    if not class_id or len(class_id) > MAX_ID_CHARS:
        raise TaxonomyError(f"a class id has 1 to {MAX_ID_CHARS} characters, got {len(class_id)}")
    _check_text("id", class_id, class_id)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_text(field: str, class_id: str, value: object) -> None:
    if not isinstance(value, str):
        raise TaxonomyError(f"the {field} of class {class_id!r} is {value!r}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TaxonomyError(f"the {field} of class {class_id!r}, {value!r}, is not valid Unicode (a lone surrogate)") from None
