"""Makes safetensors files: some malformed in one known way each, some odd but legal.

Format: 8 bytes little-endian header length, JSON header, data (https://github.com/huggingface/safetensors, "Format").
"""

import json
import struct
from dataclasses import dataclass

HEADER_LIMIT = 100_000_000
INT64_MAX = 2**63 - 1


def encode(header, data=b"", length=None):
    """Returns the bytes of a file. header: a dict, or the raw text; length: what the length field says, if not the truth."""
    text = json.dumps(header, separators=(",", ":")).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def one(**overrides):
    """Returns a file with one tensor `w`, F32 [2], whose entry is overridden; a value of None removes the key."""
    fields = {**entry(), **overrides}
    return encode({"w": {key: value for key, value in fields.items() if value is not None}}, bytes(8))


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes
    says: tuple  # texts that the error message must contain
    field: str | None = None  # the tensor at fault; None = the file


def _two(first, second, data=bytes(16)):
    return encode({"a": entry(offsets=first), "b": entry(offsets=second)}, data)


VALID = encode({"a": entry("BF16", (2, 3), (0, 12)), "b": entry("F32", (1,), (12, 16))}, bytes(range(16)))
_HEADER_END = len(VALID) - 16


def _truncated():
    """Returns VALID cut at every kind of place: in the length, in the header, at the seam, in each tensor, before the end."""
    size = len(VALID)
    for cut in (1, 7):
        yield Case(f"cut_in_length_{cut}", VALID[:cut], ("truncated", f"{cut} bytes", "takes 8"))
    for cut in (8, 9, _HEADER_END // 2, _HEADER_END - 1):
        yield Case(f"cut_in_header_{cut}", VALID[:cut], ("truncated", f"takes {_HEADER_END} bytes", f"has {cut}"))
    for left in (0, 1, 11, 12, 15):
        cut = size - 16 + left
        says = ("truncated", "16 bytes of data", f"has {left} ", f"({cut} in all)")
        yield Case(f"cut_in_data_{left}", VALID[:cut], says)


def _lengths():
    text = b'{"w":{}}'
    yield Case("length_zero", encode(b"", length=0), ("must start with '{'",))
    yield Case("length_one_too_many", encode(text, length=len(text) + 1), ("truncated", "takes 17", "has 16"))
    yield Case("length_cuts_the_json", encode(text, length=len(text) - 1), ("not valid JSON",))
    at_limit = encode(text, length=HEADER_LIMIT)
    yield Case("length_at_limit", at_limit, ("truncated", f"takes {HEADER_LIMIT + 8}", "has 16"))
    for name, length in [
        ("over_limit", HEADER_LIMIT + 1),
        ("int64_max", INT64_MAX),
        ("int64_min", 2**63),
        ("minus_one", 2**64 - 1),  # a signed -1: adding 8 to it would wrap to 7
        ("minus_eight", 2**64 - 8),
    ]:
        says = (f"header of {length} bytes", f"limit of {HEADER_LIMIT}")
        yield Case(f"length_{name}", encode(text, length=length), says)


def _json():
    def bad(name, text, *says, data=b""):
        return Case(f"json_{name}", encode(text, data), says)

    good = json.dumps({"w": entry()}).encode()
    yield bad("not_json", b"{hello}", "not valid JSON at byte 2")
    yield bad("unclosed", good[:-1], "not valid JSON")
    yield bad("two_values", good + b"{}", "not valid JSON", data=bytes(8))
    yield bad("comment", b'{/* "w" */}', "not valid JSON")
    yield bad("trailing_comma", b'{"__metadata__":{},}', "not valid JSON")
    yield bad("single_quotes", b"{'w': 1}", "not valid JSON")
    yield bad("nan", b'{"w": NaN}', "not valid JSON")
    yield bad("huge_number", b'{"w": 1e999}', "number overflow")
    yield bad("nul_padding", good + b"\0\0", "not valid JSON", "NUL", data=bytes(8))
    yield bad("hidden_after_nul", b"{}\0" + good, "not valid JSON at byte 3", data=bytes(8))
    yield bad("utf8_lone_byte", b'{"\xff":{}}', "not valid JSON", "UTF-8", "\\xff")
    yield bad("utf8_overlong", b'{"\xc0\xaf":{}}', "not valid JSON", "UTF-8")
    yield bad("utf8_surrogate", b'{"\xed\xa0\x80":{}}', "not valid JSON", "UTF-8")
    yield bad("escaped_surrogate", b'{"\\ud800":{}}', "not valid JSON", "surrogate")
    yield bad("utf16", '{"w":1}'.encode("utf-16-le"), "not valid JSON")
    yield bad("list", b"[]", "must start with '{'")
    yield bad("string", b'"w"', "must start with '{'")
    yield bad("null", b"null", "must start with '{'")
    yield bad("leading_space", b" " + good, "must start with '{'", data=bytes(8))
    yield bad("byte_order_mark", b"\xef\xbb\xbf" + good, "must start with '{'", data=bytes(8))
    yield bad("deep_lists", b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper than 64")
    yield bad("deep_objects", b'{"w":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper than 64")
    entry_text = json.dumps(entry()).encode()
    yield bad("duplicate_tensor", b'{"w":%b,"v":1,"w":%b}' % (entry_text, entry_text), 'key "w" appears twice')
    yield bad("duplicate_tensor_escaped", b'{"w":%b,"\\u0077":%b}' % (entry_text, entry_text), 'key "w" appears twice')
    yield bad("duplicate_metadata", b'{"__metadata__":{},"__metadata__":{}}', 'key "__metadata__" appears twice')
    yield bad("duplicate_field", b'{"w":{"dtype":"F32","dtype":"F32"}}', 'key "dtype" appears twice in "w"')
    yield bad("terminal_escape", b'{"\x1b[31m":1}', "not valid JSON")
    yield bad("metadata_list", b'{"__metadata__":[]}', "__metadata__", "expected an object, got a list of 0")
    yield bad("metadata_number", b'{"__metadata__":{"format":1}}', "__metadata__", '"format"', "got the number 1")


def _entries():
    def bad(name, data, *says, field="w"):
        return Case(name, data, says, field)

    for name, value in [("null", None), ("list", []), ("number", 1), ("string", "F32")]:
        yield bad(f"entry_{name}", encode({"w": value}), 'tensor "w"', "expected an object")
    yield bad("entry_empty", encode({"w": {}}), "dtype is missing")

    yield bad("dtype_missing", one(dtype=None), "dtype is missing")
    yield bad("dtype_number", one(dtype=32), "dtype: expected a string, got the number 32")
    for name in ("", "f32", "F31", "FLOAT32", "F32 ", "BF16\0", "Q4_0"):
        yield bad(f"dtype_unknown_{name!r}", one(dtype=name), "unknown dtype")

    yield bad("shape_missing", one(shape=None), "shape is missing")
    yield bad("shape_object", one(shape={}), "shape: expected a list", "got an object")
    yield bad("shape_number", one(shape=2), "shape: expected a list", "got the number 2")
    for name, dim, got in [
        ("negative", -2, "got the number -2"),
        ("int64_min", -(2**63), "got the number -9223372036854775808"),
        ("float", 2.0, "got the number 2"),
        ("fraction", 1.5, "got the number 1.5"),
        ("string", "2", 'got the string "2"'),
        ("null", None, "got null"),
        ("bool", True, "got true"),
        ("list", [2], "got a list of 1"),
        ("uint64", 2**63, "got the number 9.22337e+18"),
        ("beyond_uint64", 2**70, "got the number 1.18059e+21"),
    ]:
        yield bad(f"shape_{name}", one(shape=[dim]), "shape: expected integers", got)
    yield bad("shape_too_large", one(shape=[3]), "shape [3] of F32 needs 12 bytes", "[0, 8] span 8")
    yield bad("shape_too_small", one(shape=[1]), "shape [1] of F32 needs 4 bytes", "span 8")
    yield bad("shape_scalar", one(shape=[]), "shape [] of F32 needs 4 bytes", "span 8")
    yield bad("shape_no_elements", one(shape=[0]), "needs 0 bytes", "span 8")
    yield bad("shape_other_dtype", one(dtype="F16"), "shape [2] of F16 needs 4 bytes", "span 8")
    # Each of these wraps to a small or matching number in 64-bit arithmetic that is not checked.
    yield bad("shape_bytes_overflow", one(shape=[2**61]), "shape [2305843009213693952] overflows")
    yield bad("shape_product_overflow", one(shape=[2**32, 2**32]), "overflows")
    yield bad("shape_product_wraps_to_two", one(shape=[2**62 + 1, 4, 2]), "overflows")
    yield bad("shape_overflow_then_zero", one(shape=[2**62, 2**62, 0], data_offsets=[0, 0]), "overflows")
    yield bad("shape_half_byte", encode({"w": entry("F4", (3,), (0, 2))}, bytes(2)), "not a whole number of bytes")

    yield bad("offsets_missing", one(data_offsets=None), "data_offsets is missing")
    yield bad("offsets_string", one(data_offsets="0,8"), "data_offsets: expected a list")
    for name, offsets in [("none", []), ("one", [0]), ("three", [0, 8, 16])]:
        yield bad(f"offsets_{name}", one(data_offsets=offsets), "expected two data_offsets", f"got {len(offsets)}")
    yield bad("offsets_negative", one(data_offsets=[-8, 0]), "data_offsets: expected integers", "got the number -8")
    yield bad("offsets_float", one(data_offsets=[0, 8.0]), "data_offsets: expected integers")
    yield bad("offsets_uint64_max", one(data_offsets=[0, 2**64 - 1]), "data_offsets: expected integers")
    yield bad("offsets_reversed", one(data_offsets=[8, 0]), "[8, 0] end before they begin")
    yield bad("offsets_far", one(data_offsets=[INT64_MAX - 8, INT64_MAX]), "hole", f"begins at byte {INT64_MAX - 8}")


def _layout():
    def bad(name, data, *says, field=None):
        return Case(name, data, says, field)

    yield bad("overlap_by_one", _two((0, 8), (7, 15)), 'tensor "b"', "overlaps", "byte 7", "at 8", field="b")
    yield bad("overlap_same", _two((0, 8), (0, 8)), "overlaps", field="b")
    empty_inside = {"a": entry(offsets=(0, 8)), "b": entry(shape=(0,), offsets=(4, 4))}
    yield bad("overlap_empty_inside", encode(empty_inside, bytes(8)), "overlaps", field="b")
    yield bad("hole_first", one(data_offsets=[4, 12]), "leaves a hole", "byte 4", "at 0", field="w")
    yield bad("hole_between", _two((0, 8), (9, 17), bytes(17)), "leaves a hole", "byte 9", "at 8", field="b")
    empty_after = {"a": entry(offsets=(0, 8)), "b": entry(shape=(0,), offsets=(9, 9))}
    yield bad("hole_before_empty", encode(empty_after, bytes(9)), "leaves a hole", field="b")
    yield bad("data_missing", encode({"w": entry()}), "truncated", "8 bytes of data", "has 0")
    huge = INT64_MAX // 8
    huge_data = encode({"w": entry("U8", (huge,), (0, huge))}, bytes(8))
    yield bad("data_huge", huge_data, "truncated", f"{huge} bytes of data", "has 8")
    yield bad("trailing_byte", VALID + b"\0", "1 bytes after the last tensor", "describes 16", "has 17")
    yield bad("trailing_without_tensors", encode({}, bytes(5)), "5 bytes after the last tensor")


CASES = [
    Case("empty_file", b"", ("the file is empty",)),
    Case("git_lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ("git-lfs", "pull")),
    Case("pytorch_zip_archive", b"PK\x03\x04\x00\x00\x08\x08" + bytes(100), ("is this a safetensors file?",)),
    Case("text_file", b"This is not a checkpoint.\n", ("is this a safetensors file?",)),
    *_truncated(),
    *_lengths(),
    *_json(),
    *_entries(),
    *_layout(),
]


@dataclass(frozen=True)
class Legal:
    name: str
    data: bytes
    tensors: dict  # name -> (dtype, shape, bytes)


_W = {"w": ("F32", (2,), bytes(range(8)))}
_DATA = bytes(range(8))

LEGAL = [
    Legal("plain", encode({"w": entry()}, _DATA), _W),
    Legal("no_tensors", encode({}), {}),
    Legal("metadata", encode({"__metadata__": {"format": "pt"}, "w": entry()}, _DATA), _W),
    Legal("metadata_null", encode({"__metadata__": None, "w": entry()}, _DATA), _W),
    Legal("trailing_spaces", encode(json.dumps({"w": entry()}).encode() + b" " * 100, _DATA), _W),
    Legal("trailing_newline", encode(json.dumps({"w": entry()}).encode() + b"\n", _DATA), _W),
    Legal("indented_header", encode(json.dumps({"w": entry()}, indent=2).encode(), _DATA), _W),
    Legal("unknown_field", encode({"w": entry(quantised=False)}, _DATA), _W),
    Legal("scalar", encode({"w": entry("F64", (), (0, 8))}, _DATA), {"w": ("F64", (), _DATA)}),
    Legal("empty_name", encode({"": entry()}, _DATA), {"": _W["w"]}),
    Legal("unicode_name", encode({"gewichtung.\u00e4\u4e2d": entry()}, _DATA), {"gewichtung.\u00e4\u4e2d": _W["w"]}),
    Legal("control_character_name", encode({"a\x00\x1b[31m": entry()}, _DATA), {"a\x00\x1b[31m": _W["w"]}),
    Legal(
        "zero_size_everywhere",
        encode(
            {
                "first": entry(shape=(0,), offsets=(0, 0)),
                "last": entry(shape=(4, 0), offsets=(8, 8)),
                "huge": entry(shape=(0, INT64_MAX, INT64_MAX), offsets=(8, 8)),
                "w": entry(),
            },
            _DATA,
        ),
        {
            "first": ("F32", (0,), b""),
            "last": ("F32", (4, 0), b""),
            "huge": ("F32", (0, INT64_MAX, INT64_MAX), b""),
            **_W,
        },
    ),
    Legal(
        "unaligned",
        encode({"u8": entry("U8", (1,), (0, 1)), "w": entry(offsets=(1, 9))}, b"\xaa" + _DATA),
        {"u8": ("U8", (1,), b"\xaa"), **_W},
    ),
    Legal(
        "header_order_is_not_data_order",
        encode({"b": entry("U8", (3,), (5, 8)), "a": entry("U8", (5,), (0, 5))}, _DATA),
        {"a": ("U8", (5,), _DATA[:5]), "b": ("U8", (3,), _DATA[5:])},
    ),
    Legal("sub_byte", encode({"w": entry("F4", (2, 4), (0, 4))}, _DATA[:4]), {"w": ("F4", (2, 4), _DATA[:4])}),
    Legal("six_bit", encode({"w": entry("F6_E2M3", (4,), (0, 3))}, _DATA[:3]), {"w": ("F6_E2M3", (4,), _DATA[:3])}),
]
