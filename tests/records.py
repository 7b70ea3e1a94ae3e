"""Batches of rollouts as a run of RL writes them: `write(run_dir, batch)`, and a run with them.

record = of_batch(3)                    # numbers by hand, the same ones for the same batch
write_run(tmp_path / "run", batches=4)  # records, metrics.jsonl, config.toml
"""

import json

import numpy as np

from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, TaskName
from megatron_qwen3.posttrain.rollouts.rollout import Rollout
from megatron_qwen3.posttrain.watching.summary import summary

SAMPLES, UPDATES = 4, 2
TASKS = (
    TaskName("sum-1", "sums", "thinking"),
    TaskName("sum-2", "sums", "non-thinking"),
    TaskName("chat-1", "chats", "thinking"),
)
PARTS = ("verifier", "judge", "format")
_NAN = float("nan")
# Of the samples of each task: parts, tokens, finish.
_SCORES = {
    "sum-1": [(1, _NAN, 1), (0, _NAN, 1), (0, _NAN, 0), (_NAN, _NAN, _NAN)],
    "sum-2": [(1, _NAN, 1)] * 4,
    "chat-1": [(_NAN, 0.75, 1), (_NAN, 0.25, 1), (_NAN, 0.5, 1), (_NAN, 0.25, 0)],
}
_FINISHES = {"sum-1": ("stop", "stop", "stop", "length"), "sum-2": ("stop",) * 4}


def _rollout(task, sample, batch):
    tokens = 6 + 2 * sample + batch
    finish = _FINISHES.get(task.id, ("stop", "stop", "stop", "error"))[sample]
    forced = (2, 3) if task.id == "chat-1" else ()
    sampled = tuple(k not in forced for k in range(tokens))
    log_probs = tuple(-0.25 if own else 0.0 for own in sampled)
    ids = tuple((7 * k + sample) % 250 for k in range(tokens))
    thinking = task.mode == "thinking"
    versions = (max(0, UPDATES * batch - 1), UPDATES * batch)
    return Rollout(task.id, (1, 2, 3), ids, log_probs, sampled, finish, versions, thinking, batch)


def of_batch(batch, tasks=TASKS, **more):
    """A record of three groups of four answers; one was cut, one failed, one group is alike."""
    groups = [[_rollout(task, n, batch) for n in range(SAMPLES)] for task in tasks]
    parts = np.array([_SCORES[task.id][n] for task in tasks for n in range(SAMPLES)], np.float32)
    known = np.nan_to_num(parts[:, :2]).sum(1)
    rewards = np.where(np.isnan(parts[:, :2]).all(1), np.nan, known)
    rewards[[r.finish == "error" for group in groups for r in group]] = np.nan
    shares = rewards.reshape(-1, SAMPLES)
    advantages = np.nan_to_num(shares - np.nanmean(shares, 1, keepdims=True)).ravel()
    fields = {
        "batch": batch,
        "first_step": UPDATES * batch,
        "sampled_step": UPDATES * batch,
        "parts": PARTS,
        "reward_N": rewards.astype(np.float32),
        "advantage_N": advantages.astype(np.float32),
        "parts_NP": parts,
        "is_trained_N": ~np.isnan(rewards) & (advantages != 0),
        "counts": {"asked": 3, "kept": 2},
        "seconds": {"rollout": 4.0, "reward": 1.0},
        "refit": {"seconds": 0.5, "difference": 2e-6},
    }
    return RolloutRecord(**(records.of_groups(groups, list(tasks)) | fields | more))


def samples(record):
    """Lines of samples.jsonl, as the loop writes them: the best and the worst of each group."""
    for group, task in enumerate(record.tasks):
        own = np.flatnonzero(record.group_N == group)
        order = own[np.argsort(np.nan_to_num(record.reward_N[own], nan=-np.inf), kind="stable")]
        for n in (int(order[-1]), int(order[0])):
            parts = dict(zip(record.parts, record.parts_NP[n].tolist(), strict=True))
            yield {
                "task": task.id,
                "source": task.source,
                "mode": task.mode,
                "messages": [{"role": "user", "content": f"Question of {task.id}?"}],
                "answer": f"<think>\nthoughts {n}\n</think>\n\nAnswer {n} of batch {record.batch}",
                "pieces": [
                    [f"<think>\nthoughts {n}\n", True],
                    ["</think>\n\n", False],
                    [f"Answer {n} of batch {record.batch}", True],
                ],
                "finish": records.FINISHES[record.finish_N[n]],
                "error": "",
                "tokens": int(record.lengths_N[n]),
                "reward": _known(record.reward_N[n]),
                "parts": {name: _known(value) for name, value in parts.items()},
                "reasons": {"verifier": "not the gold answer"},
                "advantage": float(record.advantage_N[n]),
                "is_trained": bool(record.is_trained_N[n]),
            }


def _known(value):
    return None if np.isnan(value) else float(value)


def write(run_dir, batch, lines=None, **more):
    """The record of a batch in the run folder; its Record. lines: of samples.jsonl."""
    record = of_batch(batch, **more)
    record.write(records.folder_of(run_dir, batch), samples(record) if lines is None else lines)
    return record


def write_run(run_dir, batches=4, mode="rl"):
    """A run folder with records and metrics of so many batches, two updates on each."""
    run_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for batch in range(batches):
        record, first = write(run_dir, batch), UPDATES * batch
        rows.append({"kind": "rollouts", "step": first + 1, **summary(record)})
        rows += [_train_row(first + update + 1) for update in range(UPDATES)]
    held_out = {"reward": 0.5, "pass_rate": 0.5, "length": 4.0, "truncated": 0.0, "answers": 8}
    for source in ("sums", "all"):
        step = UPDATES * batches
        rows.append({"kind": "eval", "step": step, "source": source, **held_out})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run_dir / "metrics.jsonl").write_text(lines)
    band = "[rl.entropy]\nlow = 0.2\nhigh = 0.6\n" if mode == "rl" else ""
    (run_dir / "config.toml").write_text(f'[run]\nmode = "{mode}"\n{band}')


def _train_row(step):
    row = {"kind": "train", "step": step, "tokens": 64 * step, "loss": -0.01 * step}
    row |= {"grad_norm": 0.5, "lr": 1e-6, "step_seconds": 2.0, "tokens_per_second": 32.0}
    row |= {"tflops_per_rank": 0.1, "entropy": 0.7 / (1 + 0.01 * step), "kl": 0.001 * step}
    return row | {"clip_share": 0.01, "ratio": 1.0, "mismatch": 1e-5, "mismatch_max": 1e-4}
