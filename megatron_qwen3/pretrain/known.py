"""Recognises sources that were read before, under any name and in any place.

    keys = recognised(sources, {"web:9f0c…": source_of_before, …})     # {"web": "web:9f0c…"}

A source is recognised by its name and the fingerprint of its content. The same content under
another name continues, too, unless a source of the old name continues beside it. Runs and curricula
of version 1 have no fingerprints: there the path of the first shard and the number of tokens
decide, or the name and that number, so that moved files are found again.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from data_prep.curriculum import Source, listed, put_together_otherwise
from megatron_qwen3.config import ConfigError


def recognised(sources: Sequence[Source], known: Mapping[str, Source]) -> dict[str, str]:
    """The key of each recognised source, by name. A key serves at most one source."""
    if not known:
        return {}
    keys_of: dict[str, list[str]] = defaultdict(list)
    for key, source in known.items():
        for sign in _signs(source):
            keys_of[sign].append(key)
    found: dict[str, str] = {}
    taken: set[str] = set()
    for any_name in (False, True):
        for source in sources:
            if source.name in found:
                continue
            for key in (key for sign in _sought(source) for key in keys_of.get(sign, ())):
                fits = any_name or known[key].name == source.name
                if fits and key not in taken and not _differ(source, known[key]):
                    found[source.name] = key
                    taken.add(key)
                    break
    return found


def check_held_out(source: Source, before: Source) -> None:
    """ConfigError where another part of the same text was held out before."""
    if source.held_out != before.held_out:
        raise ConfigError(
            f"source {source.name}: {source.held_out:,} tokens are held out, but "
            f"{before.held_out:,} were when it was trained on before; keep data.held_out, or "
            "held-out text is trained on, and trained text held out"
        )


def other_contents(sources: Iterable[Source], before: Iterable[Source]) -> None:
    """ConfigError where one of `sources`, which were not recognised, has a name of `before`."""
    by_name = {source.name: source for source in before}
    for source in sources:
        if old := by_name.get(source.name):
            tokens = f"{source.tokens:,} tokens, {old.tokens:,} then"
            if source.tokens == old.tokens:
                tokens = f"as many tokens, {source.tokens:,}"
            raise ConfigError(
                f"data.sources.{source.name}: {source.shards[0].path} is not what this run was "
                f"trained on until now under that name ({tokens}); restore the old files, or "
                "another name: then it is read from its beginning"
            )


def news(
    sources: Sequence[Source], known: Mapping[str, Source], keys: Mapping[str, str]
) -> tuple[str, ...]:
    """Notes on sources that were read before, or under other names."""
    rest = [source for key, source in known.items() if key not in keys.values()]
    fresh = [source for source in sources if source.name not in keys]
    again = put_together_otherwise(fresh, rest)
    names = {source.name for source in rest} - set(again)
    others = [source.name for source in fresh if source.name in names]
    renamed = [
        f"{name} (before: {known[key].name})"
        for name, key in keys.items()
        if known[key].name not in ("", name)
    ]
    twins = [f"{a} and {b}" for a, b in _twins(sources) if not {a, b} <= keys.keys()]
    told = [
        (again, "are put together otherwise than before: text already read of them comes again"),
        (others, "have other contents than before under their names: they begin with their first"),
        (renamed, "go on where they stood under another name"),
        (twins, "have the same contents: that text is read as often as both say"),
    ]
    return tuple(f"{listed(which)} {what}" for which, what in told if which)


def _twins(sources: Iterable[Source]) -> Iterator[tuple[str, str]]:
    """Pairs of names with the same contents."""
    first: dict[str, str] = {}
    for source in sources:
        if source.fingerprint:
            name = first.setdefault(source.fingerprint, source.name)
            if name != source.name:
                yield name, source.name


def _signs(source: Source) -> Iterator[str]:
    """The identities of a source, the surest first."""
    if source.fingerprint:
        yield f"contents {source.fingerprint}"
    path = source.shards[0].path
    yield f"path {path}:{source.tokens}"
    if source.name:
        yield f"name {source.name}:{source.tokens}"
    else:  # idle in a record of version 1, which has no more
        yield f"file {os.path.basename(path)}:{source.tokens}"


def _sought(source: Source) -> Iterator[str]:
    yield from _signs(source)
    if not source.folder:
        yield f"file {os.path.basename(source.shards[0].path)}:{source.tokens}"


def _differ(a: Source, b: Source) -> bool:
    return bool(a.fingerprint and b.fingerprint and a.fingerprint != b.fingerprint)
