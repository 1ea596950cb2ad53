"""MessagePack, as far as docs/wire.md needs it: nil, bool, int, float, str, bin, array, map. No extension types."""

import struct

DEPTH_MAX = 64


def pack(value):
    """The bytes of `value`. Integers get their shortest form, bytes are `bin`, tuples are arrays."""
    out = bytearray()
    _pack(value, out)
    return bytes(out)


def unpack(data):
    """The one value in `data`; ValueError if it is damaged, too deep, or followed by anything."""
    value, at = unpack_from(data, 0)
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind the value")
    return value


def unpack_from(data, at, depth=0):
    """The value at `at`, and the position behind it."""
    if depth > DEPTH_MAX:
        raise ValueError(f"nested deeper than {DEPTH_MAX} levels")
    marker = _take(data, at, 1)[0]
    at += 1
    if marker <= 0x7F:
        return marker, at
    if marker >= 0xE0:
        return marker - 0x100, at
    if marker <= 0x8F:
        return _map(data, at, marker & 0x0F, depth)
    if marker <= 0x9F:
        return _array(data, at, marker & 0x0F, depth)
    if marker <= 0xBF:
        return _text(data, at, marker & 0x1F)
    if marker in _CONSTANTS:
        return _CONSTANTS[marker], at
    if marker in _NUMBERS:
        form = struct.Struct(_NUMBERS[marker])
        return form.unpack(_take(data, at, form.size))[0], at + form.size
    if marker in _SIZED:
        read, size = _SIZED[marker]
        length = int.from_bytes(_take(data, at, size), "big")
        at += size
        return read(data, at, length) if read in (_text, _bin) else read(data, at, length, depth)
    raise ValueError(f"marker {marker:#04x} is not one of values")


def _take(data, at, length):
    if at + length > len(data):
        raise ValueError("the bytes end within a value")
    return data[at : at + length]


def _text(data, at, length):
    return bytes(_take(data, at, length)).decode("utf-8"), at + length


def _bin(data, at, length):
    return bytes(_take(data, at, length)), at + length


def _array(data, at, length, depth):
    # Every value takes a byte at least, so a count beyond that is a lie.
    _take(data, at, length)
    values = []
    for _ in range(length):
        value, at = unpack_from(data, at, depth + 1)
        values.append(value)
    return values, at


def _map(data, at, length, depth):
    _take(data, at, 2 * length)
    pairs = {}
    for _ in range(length):
        key, at = unpack_from(data, at, depth + 1)
        pairs[key], at = unpack_from(data, at, depth + 1)
    return pairs, at


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}
_SIZED = {
    0xC4: (_bin, 1), 0xC5: (_bin, 2), 0xC6: (_bin, 4),
    0xD9: (_text, 1), 0xDA: (_text, 2), 0xDB: (_text, 4),
    0xDC: (_array, 2), 0xDD: (_array, 4),
    0xDE: (_map, 2), 0xDF: (_map, 4),
}


def _pack(value, out):
    if value is None:
        out.append(0xC0)
    elif value is True or value is False:
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        _pack_int(value, out)
    elif isinstance(value, float):
        out += struct.pack(">Bd", 0xCB, value)
    elif isinstance(value, str):
        text = value.encode("utf-8")
        _pack_length(len(text), (0xA0, 31), (0xD9, 0xDA, 0xDB), out)
        out += text
    elif isinstance(value, (bytes, bytearray)):
        _pack_length(len(value), None, (0xC4, 0xC5, 0xC6), out)
        out += value
    elif isinstance(value, (list, tuple)):
        _pack_length(len(value), (0x90, 15), (None, 0xDC, 0xDD), out)
        for inner in value:
            _pack(inner, out)
    elif isinstance(value, dict):
        _pack_length(len(value), (0x80, 15), (None, 0xDE, 0xDF), out)
        for key, inner in value.items():
            _pack(key, out)
            _pack(inner, out)
    else:
        raise TypeError(f"{type(value).__name__} has no form in msgpack")


def _pack_int(value, out):
    if -32 <= value <= 127:
        out.append(value & 0xFF)
        return
    forms = (0xCC, 0xCD, 0xCE, 0xCF) if value >= 0 else (0xD0, 0xD1, 0xD2, 0xD3)
    for marker in forms:
        try:
            out += struct.pack(">B", marker) + struct.pack(_NUMBERS[marker], value)
            return
        except struct.error:
            continue
    raise OverflowError(f"{value} does not fit 64 bits")


def _pack_length(length, short, markers, out):
    if short is not None and length <= short[1]:
        out.append(short[0] | length)
        return
    for marker, size in zip(markers, (1, 2, 4)):
        if marker is not None and length < 1 << 8 * size:
            out.append(marker)
            out += length.to_bytes(size, "big")
            return
    raise OverflowError(f"a length of {length}")
