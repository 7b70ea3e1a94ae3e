"""Both sides of an examination (exam.py), each run in its own sandbox; no module imports this.

    calls.py answer CALLS RESULTS     beside the program: calls its functions, returns results
    calls.py ask CALLS RESULTS        runs tests, in which the program's names are remote objects

Each call is a line of JSON, each result another. The program's results are data only: none of its
objects, and so none of its own comparisons, ever reaches the side of the tests.
"""

import builtins
import itertools
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

_LONGEST_LINE = 4 << 20
_CONTAINERS: dict[str, Any] = {
    "tuple": tuple,
    "list": list,
    "set": set,
    "frozenset": frozenset,
}
# They would silently end loops and generators of the tests.
_NEVER_RAISED = (StopIteration, StopAsyncIteration, GeneratorExit)


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Data as JSON; any other value as the number that `keep` gives it."""
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    for name, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [encode(one, keep) for one in value]}
    return {"object": keep(value)}


def decode(value: Any, of: Callable[[int], Any]) -> Any:
    """The data again; for an object, the result of `of` with its number."""
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == "object":
        return of(int(content))
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "complex":
        return complex(*content)
    if name == "dict":
        return {decode(k, of): decode(v, of) for k, v in content}
    return _CONTAINERS[name](decode(one, of) for one in content)


def answer(calls: int, results: int) -> None:
    """Serve calls to the program's functions until the other side closes."""
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    def asked(request: Any) -> Any:
        of: Any = objects[request["of"]] if request["of"] is not None else program
        if request["name"] is not None:
            return getattr(of, request["name"])
        arguments = decode(request["arguments"], objects.__getitem__)
        keywords = decode(request["keywords"], objects.__getitem__)
        return of(*arguments, **keywords)

    def said(what: Callable[[], Any]) -> str:
        try:
            return json.dumps({"value": encode(what(), keep)})
        except StopIteration:
            return json.dumps({"stop": True})
        except BaseException as error:  # sys.exit, too
            return json.dumps({"error": [type(error).__name__, str(error)[:300]]})

    def served(line: str) -> str:
        return said(lambda: asked(json.loads(line)))

    program = types.ModuleType("program")  # not __main__, so that its main part does not run
    sys.modules["program"] = program
    with os.fdopen(results, "w", encoding="utf-8") as out:
        with open("/program.py", "rb") as file:
            source = file.read()
        first = said(lambda: exec(compile(source, "/program.py", "exec"), program.__dict__))
        for reply in itertools.chain([first], map(served, os.fdopen(calls, encoding="utf-8"))):
            out.write(reply + "\n")
            out.flush()


class Program:
    """The program as the tests see it. last: the last answered call, as text."""

    def __init__(self, calls: int, results: int) -> None:
        self._out = os.fdopen(calls, "w", encoding="utf-8")
        self._in = os.fdopen(results, encoding="utf-8", errors="replace")
        self.last = ""

    def reply(self, name: str = "object") -> Any:
        """The program's next result; an object in it is shown as `name`."""
        line = self._in.readline(_LONGEST_LINE)
        if not line.endswith("\n"):
            raise EOFError(
                "the program ended" if len(line) < _LONGEST_LINE else "a result too long"
            )
        said = json.loads(line)
        if said.get("stop"):
            raise StopIteration
        if "error" in said:
            raise _error(*map(str, said["error"]))
        return decode(said["value"], lambda number: Remote(self, number, name))

    def ask(
        self, of: int | None, name: str | None, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """An attribute of an object, or of the program; without a name, the result of calling it.

        StopIteration becomes a RuntimeError, or `all(map(…))` would take it for the end of its
        input.
        """
        try:
            return self.step(of, name, arguments, keywords)
        except StopIteration:
            raise RuntimeError("StopIteration") from None

    def step(self, of: int | None, name: str | None, arguments: Any, keywords: Any) -> Any:
        """As `ask`; StopIteration where the program raises it."""
        request = {
            "of": of,
            "name": name,
            "arguments": encode(list(arguments), _number),
            "keywords": encode(keywords or {}, _number),
        }
        try:
            self._out.write(json.dumps(request) + "\n")
            self._out.flush()
        except OSError:
            raise EOFError("the program ended") from None
        return self.reply(name or "object")


class Remote:
    """A function, class or instance of the program. Its results are data or such objects."""

    def __init__(self, program: Program, number: int, name: str) -> None:
        self._program, self._number, self._name = program, number, name

    def __getattr__(self, name: str) -> Any:
        return self._program.ask(self._number, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        words = [*map(repr, arguments), *(f"{k}={v!r}" for k, v in keywords.items())]
        call = self._program.last = f"{self._name}({', '.join(words):.100})"
        value = self._program.ask(self._number, None, arguments, keywords)
        self._program.last = f"{call} gave {value!r:.100}"
        return value

    def __iter__(self) -> Iterator[Any]:
        step = self.__getattr__("__iter__")().__getattr__("__next__")
        while True:
            try:
                value = self._program.step(step._number, None, (), None)
            except StopIteration:
                return
            yield value

    def __len__(self) -> int:
        try:
            return int(self.__getattr__("__len__")())
        except AttributeError:
            raise TypeError(f"{self!r} has no length") from None

    def __getitem__(self, key: Any) -> Any:
        return self.__getattr__("__getitem__")(key)

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} is no data and has no truth")

    def __eq__(self, other: object) -> bool:
        raise TypeError(f"{self!r} is no data and equals nothing")

    def __str__(self) -> str:
        return str(self.__getattr__("__str__")())

    def __repr__(self) -> str:
        return f"<{self._name} of the program>"


def _number(value: Any) -> int:
    """The number of a program's object; TypeError for the tests' own objects."""
    if isinstance(value, Remote):
        return value._number
    raise TypeError(f"a {type(value).__name__} cannot be given to a program; valid: data")


def _error(name: str, message: str) -> Exception:
    """The exception of that name; another one if Python has none, or it would go unnoticed."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in _NEVER_RAISED:
        try:
            return kind(message)
        except TypeError:  # it needs more than a message
            pass
    return RuntimeError(f"{name}: {message}")


def ask(calls: int, results: int) -> None:
    """Run the tests of standard input; the last line printed is the result, with the token."""
    told = json.loads(sys.stdin.read())
    program = Program(calls, results)
    number, is_ready, reason = 0, False, ""
    try:
        program.reply()
        is_ready, namespace = True, {"__name__": "tests"}
        for name in told["names"]:
            try:
                namespace[name] = program.ask(None, name)
            except AttributeError:
                continue  # the test that uses it reports it
        for number, text in enumerate(told["tests"], 1):
            exec(compile(text, f"test {number}", "exec"), namespace)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    report = {"is_ready": is_ready, "test": number, "reason": reason, "last": program.last}
    print("\n" + json.dumps({"token": told["token"], **report}), flush=True)


if __name__ == "__main__":
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)  # a number may have any length
    {"answer": answer, "ask": ask}[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
