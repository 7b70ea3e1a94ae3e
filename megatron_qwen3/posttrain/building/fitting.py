"""Which queries are asked at all: `fit(work, queries, passages, is_verified=True, is_one=True)`.

Equal ones are asked once, but for case, blanks and punctuation; those that a validation item is
found in are not asked, nor those that say themselves whether to think.
"""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.passages import Passages
from data_prep.units import split
from megatron_qwen3.posttrain.building.flags import has_flag
from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.building.query_rules import (
    is_several,
    reference_faults,
    several_questions,
)
from megatron_qwen3.posttrain.building.work import BuildWork


def fit(
    work: BuildWork,
    queries: Sequence[Query],
    passages: Passages | None,
    *,
    is_verified: bool,
    is_one: bool,
) -> list[Query]:
    """The queries that no rule leaves out.

    passages: of validation items. is_verified: only those that have a verifier; one that is none is
    a fault anyway. is_one: only those that ask one thing.
    """
    kept: list[Query] = []
    seen: dict[bytes, str] = {}
    verified = [query for query in queries if is_verified or query.verifier]
    faults = reference_faults([query.verifier for query in verified], work.verifiers)
    fault_of = dict(zip((query.id for query in verified), faults, strict=True))
    for query in queries:
        units = split(query.conversation).hashes.tobytes()
        numbers = several_questions(query.text)
        # A line whose verifier is wrong is told as that, and stands in no other one's way.
        if fault := fault_of.get(query.id):
            work.drop_query(query, "not verifiable", fault)
            continue
        if units in seen:
            work.drop_query(query, "same as another query", seen[units])
            continue
        seen[units] = query.id
        if has_flag(query.messages):
            work.drop_query(query, "has a flag of its own")
        elif is_one and any(message["role"] == "assistant" for message in query.messages):
            work.drop_query(query, "brings answers")
        elif is_one and is_several(numbers):
            work.drop_query(query, "several questions", "", **numbers)
        elif passages and (hits := passages.hits(query.conversation)):
            told = f"{hits[0]['passages']} passages of {hits[0]['item']}"
            work.drop_query(query, "like a validation item", told, passages=hits[0]["passages"])
        else:
            kept.append(query)
    return kept
