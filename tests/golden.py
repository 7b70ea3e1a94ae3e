"""Golden files: results of other libraries, which lie beside the project and not in it.

The folder is the one that the variable GOLDEN names, else `shared/golden` beside the project's own.
A file holds cases, each with an id and a kind; kinds may be missing from it, and others be there.

    @pytest.mark.parametrize("case", golden.cases("rl_losses.json", "sft"))
    def test_loss_is_trls(case): ...      # one test for each case of the kind

Where the file or the kind is not there, one skipped test says so. A kind that no test reads is in
no list of TESTED, and tests/unit/test_golden.py skips it by its name.
"""

import json
import os
from functools import cache
from pathlib import Path

import pytest

from megatron_qwen3.posttrain.verifiers import KINDS

ROOT = Path(__file__).resolve().parents[1]
IFEVAL = tuple(kind for kind in KINDS if kind.startswith("ifeval/"))
# The kinds that tests read, by file. Whoever adds a test of a kind adds it here.
TESTED = {
    "rl_losses.json": {
        *("sft", "reward_model", "topk_forward_kl", "gkd_jsd", "token_logprob_entropy"),
        *("group_advantage", "group_advantage_ragged", "group_advantage_multi_reward"),
        *("rloo_kl_in_reward", "policy_clip", "policy_gspo", "policy_cispo"),
        *("policy_extreme_ratio", "policy_on_policy", "policy_micro_batches"),
        *("policy_rloo_sequence", "policy_trl_kl_bias_corrected", "policy_trl_opsm"),
        *("policy_trl_entropy_bonus", "policy_trl_vllm_is", "policy_trl_tool_mask"),
        *("policy_trl_num_items", "opd_policy_gradient", "kl_estimators", "tis_weights"),
        *("rollout_rejection", "soft_overlong", "repetition_penalty"),
        *("think_format", "packing"),
    },
    "verifiers.json": {"math", "think_format", "countdown", *IFEVAL},
}


def folder():
    """Where golden files are looked for; it may not exist."""
    named = os.environ.get("GOLDEN")
    return Path(named) if named else ROOT.parent / "shared" / "golden"


@cache
def read(name):
    """A golden file's object, or None where there is no such file."""
    path = folder() / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def cases(name, *kinds):
    """A parameter of pytest for each case of these kinds, named by its id."""
    unknown = set(kinds) - TESTED[name]
    assert not unknown, f"add {unknown} to TESTED in tests/golden.py"
    content = read(name)
    if content is None:
        return [_skipped(name, f"{name} is not in {folder()}; GOLDEN names another folder")]
    found = [case for case in content["cases"] if case["kind"] in kinds]
    absent = [kind for kind in kinds if all(case["kind"] != kind for case in found)]
    return [
        *(pytest.param(case, id=str(case["id"])) for case in found),
        *(_skipped(kind, f"{name} has no case of kind {kind}") for kind in absent),
    ]


def untested():
    """A skipped parameter for each kind of a file that no test reads, with its number of cases."""
    for name, kinds in TESTED.items():
        found = [case["kind"] for case in (read(name) or {"cases": []})["cases"]]
        for kind in sorted(set(found) - kinds):
            reason = f"{name}: no test reads the {found.count(kind)} cases of kind {kind}"
            yield _skipped(f"{name}-{kind}", reason)


def _skipped(what, reason):
    return pytest.param(None, id=what, marks=pytest.mark.skip(reason=reason))
