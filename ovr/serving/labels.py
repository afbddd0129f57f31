"""The label file of Triton's classification extension: one class id a line. Knows nothing of models."""

from ovr.core.taxonomy import Taxonomy


def labels_file(taxonomy: Taxonomy) -> bytes:
    """Return the class ids in column order, one a line in UTF-8, so that line k names column k."""
    return "".join(f"{escape_label(class_id)}\n" for class_id in taxonomy.ids).encode()


def escape_label(class_id: str) -> str:
    """Return `class_id` on one line: backslash and control characters as Python escapes, all else as it is."""
    return "".join(c.encode("unicode_escape").decode() if c == "\\" or ord(c) < 32 or ord(c) == 127 else c for c in class_id)
