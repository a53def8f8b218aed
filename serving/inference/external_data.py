"""Finds external data in an ONNX file: weights that the file takes from other files, or from an address in memory.

ONNX Runtime follows such references wherever they lead. The check needs no ONNX package: it walks the protobuf messages of
the file along the paths that lead to tensors, and skips everything else. Source of the field numbers: onnx.proto3 of ONNX
1.17; of the wire format: protobuf.dev/programming-guides/encoding.
"""

from serving.inference.metadata import ModelError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# By message: the message that a field holds.
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "function": {7: "node", 11: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor

_MOST_TAG = (1 << 32) - 1


def refuse_external_data(content: bytes) -> None:
    """Raises ModelError if a tensor of the ONNX file `content` lies outside the file, or if the file is not protobuf."""
    waiting = [("model", 0, len(content))]
    while waiting:
        message, place, end = waiting.pop()
        nested = _NESTED[message]
        while place < end:
            tag, place = _varint(content, place, end)
            field, kind = tag >> 3, tag & 7
            in_other_file = message == "tensor" and field in (_EXTERNAL_DATA, _DATA_LOCATION)
            if in_other_file and (kind == _BYTES or content[place : place + 1] != b"\0"):
                raise ModelError("contract", "breaks the model contract: it has external data, expected a single file")
            if tag > _MOST_TAG or not field:
                raise _malformed()
            if kind == _VARINT:
                _, place = _varint(content, place, end)
            elif kind == _BYTES:
                length, place = _varint(content, place, end)
                if length > end - place:
                    raise _malformed()
                if field in nested:
                    waiting.append((nested[field], place, place + length))
                place += length
            elif kind in (_FIXED64, _FIXED32):
                place += 8 if kind == _FIXED64 else 4
            else:  # a group, which ONNX does not have
                raise _malformed()
        if place > end:
            raise _malformed()


def _varint(content: bytes, place: int, end: int) -> tuple[int, int]:
    """Decodes the integer at `place`; returns the integer and the place behind it."""
    number = shift = 0
    while place < end and shift < 70:
        byte = content[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7
    raise _malformed()


def _malformed() -> ModelError:
    return ModelError("unreadable", "cannot be loaded: it is not an ONNX file, or a truncated one")
