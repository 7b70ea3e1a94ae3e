"""Verdicts of our verifiers are those that people gave, in a golden file beside the project.

`expected` is the right verdict, also where libraries are wrong. No row is argued with:
ARGUED would name it, with the reason.
"""

import pytest

from megatron_qwen3.posttrain.verifiers import Verifiers, check_spec
from tests import golden

KINDS = ("math", "think_format", "countdown", *golden.IFEVAL)
ARGUED: dict[str, str] = {}


@pytest.fixture(scope="module")
def verifiers():
    with Verifiers(workers=1, seconds=60) as verifiers:
        yield verifiers


@pytest.mark.parametrize("case", golden.cases("verifiers.json", *KINDS))
def test_the_verdict_is_the_one_that_people_gave(case, verifiers):
    gold = {"gold": case["gold"]} if "gold" in case else {}
    spec = {"kind": case["kind"]} | gold | case.get("args", {})
    check_spec(spec)
    (verdict,) = verifiers.judge([(spec, case["answer"])])
    if case["id"] in ARGUED:
        pytest.skip(f"argued with: {ARGUED[case['id']]}")
    assert verdict.score == float(case["expected"]), (case["why"], verdict)
