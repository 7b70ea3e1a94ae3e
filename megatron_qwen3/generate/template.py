"""Renders a folder's own chat template as transformers does, in a process of its own.

    template = template_of(folder)  # None where the folder has none
    template.differs()  # from Qwen3's format, whose renderer is chat.py
    template.render([{"messages": […], "tools": […]}], enable_thinking=True)

A template is an untrusted program. transformers runs it in jinja2's ImmutableSandboxedEnvironment,
which keeps files and Python's insides from it, but bounds neither time nor memory: so another
process runs it, this module as a program, with limits on both and on the text that comes back.
Rendered text is tokenized as it is: control tokens in the text of a message count, unlike in
chat.py.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS, SECONDS_EACH = 10, 0.05  # of processor time: fixed, and for each conversation
MEMORY_BYTES, TEXT_CHARACTERS = 1 << 30, 1 << 28
_LONGEST_TEMPLATE = 1 << 20  # bytes; published ones have at most 20 KB
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class FolderTemplate:
    """The texts of a folder's templates by name, and the special tokens that they may use."""

    folder: Path
    texts: Mapping[str, str]
    special: Mapping[str, str] = field(default_factory=dict)

    def differs(self) -> bool:
        """Whether the template and we render any of the probes, conversations of all kinds,
        differently.

        ConfigError where transformers is not installed, or the template does not end.
        """
        from megatron_qwen3 import chat_template
        from megatron_qwen3.chat import render

        if set(self.texts.values()) == {chat_template.FILE.read_text(encoding="utf-8")}:
            return False
        for enable_thinking in (True, False):
            theirs = self.render(_PROBES, enable_thinking)
            ours = [
                render(
                    probe["messages"],
                    probe.get("tools"),
                    add_generation_prompt=True,
                    enable_thinking=enable_thinking,
                )
                for probe in _PROBES
            ]
            if theirs != ours:
                return True
        return False

    def render(
        self, lines: Sequence[Mapping[str, Any]], enable_thinking: bool
    ) -> list[str | Exception]:
        """The prompt of each line's messages and tools, or the template's error."""
        from megatron_qwen3.chat import ChatError
        from megatron_qwen3.config import ConfigError
        from megatron_qwen3.processes import isolated

        seconds = int(SECONDS + SECONDS_EACH * len(lines))
        asked = {
            "texts": dict(self.texts),
            "variables": {**self.special, "enable_thinking": enable_thinking},
            "lines": [{k: line.get(k) for k in ("messages", "tools")} for line in lines],
            "seconds": seconds,
        }
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(Path(__file__).resolve())],
                input=json.dumps(asked).encode(),
                capture_output=True,
                timeout=60 + 6 * seconds,
                env=isolated(),
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(self._too_much(seconds)) from None
        if done.returncode == _NOT_INSTALLED:
            raise ConfigError(
                f"{self.folder}: its chat template needs transformers and jinja2 "
                f"({done.stderr.decode(errors='replace').strip()})"
            )
        if done.returncode:
            raise ConfigError(self._too_much(seconds))
        return [
            ChatError(f"the folder's chat template: {text}") if failed else text
            for failed, text in json.loads(done.stdout)
        ]

    def _too_much(self, seconds: int) -> str:
        return (
            f"{self.folder}: its chat template did not end within {seconds} s and "
            f"{MEMORY_BYTES >> 20} MiB; without --template folder conversations have Qwen3's format"
        )


def template_of(folder: Path) -> FolderTemplate | None:
    """The template of a tokenizer's folder, or of a file in it, found as in transformers.
    ConfigError."""
    from megatron_qwen3.config import ConfigError

    folder = folder.parent if folder.is_file() else folder
    try:
        config = _read(folder / "tokenizer_config.json")
        settings = json.loads(config) if config else {}
        settings = settings if isinstance(settings, dict) else {}
        said = settings.get("chat_template")
        alone = _read(folder / "chat_template.jinja")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder}: its chat template cannot be read ({error})") from None
    texts = {"default": alone or said} if isinstance(alone or said, str) else {}
    for entry in said if isinstance(said, list) and not alone else ():
        if isinstance(entry, dict) and isinstance(entry.get("template"), str):
            texts[str(entry.get("name"))] = entry["template"]
    special = {}
    for name in _SPECIAL if texts else ():
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
    return FolderTemplate(folder, texts, special) if texts else None


def _read(path: Path) -> str:
    """A file's text; "" without the file. ValueError where it is too long."""
    if not path.is_file():
        return ""
    if path.name.endswith(".jinja") and path.stat().st_size > _LONGEST_TEMPLATE:
        raise ValueError(f"{path.name} has more than {_LONGEST_TEMPLATE:,} bytes")
    return path.read_text(encoding="utf-8")


_CALL = {"name": "f", "arguments": {"a": "é <b>"}}
_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
_ASKED, _SYSTEM = {"role": "user", "content": "q"}, {"role": "system", "content": " s\n"}
_THOUGHT = {"role": "assistant", "content": "a", "reasoning_content": "r"}
_CALLED = {**_THOUGHT, "tool_calls": [{"type": "function", "function": _CALL}]}
_RESULT = {"role": "tool", "content": "1"}
_PROBES: list[dict[str, Any]] = [
    {"messages": [_ASKED]},
    {"messages": [_SYSTEM, _ASKED]},
    {"messages": [_ASKED, _THOUGHT, _ASKED]},
    {"messages": [_ASKED, {"role": "assistant", "content": "<think>\nr\n</think>\n\na"}, _ASKED]},
    {"messages": [_SYSTEM, _ASKED], "tools": [_TOOL]},
    {"messages": [_ASKED, _CALLED, _RESULT, _RESULT], "tools": [_TOOL]},
    {"messages": [_ASKED, _CALLED, _RESULT, _THOUGHT, _ASKED], "tools": [_TOOL]},
]
_NOT_INSTALLED = 3


def _main() -> int:
    """Standard input has templates and lines; standard output gets [failed, text] of each line."""
    try:
        from transformers.utils.chat_template_utils import render_jinja_template
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        return _NOT_INSTALLED
    asked = json.load(sys.stdin)
    _limit(asked["seconds"])
    results, characters = [], 0
    for line in asked["lines"]:
        texts = asked["texts"]
        name = "tool_use" if line["tools"] and "tool_use" in texts else "default"
        try:
            rendered, _ = render_jinja_template(
                [line["messages"]],
                line["tools"],
                chat_template=texts.get(name) or next(iter(texts.values())),
                add_generation_prompt=True,
                **asked["variables"],
            )
        except ImportError as error:
            sys.stderr.write(f"{error}\n")
            return _NOT_INSTALLED
        except MemoryError:
            raise
        except Exception as error:  # a template may raise anything
            results.append((True, f"{type(error).__name__}: {str(error)[:500]}"))
            continue
        results.append((False, rendered[0]))
        characters += len(rendered[0])
        if characters > TEXT_CHARACTERS:
            return 1
    json.dump(results, sys.stdout)
    return 0


def _limit(seconds: int) -> None:
    """Limit this process's processor time and memory from here on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (end, end))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return  # without this file memory is not limited
    room = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


if __name__ == "__main__":
    sys.exit(_main())
