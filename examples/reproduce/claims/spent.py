"""What runs have spent, in floating point operations by `model/flops.py`: `flops(run)`.

Training reads its tokens three times: forward, and twice as much backward. Sampling reads each
prompt and each answer once, and so does a teacher; what was trained of the answers is read three
times more. Evaluations are left out.
"""

from collections.abc import Mapping
from pathlib import Path

from examples.reproduce.claims.claim import model_of, rows
from megatron_qwen3.config import load
from megatron_qwen3.model.flops import flops_per_token
from megatron_qwen3.settings import ModelConfig


def flops(run: Path) -> float:
    """Of a whole run; 0 where it has no step yet."""
    config = load([run / "config.toml"])
    if batches := rows(run, "rollouts"):
        teacher = config.distill.teacher.path if config.run.mode == "distill" else ""
        of_teacher = model_of(Path(teacher)) if teacher else None
        return sum(of_batch(row, config.model, of_teacher) for row in batches)
    tokens = [row["tokens"] for row in rows(run, "train")]
    per_token = flops_per_token(config.model, config.data.sequence_length)
    return float(tokens[-1] * per_token) if tokens else 0.0


def of_batch(row: Mapping[str, float], student: ModelConfig, teacher: ModelConfig | None) -> float:
    """Of one batch of rollouts and the updates on it."""
    length = row["prompt_length"] + row["length"]
    tokens = row["answers"] * length
    forward = tokens * flops_per_token(student, int(length)) / 3
    trained = 3 * forward * row["trained"]
    of_teacher = tokens * flops_per_token(teacher, int(length)) / 3 if teacher else 0.0
    return forward + trained + of_teacher
