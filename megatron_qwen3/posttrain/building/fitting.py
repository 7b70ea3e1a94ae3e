"""Drops unfit queries: `fit(work, queries, passages, is_verified=True, is_one=True)`.

Queries that differ only in case, blanks and punctuation are asked once. Queries that contain a
validation item, or a flag to think or not, are not asked.
"""

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
    """The queries that no rule drops.

    passages: of validation items. is_verified: drop queries without a verifier; an invalid verifier
    is a fault in any case. is_one: drop those that ask several questions.
    """
    kept: list[Query] = []
    seen: dict[bytes, str] = {}
    verified = [query for query in queries if is_verified or query.verifier]
    faults = reference_faults([query.verifier for query in verified], work.verifiers)
    fault_of = dict(zip((query.id for query in verified), faults, strict=True))
    for query in queries:
        units = split(query.conversation).hashes.tobytes()
        numbers = several_questions(query.text)
        # A query with a wrong verifier is reported as such, and does not hide its duplicates.
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
