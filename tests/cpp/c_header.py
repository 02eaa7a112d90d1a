"""Reads lynx_rt.h as another language's binding would: structs, enums and functions, as ctypes types."""

import ctypes
import re
from pathlib import Path

SCALARS = {
    "int": ctypes.c_int,
    "int16_t": ctypes.c_int16,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


class Header:
    """structs: name -> [(field, C type)]; enums: name -> {enumerator: value}; functions: the names declared."""

    def __init__(self, path: Path) -> None:
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        self.functions = re.findall(r"LYNX_RT_API [^;(]*?(\w+)\(", text)
        self.callbacks = set(re.findall(r"typedef \w+ \(\*(\w+)\)", text))
        self.enums = {
            name: {key: int(value) for key, value in re.findall(r"(\w+) = (\d+)", body)}
            for name, body in re.findall(r"typedef enum (\w+) \{(.*?)\}", text, flags=re.DOTALL)
        }
        self.structs = {
            name: [(field, kind.strip()) for kind, field in re.findall(r"([\w* ]+?)\b(\w+);", body)]
            for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\}", text, flags=re.DOTALL)
        }

    def ctypes(self) -> dict[str, type[ctypes.Structure]]:
        """Returns a ctypes.Structure per struct. Function pointers and opaque pointers are c_void_p."""
        made: dict[str, type[ctypes.Structure]] = {}

        def to_ctype(kind: str) -> type:
            base = kind.replace("const", "").replace("*", "").strip()
            stars = kind.count("*")
            if base in self.callbacks or base == "void":
                return ctypes.c_void_p
            if base == "char":
                return ctypes.c_char_p
            out = made.get(base) or SCALARS.get(base) or ctypes.c_int
            assert base in made or base in SCALARS or base in self.enums, kind
            for _ in range(stars):
                out = ctypes.POINTER(out)
            return out

        for name, fields in self.structs.items():
            members = {"_fields_": [(field, to_ctype(kind)) for field, kind in fields]}
            made[name] = type(name, (ctypes.Structure,), members)
        return made

    def layout_program(self) -> str:
        """Returns C or C++ code that prints "STRUCT SIZE", "STRUCT.FIELD OFFSET" and "ENUMERATOR VALUE" lines."""
        lines = ["#include <lynx_rt/lynx_rt.h>", "#include <stddef.h>", "#include <stdio.h>", "int main(void) {"]
        for name, fields in self.structs.items():
            lines.append(f'  printf("{name} %d\\n", (int)sizeof({name}));')
            lines += [f'  printf("{name}.{field} %d\\n", (int)offsetof({name}, {field}));' for field, _ in fields]
        lines += [f'  printf("{key} %d\\n", (int){key});' for keys in self.enums.values() for key in keys]
        return "\n".join([*lines, "  return 0;", "}", ""])
