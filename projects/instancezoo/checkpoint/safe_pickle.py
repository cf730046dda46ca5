"""Unpickling that only records: a pickle's calls are kept with their arguments, none is made.

A pickle is a small program: it looks up globals by name and calls them. Here no name is ever
looked up. The names that arrays and tensors need are replaced by objects that record the call,
which `content.py` builds later; the name of any other class is replaced by an empty class of the
same name that keeps nothing, and calling it is an error.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

# Values, not calls with an effect; training scripts save them in a file's metadata.
_HARMLESS_CALLS = frozenset(
    f"{module}.{name}"
    for module in ("pathlib", "pathlib._local")
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
) | {"datetime.datetime", "datetime.date", "datetime.timedelta"}
# A tensor takes seven objects in more than 100 bytes. An object takes up to 216 bytes of memory.
_MAX_OBJECTS = 4_000_000
_SMALLEST_OBJECT = 4  # bytes in a file, on average
_ALLOWANCE = 100_000  # objects, for small files
_MAX_FOREIGN_NAMES = 10_000


class RefusedGlobal(pickle.UnpicklingError):
    """A pickle names something that is not data."""


class RefusedContent(ValueError):
    """A file's content is not what a checkpoint holds, or takes far more memory than the file.

    Attributes:
        name: key under which the content stands, "" if it has none.
    """

    name = ""


class _Sealed(type):
    """A class that a pickle cannot change: `BUILD` would otherwise set attributes on it."""

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise RefusedGlobal(f"the file changes attribute {name!r} of {cls.__name__}")


class _Uncallable(_Sealed):
    """A class that makes instances only by `__new__`, as pickle's `NEWOBJ` does."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise RefusedGlobal(f"loading the file would run code: it calls {cls.__name__}")


class Foreign(metaclass=_Sealed):
    """The empty stand-in for an instance of any other class, a container's included."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        """Drop what a pickle adds."""

    append = extend


def make_foreign(name: str) -> Callable[..., Foreign]:
    """Make the empty class that replaces the class or function called `name`."""
    metaclass = _Sealed if name in _HARMLESS_CALLS else _Uncallable
    return metaclass(name, (Foreign,), {"__slots__": (), "__module__": __name__})


# Builds the result of a recorded call, given a `content.Resolver`. Returns (value, size in bytes).
Build = Callable[[Any, "Record"], tuple[Any, int]]


class Record:
    """A call that a pickle makes, with its arguments and the state that `BUILD` gives it."""

    __slots__ = ("arguments", "build", "state")

    def __init__(self, build: Build, arguments: Sequence[Any]) -> None:
        self.build, self.arguments, self.state = build, arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Recorder(metaclass=_Sealed):
    """What a pickle finds under a known name: calling it records the call."""

    __slots__ = ("build",)
    build: Build

    def __init__(self, build: Build) -> None:
        object.__setattr__(self, "build", build)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise RefusedGlobal(f"the file changes attribute {name!r} of a function")

    def __call__(self, *args: Any) -> Record:
        return Record(self.build, args)


class Dict(dict[Any, Any]):
    """A dict whose attributes, such as torch's `_metadata`, are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class DictMaker(Recorder):
    """An ordered or counting dict: empty ones are filled later, others hold their items."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args) if args else Dict()


class DefaultDictMaker(Recorder):
    """A `defaultdict`, whose argument is not data."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        return Dict()


class RecordingUnpickler(pickle._Unpickler):
    """Unpickles containers, texts and numbers, and records calls of known names.

    The unpickler in Python, not the one in C: its memo takes no memory for an index that is not
    used, and its steps can be guarded.

    Args:
        file: has `read` and `readline`; `read` must not allocate more than the file holds.
        file_size: of the whole file, in bytes.
        names: "module.name" -> what a pickle finds there.
        refuse_foreign: the names that are neither in `names` nor dropped. Returns the reason or "".
        load_persistent: makes an object of a persistent id; None if the format has none.
    """

    # of the base class, while it loads
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    stack: list[Any]

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(
        self,
        file: Any,
        file_size: int,
        names: Mapping[str, Any],
        refuse_foreign: Callable[[str], str],
        load_persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        # Detectron2's zoo files were written by Python 2
        super().__init__(file, encoding="latin1")
        self._names, self._refuse, self._load = names, refuse_foreign, load_persistent
        self._foreign: dict[str, Any] = {}
        self._objects_left = min(_ALLOWANCE + file_size // _SMALLEST_OBJECT, _MAX_OBJECTS)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self._names:
            return self._names[full]
        if full not in self._foreign:
            if reason := self._refuse(full):
                raise RefusedGlobal(reason)
            if len(self._foreign) >= _MAX_FOREIGN_NAMES:
                raise RefusedContent(f"it names more than {_MAX_FOREIGN_NAMES} classes")
            self._foreign[full] = make_foreign(full)
        return self._foreign[full]

    def persistent_load(self, pid: Any) -> Any:
        if self._load is None:
            raise RefusedContent("it refers to data outside the file")
        return self._load(pid)

    def count_object(self) -> None:
        """Raise `RefusedContent` for far more objects than a checkpoint of this size has."""
        self._objects_left -= 1
        if self._objects_left < 0:
            raise RefusedContent("it holds far more objects than a checkpoint of its size")

    def load_bytearray8(self) -> None:
        """Read before memory is taken, which the standard step does the other way round."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))


def check_key(key: Any) -> None:
    """Refuse nested keys: hashing a tuple of tuples of tuples may take for ever."""
    items = key if type(key) is tuple else (key,)
    if any(isinstance(item, tuple | frozenset) for item in items):
        raise RefusedContent("a key of it is a tuple of tuples")


def _count(step: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(unpickler: RecordingUnpickler) -> None:
        unpickler.count_object()
        step(unpickler)

    return counted


def _check_keys(
    step: Callable[[Any], None], list_keys: Callable[[list[Any]], Iterable[Any]]
) -> Callable[[Any], None]:
    def checked(unpickler: RecordingUnpickler) -> None:
        for key in list_keys(unpickler.stack):
            if type(key) is not str:
                check_key(key)
        step(unpickler)

    return checked


def _guard_steps(dispatch: dict[int, Callable[[Any], None]]) -> None:
    makers = (
        *(pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.MARK, pickle.REDUCE),
        *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.NEWOBJ, pickle.NEWOBJ_EX),
    )
    for opcode in makers:
        dispatch[opcode[0]] = _count(dispatch[opcode[0]])
    keys: dict[bytes, Callable[[list[Any]], Iterable[Any]]] = {
        pickle.SETITEM: lambda stack: stack[-2:-1],
        pickle.SETITEMS: lambda stack: stack[::2],
        pickle.DICT: lambda stack: stack[::2],
        pickle.ADDITEMS: lambda stack: stack,
        pickle.FROZENSET: lambda stack: stack,
    }
    for opcode, list_keys in keys.items():
        dispatch[opcode[0]] = _check_keys(dispatch[opcode[0]], list_keys)
    dispatch[pickle.BYTEARRAY8[0]] = RecordingUnpickler.load_bytearray8


_guard_steps(RecordingUnpickler.dispatch)
