"""Both sides of an examination (exam.py), each within its own sandbox; nothing imports this.

    calls.py answer CALLS RESULTS     beside the program: calls its functions, says what they gave
    calls.py ask CALLS RESULTS        runs tests, for which the program's names are remote ones

A line of JSON goes one way, a line the other. What a program answers is data and nothing else: no
object of its own, and so no comparison of its own, is ever where the tests are.
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
# They end loops and generators of the tests without a word.
_NEVER_RAISED = (StopIteration, StopAsyncIteration, GeneratorExit)


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Data as JSON; of what is none the number that `keep` gives it."""
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
    """The data again, and what `of` gives for the number of an object."""
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
    """Serve the program's functions until nobody asks any more."""
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

    program = types.ModuleType("program")  # not __main__, whose own examples are not asked for
    sys.modules["program"] = program
    with os.fdopen(results, "w", encoding="utf-8") as out:
        with open("/program.py", "rb") as file:
            source = file.read()
        first = said(lambda: exec(compile(source, "/program.py", "exec"), program.__dict__))
        for reply in itertools.chain([first], map(served, os.fdopen(calls, encoding="utf-8"))):
            out.write(reply + "\n")
            out.flush()


class Program:
    """The side of the tests. last: the call that was answered last, as it is written."""

    def __init__(self, calls: int, results: int) -> None:
        self._out = os.fdopen(calls, "w", encoding="utf-8")
        self._in = os.fdopen(results, encoding="utf-8", errors="replace")
        self.last = ""

    def reply(self, name: str = "object") -> Any:
        """The program's next answer; an object in it is called `name`."""
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
        """An attribute of an object, or of the program; without a name what calling it gives.

        What ends loops is an error, or `all(map(…))` would take it for the end of what it checks.
        """
        try:
            return self.step(of, name, arguments, keywords)
        except StopIteration:
            raise RuntimeError("StopIteration") from None

    def step(self, of: int | None, name: str | None, arguments: Any, keywords: Any) -> Any:
        """As `ask`; StopIteration where the program raises that."""
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
    """An object of the program: a function, a class, an instance. Only data comes from it."""

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
    """Of an object of the program; the tests' own have none."""
    if isinstance(value, Remote):
        return value._number
    raise TypeError(f"a {type(value).__name__} cannot be given to a program; valid: data")


def _error(name: str, message: str) -> Exception:
    """The error of that name; another one where Python has none, or it would go unnoticed."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in _NEVER_RAISED:
        try:
            return kind(message)
        except TypeError:  # it is made from more than a message
            pass
    return RuntimeError(f"{name}: {message}")


def ask(calls: int, results: int) -> None:
    """Run the tests of standard input; the last line is what came of them, with its token."""
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
                continue  # the test that uses it says so
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
