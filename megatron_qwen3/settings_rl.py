"""The settings of reinforcement learning and of on-policy distillation.

Every choice in which published algorithms differ is a setting with a name; `examples/algorithms`
has a file of them for each algorithm. Formulas stand where they are computed: `posttrain/policy`.
Nothing here imports torch.
"""

from dataclasses import dataclass, field

from megatron_qwen3.fields import setting


@dataclass(frozen=True)
class AdvantageConfig:
    """How rewards of a group become advantages."""

    baseline: str = setting(
        "group",
        "subtracted from a reward: the group's mean, the mean of the others, or nothing",
        choices=("group", "leave_one_out", "none"),
    )
    scale: str = setting(
        "group",
        "divisor: the standard deviation of the group's rewards, of the batch's, or nothing; "
        "or advantages are whitened over the batch's answers, or over their tokens",
        choices=("group", "batch", "whiten", "whiten_tokens", "none"),
    )
    deviation: str = setting(
        "unbiased", "divides by samples - 1, or by samples", choices=("unbiased", "biased")
    )
    epsilon: float = setting(
        1e-6,
        "added to the standard deviation; its square to the variance over tokens",
        at_least=0,
    )
    zero_below: float = setting(
        1e-6, "standard deviation of a group below which its advantages are 0", at_least=0
    )
    lone: str = setting(
        "zero",
        "advantage of a group of one: 0, or its reward over 1 + epsilon",
        choices=("zero", "reward"),
    )
    parts: str = setting(
        "sum",
        "several rewards: their weighted sum is normalised, or each one before it (GDPO)",
        choices=("sum", "each"),
    )
    reward_limit: float = setting(
        0.0, "rewards beyond it, below or above 0, are cut to it; 0 is no limit", at_least=0
    )


@dataclass(frozen=True)
class PolicyLossConfig:
    """The loss of a sampled token, and its mean."""

    ratio: str = setting(
        "token",
        "of probabilities now and before the update: each token's, the geometric mean of a "
        "sequence (GSPO), or a sequence's product",
        choices=("token", "sequence_mean", "sequence"),
    )
    clip: str = setting(
        "ppo",
        "ppo limits the objective, cispo the weight of each token's gradient",
        choices=("ppo", "cispo"),
    )
    clip_low: float = setting(0.2, "ratios are clipped to 1 - clip_low", at_least=0, at_most=1)
    clip_high: float = setting(0.2, "and to 1 + clip_high", at_least=0)
    dual_clip: float = setting(
        3.0, "most that a negative advantage is multiplied by; 0 is no limit", at_least=0
    )
    log_ratio_limit: float = setting(
        20.0, "log-ratios are clamped to it, without gradient beyond; 0 is no limit", at_least=0
    )
    mean: str = setting(
        "token",
        "over tokens; over sequences of each one's mean, of its sum, or of its sum by loss.length",
        choices=("token", "sequence_mean", "sequence_sum", "constant"),
    )
    length: int = setting(
        0, "tokens that mean = constant divides by; 0 is rollouts.max_new_tokens", at_least=0
    )
    masked: str = setting(
        "left_out",
        "sequences of which no token is trained, in means over sequences",
        choices=("left_out", "counted"),
    )
    importance: str = setting(
        "truncate",
        "weights of trainer over sampler: none, limited, or 0 outside of the band; of tokens or of "
        "whole sequences",
        choices=("none", "truncate", "mask", "sequence_truncate", "sequence_mask"),
    )
    importance_low: float = setting(0.5, "least weight of a band", at_least=0)
    importance_high: float = setting(2.0, "largest weight", above=0)
    rejection: str = setting(
        "none",
        "tokens or whole sequences are not trained where trainer and sampler differ by more, by "
        "an estimator of their divergence: of tokens, or its sum, mean or largest in a sequence",
        choices=(
            "none",
            "token_k1",
            "token_k2",
            "token_k3",
            "seq_sum_k1",
            "seq_sum_k2",
            "seq_sum_k3",
            "seq_mean_k1",
            "seq_mean_k2",
            "seq_mean_k3",
            "seq_max_k2",
            "seq_max_k3",
        ),
    )
    rejection_limit: float = setting(
        2.0,
        "that rejection allows: of k1 a factor u of probabilities, which lie between 1/u and u; of "
        "k2 and k3 nats",
        above=0,
    )
    stale_limit: float = setting(
        0.0,
        "nats per token by which a sequence of negative advantage may have become less probable "
        "since it was sampled, or its loss is 0; 0 is no limit",
        at_least=0,
    )


@dataclass(frozen=True)
class KlConfig:
    """The penalty for divergence of the policy from its reference."""

    coefficient: float = setting(0.0, "of the divergence; 0 has no reference model", at_least=0)
    estimator: str = setting(
        "k3", "of KL(policy ‖ reference)", choices=("k1", "k2", "k3", "abs", "k1+", "k3+")
    )
    place: str = setting("loss", "where it counts", choices=("loss", "reward"))
    limit: float = setting(
        20.0, "log-ratios of k3 are clamped to it, without gradient; 0 is no limit", at_least=0
    )
    most: float = setting(10.0, "and k3 itself, without gradient beyond; 0 is no limit", at_least=0)
    weigh_by_ratio: bool = setting(
        False, "multiply the estimator by the ratio of now and before the update"
    )
    reference: str = setting(
        "", "run folder, checkpoint or Hugging Face folder; empty is checkpoint.init_from"
    )


@dataclass(frozen=True)
class EntropyConfig:
    """Entropy of the policy over the whole vocabulary, in nats per token."""

    coefficient: float = setting(
        0.0, "of the entropy's mean over tokens in the objective, to begin with", at_least=0
    )
    low: float = setting(0.0, "below it the coefficient rises; 0 has no band", at_least=0)
    high: float = setting(0.0, "above it the coefficient falls; 0 has no upper end", at_least=0)
    change: float = setting(0.0, "of the coefficient in an update outside of the band", at_least=0)
    most: float = setting(0.01, "largest coefficient of a band", at_least=0)


@dataclass(frozen=True)
class RewardWeightsConfig:
    """The weight of each part of an answer's reward; 0 leaves the part out."""

    verifier: float = setting(1.0, "right by the task's verifier")
    judge: float = setting(0.0, "the score of a model that knows the reference answer")
    model: float = setting(0.0, "the score of a reward model, without reference")
    format: float = setting(0.0, "one closed think block with an answer after it")
    mode: float = setting(0.0, "thinking where it was asked for, and not where it was not")
    language: float = setting(0.0, "thinking and answer in the language of the task")
    overlong: float = setting(0.0, "soft penalty of lengths near the limit (DAPO), 0 to -1")
    repetition: float = setting(0.0, "penalty of repeated n-grams, 0 to -1")


@dataclass(frozen=True)
class JudgeConfig:
    """The models that score answers no rule can."""

    url: str = setting("", "OpenAI-compatible address of the judge, ending in /v1")
    name: str = setting("", "model that the judge's address serves; empty is the only one")
    template: str = setting("", "file of its prompt; empty is the project's")
    key_variable: str = setting("OPENAI_API_KEY", "environment variable that holds its key")
    concurrency: int = setting(32, "requests that wait for replies at a time", at_least=1)
    seconds: float = setting(120.0, "that a reply may take", above=0)
    tries: int = setting(3, "times that a request which failed is sent", at_least=1)
    replies: int = setting(
        3, "times that a reply is asked for, before one without a score is left so", at_least=1
    )
    max_tokens: int = setting(4096, "of a reply, its thinking included", at_least=1)
    model: str = setting("", "reward model: run folder, checkpoint or Hugging Face folder")
    tensor: int = setting(1, "ranks that split each matrix of the reward model", at_least=1)
    pipeline: int = setting(1, "ranks that split its layers", at_least=1)
    expert: int = setting(1, "ranks that split its experts", at_least=1)


@dataclass(frozen=True)
class RlConfig:
    """Reinforcement learning: run.mode = "rl"."""

    updates: int = setting(1, "optimizer steps on each batch of rollouts", at_least=1)
    truncated: str = setting(
        "masked",
        "answers that reached their limit are not trained, scored like others, or score 0",
        choices=("masked", "scored", "zero"),
    )
    filter: bool = setting(True, "leave out groups whose rewards are all alike, and ask others")
    refills: int = setting(4, "times that a batch is filled up again", at_least=0)
    most_empty: int = setting(
        5,
        "batches in a row that leave nothing to train, or have truncated answers alone, with which "
        "the run goes on",
        at_least=0,
    )
    curriculum: str = setting(
        "uniform",
        "which tasks are asked: all alike, or those that are learnable, the harder the rather; an "
        "answer that was cut at its limit counts as one that did not pass",
        choices=("uniform", "learnable"),
    )
    overlong_tokens: int = setting(
        256, "before rollouts.max_new_tokens, in which rewards.overlong falls", at_least=1
    )
    verify_workers: int = setting(
        0, "processes that verify answers; 0 is one for each of the first rank's CPUs", at_least=0
    )
    verify_seconds: float = setting(30.0, "that verifying an answer may take", above=0)
    repeated: int = setting(40, "tokens of an n-gram that rewards.repetition counts", at_least=2)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    kl: KlConfig = field(default_factory=KlConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    rewards: RewardWeightsConfig = field(default_factory=RewardWeightsConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass(frozen=True)
class ScoringTeacherConfig:
    """The teacher that scores its student's samples, in a layout of its own."""

    path: str = setting(
        "", "run folder, checkpoint or folder of Hugging Face's format; {dir} is run.dir"
    )
    url: str = setting("", "or the address of one that is served, ending in /v1")
    tensor: int = setting(
        0,
        "ranks that split each matrix of the teacher; 0 is as many as can, up to 8",
        at_least=0,
    )
    pipeline: int = setting(1, "ranks that split its layers", at_least=1)
    expert: int = setting(0, "ranks that split its experts; 0 is as many as can", at_least=0)
    in_turns: bool = setting(
        False, "its weights and the student's optimizer take turns in the device's memory"
    )


@dataclass(frozen=True)
class DistillConfig:
    """On-policy distillation: run.mode = "distill"."""

    divergence: str = setting(
        "reverse_kl",
        "from the teacher: over distributions, or of sampled tokens alone, as an advantage",
        choices=("reverse_kl", "forward_kl", "jensen_shannon", "sampled"),
    )
    beta: float = setting(
        0.5, "of jensen_shannon, 0 (forward) to 1 (reverse)", at_least=0, at_most=1
    )
    top_k: int = setting(
        0, "of the teacher's tokens, all others one bin together; 0 is all of them", at_least=0
    )
    temperature: float = setting(1.0, "that both distributions are taken at", above=0)
    updates: int = setting(1, "optimizer steps on each batch of rollouts", at_least=1)
    teacher: ScoringTeacherConfig = field(default_factory=ScoringTeacherConfig)
