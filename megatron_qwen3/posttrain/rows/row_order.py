"""Records in rows.json, in the run folder, the settings and data that decide a run's rows.

    row_order.check(config.run_dir, step, facts)     # ConfigError where the rows would change
    row_order.write(config.run_dir, facts)           # once, by the rank that writes

A row is a function of settings, data and its number. If these changed when a run resumes, it would
train some dialogs twice and others never, and nobody would notice. No torch here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.storage.inside import fault_of, parse_json, read_small
from megatron_qwen3.storage.whole import write_whole

FILE_NAME = "rows.json"
_VERSION = 2  # also of the packing: rows that follow otherwise from the facts need another version


def check(run_dir: Path, step: int, facts: Mapping[str, Any]) -> None:
    """ConfigError where a run of `step` steps, above 0, used other facts, or unknown ones."""
    if not step:
        return
    path = run_dir / FILE_NAME
    way_out = (
        "with another run.name, checkpoint.init_from goes on from its weights with the rows that "
        "are asked for now"
    )
    try:
        content = parse_json(read_small(path))
        if content["version"] != _VERSION:
            raise ConfigError(
                f"{path} is of version {content['version']!r:.40}, known: {_VERSION}, and another "
                f"version holds other dialogs out; {way_out}"
            )
        before = content["facts"]
        changed = [name for name, now in facts.items() if before[name] != now]
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing, which says how rows are made; {way_out}") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} does not say how rows are made: {fault_of(error)}; {way_out}"
        ) from None
    if changed:
        name = changed[0]
        then, now = before[name], facts[name]
        what = "is not as it was" if isinstance(now, list) else f"= {now}, but was {then}"
        raise ConfigError(
            f"{name} {what} when {run_dir} was begun, and a run keeps its rows; set it back, or "
            f"{way_out}"
        )


def write(run_dir: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of a run, in place of any in its folder."""
    write_whole(run_dir / FILE_NAME, [json.dumps({"version": _VERSION, "facts": facts}).encode()])
