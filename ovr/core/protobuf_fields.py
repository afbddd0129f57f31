"""Protobuf's wire format, read strictly: no groups, no number that does not end, no field beyond its message. Knows no messages."""

from collections.abc import Iterator

MAX_FIELDS = 100_000  # that are looked at in one file
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5


class Damaged(Exception):
    """What keeps the bytes from being a model."""


class Fields:
    """The fields of protobuf messages in one buffer."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.left = data, MAX_FIELDS

    def of(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (number, wire type, start, end) of each field; a varint's value stands in place of its start."""
        position = start
        while position < end:
            self.left -= 1
            if self.left < 0:
                raise Damaged(f"it has more than {MAX_FIELDS} fields")
            tag, position = self._varint(position, end, 5)
            number, wire = tag >> 3, tag & 7
            if number == 0 or tag >= 1 << 32:
                raise Damaged(f"field tag {tag} at byte {position}")
            if wire == VARINT:
                value, position = self._varint(position, end, 10)
                yield number, wire, value, position
                continue
            if wire == BYTES:
                size, position = self._varint(position, end, 5)
            elif wire in (FIXED_64, FIXED_32):
                size = 8 if wire == FIXED_64 else 4
            else:
                raise Damaged(f"wire type {wire} at byte {position}")
            if size > end - position:
                raise Damaged(f"field {number} at byte {position} is to have {size} bytes, {end - position} are left")
            yield number, wire, position, position + size
            position += size

    def bytes_of(self, wire: int, start: int, end: int) -> bytes:
        """Return the bytes of a field that is some."""
        if wire != BYTES:
            raise Damaged(f"wire type {wire} at byte {start} in place of bytes")
        return bytes(self.data[start:end])

    def message(self, wire: int, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Return the fields of a field that is a message."""
        if wire != BYTES:
            raise Damaged(f"wire type {wire} at byte {start} in place of a message")
        return self.of(start, end)

    def varints(self, start: int, end: int) -> list[int]:
        """Return packed varints as signed 64-bit numbers."""
        values, position = [], start
        while position < end:
            value, position = self._varint(position, end, 10)
            values.append(signed(value))
        return values

    def _varint(self, position: int, end: int, most: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 7 * most, 7):
            if position >= end:
                raise Damaged(f"it ends within a number at byte {position}")
            byte = self.data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise Damaged(f"a number at byte {position} does not end")


def signed(value: int) -> int:
    """Return a varint as a signed 64-bit number."""
    return value - (1 << 64) if value >= 1 << 63 else value
