"""Pickles of plain containers and NumPy arrays, read by a machine that calls nothing the file names.

The machine knows the opcodes of protocols 0 to 5 (the comments of CPython's pickletools; PEP 307, 3154, 574)
and acts out the few globals that arrays are made of (admitted.py): there is no import, no call, and no
allocation that the size of the file does not bound. Arrays of protocol 3 and later are views into the file.
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from parbake.errors import LegacyFileError
from parbake.producers.legacy.admitted import MAKERS, Global, Unbuilt, admitted, checked_key, refusal

Buffer: TypeAlias = Any  # bytes or mmap: sliced, sought with find()


_MARK = object()


def unpickled(data: Buffer, where: object) -> Any:
    """The value that the one pickle in ``data`` holds: containers, numbers, texts, arrays, Opaque.

    Raises LegacyFileError, which begins with ``where``: for whatever else the pickle names, for damage, and
    for bytes after its end.
    """
    machine = _Machine(data)
    try:
        value = machine.run()
    except LegacyFileError as error:
        raise LegacyFileError(f"{where}: {error}") from None
    except (
        *(ArithmeticError, AttributeError, LookupError, MemoryError, SyntaxError),
        *(TypeError, ValueError, RecursionError, struct.error),
    ):
        raise LegacyFileError(
            f"{where}: no pickle, or a damaged one (at byte {machine.position:,} of {len(data):,}); "
            "write it again"
        ) from None
    if machine.position != len(data):
        raise LegacyFileError(
            f"{where}: {len(data) - machine.position:,} bytes follow the pickle's end; several pickles in a "
            "file are not read: write one list of all samples"
        )
    return value


class _Machine:
    """One run through a pickle. ``position``: the byte to read next."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._view = memoryview(data)
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0  # characters and items that calls made copies of
        self.position = 0

    def run(self) -> Any:
        steps = {code: getattr(self, name) for code, name in _STEPS.items()}
        for code, value in _CONSTANTS.items():
            steps[code] = lambda make=value: self._stack.append(make())
        view, stop = self._view, b"."[0]
        while (code := view[self.position]) != stop:
            self.position += 1
            step = steps.get(code)
            if step is None:
                raise LegacyFileError(_NOT_DATA.get(code) or f"no pickle (opcode {code:#04x})")
            step()
        self.position += 1
        [value] = self._stack
        return _settled(value)

    # ---- what the file says next

    def _bytes(self, count: int) -> memoryview:
        start, stop = self.position, self.position + count
        if not start <= stop <= len(self._view):
            raise LegacyFileError(f"{count:,} bytes are declared where {len(self._view) - start:,} are left")
        self.position = stop
        return self._view[start:stop]

    def _unsigned(self, nbytes: int) -> int:
        return int.from_bytes(self._bytes(nbytes), "little")

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self.position)
        if end < 0:
            raise ValueError("no line")
        line = bytes(self._view[self.position : end])
        self.position = end + 1
        return line

    def _since_mark(self) -> list[Any]:
        start = len(self._stack) - 1
        while self._stack[start] is not _MARK:  # an IndexError ends a stack without one
            start -= 1
            if start < 0:
                raise IndexError("no mark")
        items = self._stack[start + 1 :]
        del self._stack[start:]
        return items

    # ---- numbers, texts and bytes

    def _proto(self) -> None:
        if self._unsigned(1) > 5:
            raise LegacyFileError("a pickle of a protocol above 5; write it with protocol=5")

    def _frame(self) -> None:
        self._bytes(8)  # frames are for readers of streams

    def _int(self) -> None:
        line = self._line()
        self._stack.append(line == b"01" if line in (b"00", b"01") else int(line))  # protocol 0's bool

    def _binint(self) -> None:
        self._stack.append(int.from_bytes(self._bytes(4), "little", signed=True))

    def _binint1(self) -> None:
        self._stack.append(self._unsigned(1))

    def _binint2(self) -> None:
        self._stack.append(self._unsigned(2))

    def _long(self) -> None:
        self._stack.append(int(self._line().rstrip(b"L")))

    def _long1(self) -> None:
        self._stack.append(int.from_bytes(self._bytes(self._unsigned(1)), "little", signed=True))

    def _long4(self) -> None:
        self._stack.append(int.from_bytes(self._bytes(self._unsigned(4)), "little", signed=True))

    def _float(self) -> None:
        self._stack.append(float(self._line()))

    def _binfloat(self) -> None:
        self._stack.append(struct.unpack(">d", self._bytes(8))[0])

    def _string(self) -> None:  # Python 2's str, whose bytes are an array's
        line = self._line()
        if len(line) < 2 or line[:1] not in (b"'", b'"'):
            raise ValueError("no text")
        text = ast.literal_eval(f"b{line.decode('ascii')}")
        if not isinstance(text, bytes):
            raise TypeError("no text")
        self._stack.append(text.decode("latin-1"))

    def _binstring(self) -> None:
        self._stack.append(str(self._bytes(self._unsigned(4)), "latin-1"))

    def _short_binstring(self) -> None:
        self._stack.append(str(self._bytes(self._unsigned(1)), "latin-1"))

    def _unicode(self) -> None:
        self._stack.append(self._line().decode("raw-unicode-escape"))

    def _text(self, count: int) -> None:
        self._stack.append(str(self._bytes(count), "utf-8", "surrogatepass"))

    def _binunicode(self) -> None:
        self._text(self._unsigned(4))

    def _short_binunicode(self) -> None:
        self._text(self._unsigned(1))

    def _binunicode8(self) -> None:
        self._text(self._unsigned(8))

    def _binbytes(self) -> None:
        self._stack.append(self._bytes(self._unsigned(4)))

    def _short_binbytes(self) -> None:
        self._stack.append(self._bytes(self._unsigned(1)))

    def _binbytes8(self) -> None:
        self._stack.append(self._bytes(self._unsigned(8)))

    # ---- containers

    def _mark(self) -> None:
        self._stack.append(_MARK)

    def _pop(self) -> None:
        self._stack.pop()

    def _pop_mark(self) -> None:
        self._since_mark()

    def _dup(self) -> None:
        self._stack.append(self._stack[-1])

    def _list(self) -> None:
        self._stack.append([_settled(item) for item in self._since_mark()])

    def _append(self) -> None:
        self._appended([self._stack.pop()])

    def _appends(self) -> None:
        self._appended(self._since_mark())

    def _appended(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError("no list")
        self._stack[-1] += [_settled(item) for item in items]

    def _tuple(self) -> None:
        self._stack.append(tuple(map(_settled, self._since_mark())))

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError("no items")
        items = tuple(map(_settled, self._stack[-count:]))
        self._stack[-count:] = [items]

    def _tuple1(self) -> None:
        self._tuple_of(1)

    def _tuple2(self) -> None:
        self._tuple_of(2)

    def _tuple3(self) -> None:
        self._tuple_of(3)

    def _dict(self) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._set(items)

    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _setitems(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise TypeError("no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = _settled(value)

    # ---- the memo

    def _noted(self, number: int) -> None:
        value = self._memo[number] = self._stack[-1]
        if type(value) is Unbuilt:
            value.memo.append(number)

    def _memoize(self) -> None:
        self._noted(len(self._memo))

    def _put(self) -> None:
        self._noted(int(self._line()))

    def _binput(self) -> None:
        self._noted(self._unsigned(1))

    def _long_binput(self) -> None:
        self._noted(self._unsigned(4))

    def _get(self) -> None:
        self._stack.append(self._memo[int(self._line())])

    def _binget(self) -> None:
        self._stack.append(self._memo[self._unsigned(1)])

    def _long_binget(self) -> None:
        self._stack.append(self._memo[self._unsigned(4)])

    # ---- what code would be called for

    def _global(self) -> None:
        module, name = self._line().decode(), self._line().decode()
        self._stack.append(admitted(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (type(name) is str and type(module) is str):
            raise TypeError("no name")
        self._stack.append(admitted(module, name))

    def _inst(self) -> None:
        self._global()
        raise TypeError("what is admitted has no instances")

    def _reduce(self) -> None:
        arguments, made_by = self._stack.pop(), self._stack.pop()
        if type(made_by) is not Global or type(arguments) is not tuple:
            raise TypeError("no call")
        maker = MAKERS.get(made_by.name)
        if maker is None:
            raise LegacyFileError(refusal(made_by.name))
        self._charge(arguments)
        self._stack.append(maker(*arguments))

    def _build(self) -> None:
        state, unbuilt = self._stack.pop(), self._stack.pop()
        if type(unbuilt) is not Unbuilt:
            raise LegacyFileError("sets the state of something that is neither an array nor a dtype")
        self._charge(state)
        built = unbuilt.build(state)
        for number in unbuilt.memo:
            self._memo[number] = built
        self._stack.append(built)

    def _charge(self, arguments: Any) -> None:
        """Refuse a file that has its texts copied again and again, from the memo."""
        self._copied += sum(len(item) for item in arguments if isinstance(item, str | list))
        if self._copied > 2 * len(self._view):
            raise LegacyFileError("makes more of its texts than it holds; it was not written by pickle")


def _settled(value: Any) -> Any:
    """``value`` as it may lie in a container."""
    if type(value) is Unbuilt:
        return value.value
    if value is _MARK:
        raise TypeError("a mark is no value")
    return value


_CONSTANTS: Mapping[int, Callable[[], Any]] = {
    ord("N"): lambda: None,
    0x88: lambda: True,
    0x89: lambda: False,
    ord("]"): list,
    ord(")"): tuple,
    ord("}"): dict,
}
_STEPS: Mapping[int, str] = {
    **{0x80: "_proto", 0x95: "_frame", ord("("): "_mark", ord("0"): "_pop", ord("1"): "_pop_mark"},
    **{ord("2"): "_dup", ord("I"): "_int", ord("J"): "_binint", ord("K"): "_binint1", ord("M"): "_binint2"},
    **{ord("L"): "_long", 0x8A: "_long1", 0x8B: "_long4", ord("F"): "_float", ord("G"): "_binfloat"},
    **{ord("S"): "_string", ord("T"): "_binstring", ord("U"): "_short_binstring", ord("V"): "_unicode"},
    **{ord("X"): "_binunicode", 0x8C: "_short_binunicode", 0x8D: "_binunicode8", ord("B"): "_binbytes"},
    **{ord("C"): "_short_binbytes", 0x8E: "_binbytes8", 0x96: "_binbytes8", ord("l"): "_list"},
    **{ord("a"): "_append", ord("e"): "_appends", ord("t"): "_tuple", 0x85: "_tuple1", 0x86: "_tuple2"},
    **{0x87: "_tuple3", ord("d"): "_dict", ord("s"): "_setitem", ord("u"): "_setitems", 0x94: "_memoize"},
    **{
        ord("p"): "_put",
        ord("q"): "_binput",
        ord("r"): "_long_binput",
        ord("g"): "_get",
        ord("h"): "_binget",
    },
    **{ord("j"): "_long_binget", ord("c"): "_global", 0x93: "_stack_global", ord("R"): "_reduce"},
    **{ord("b"): "_build", ord("i"): "_inst"},
}
_CLASS = "holds an object of a class, which is code, not data; save lists and dicts of arrays"
_EXTENSION = "holds a registered extension, which is code, not data; save lists and dicts of arrays"
_ELSEWHERE = "holds a reference to something outside the file; pickle the arrays into it"
_SET = "holds a set, which has no order of samples; save a list"
_NOT_DATA: Mapping[int, str] = {
    **dict.fromkeys((ord("o"), 0x81, 0x92), _CLASS),
    **dict.fromkeys((0x82, 0x83, 0x84), _EXTENSION),
    **dict.fromkeys((ord("P"), ord("Q"), 0x97, 0x98), _ELSEWHERE),
    **dict.fromkeys((0x8F, 0x90, 0x91), _SET),
}
