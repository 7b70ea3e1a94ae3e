"""Checks settings of reinforcement learning: one line per fault, as `validate.py` does the
others."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from megatron_qwen3 import validate_vllm
from megatron_qwen3.fields import ConfigError, settings_of
from megatron_qwen3.modes import belongs
from megatron_qwen3.posttrain.rewards import weights
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_rl import (
    DistillConfig,
    EntropyConfig,
    KlConfig,
    PolicyLossConfig,
    RlConfig,
    ScoringTeacherConfig,
)
from megatron_qwen3.settings_rollouts import AgentConfig, RolloutsConfig


def faults(config: Config) -> Iterator[str]:
    """Faults of the tables of run.mode = "rl", or "distill"."""
    if belongs("rollouts", config.run.mode):
        yield from validate_vllm.faults(config)
        yield from _agent_faults(config.rollouts)
    if config.run.mode in ("rl", "distill") and config.optim.z_loss:
        yield (
            f"optim.z_loss = {config.optim.z_loss} is no part of the objectives of run.mode = "
            f'"{config.run.mode}"; set it to 0'
        )
    if config.run.mode == "distill":
        yield from _distill_faults(config)
        yield from _scoring_teacher_faults(config.distill)
    if config.run.mode != "rl":
        return
    yield from _advantage_faults(config.rl)
    yield from _loss_faults(config.rl.loss)
    yield from _kl_faults(config.rl.kl)
    yield from _entropy_faults(config.rl.entropy)
    yield from _reward_faults(config)


def _agent_faults(rollouts: RolloutsConfig) -> Iterator[str]:
    agent, table = rollouts.agent, "rollouts.agent"
    if not agent.environment:
        for name in settings_of(AgentConfig):
            if getattr(agent, name) != getattr(AgentConfig(), name):
                yield (
                    f"{table}.{name} = {getattr(agent, name)} has no effect without "
                    f"{table}.environment; set it, or leave {name} out"
                )
        return
    module, _, own = agent.environment.partition(":")
    if agent.environment not in ("python", "search") and not (module and own):
        yield (
            f"{table}.environment = {agent.environment!r}; valid: python, search, or module:Class "
            "of your own"
        )
    if (agent.environment == "search") != bool(agent.corpus):
        yield (
            f"{table}.corpus = {agent.corpus!r} with {table}.environment = {agent.environment!r}; "
            "search needs a corpus, and nothing else reads one"
        )
    if agent.answer_tokens >= rollouts.max_new_tokens:
        yield (
            f"{table}.answer_tokens = {agent.answer_tokens} leaves the model no room within "
            f"rollouts.max_new_tokens = {rollouts.max_new_tokens}, which tools' answers count in; "
            f"valid: 1 to {rollouts.max_new_tokens - 1}, or 0 for a quarter of it, 512 at most"
        )


def _advantage_faults(settings: RlConfig) -> Iterator[str]:
    if settings.advantage.parts == "each" and settings.advantage.reward_limit:
        yield (
            f"rl.advantage.reward_limit = {settings.advantage.reward_limit} cuts the sum of "
            'rewards, which rl.advantage.parts = "each" does not make; leave one out'
        )
    if settings.advantage.parts == "each" and settings.kl.place == "reward":
        yield (
            'rl.kl.place = "reward" takes the divergence off the sum of rewards, which '
            'rl.advantage.parts = "each" does not make; set rl.kl.place = "loss"'
        )


def _loss_faults(loss: PolicyLossConfig) -> Iterator[str]:
    if loss.length and loss.mean != "constant":
        yield (
            f'rl.loss.length = {loss.length} goes with rl.loss.mean = "constant", not '
            f'"{loss.mean}"; leave it out'
        )
    if loss.importance.endswith("mask") and loss.importance_low > loss.importance_high:
        yield (
            f"rl.loss.importance_low = {loss.importance_low} exceeds importance_high = "
            f"{loss.importance_high}: no token would be trained"
        )
    if loss.clip == "ppo" and 0 < loss.dual_clip <= 1 + loss.clip_high:
        yield (
            f"rl.loss.dual_clip = {loss.dual_clip} is within 1 + clip_high = "
            f"{1 + loss.clip_high:g}; valid: above it, or 0 for none"
        )
    if loss.rejection.endswith("k1") and loss.rejection_limit <= 1:
        yield (
            f"rl.loss.rejection_limit = {loss.rejection_limit} with rejection = "
            f'"{loss.rejection}" keeps nothing between 1/u and u; valid: above 1'
        )


def _kl_faults(kl: KlConfig) -> Iterator[str]:
    if not kl.coefficient:
        for name, value in (("reference", kl.reference), ("weigh_by_ratio", kl.weigh_by_ratio)):
            if value:
                yield (
                    f"rl.kl.{name} = {value} has no effect with rl.kl.coefficient = 0; set the "
                    "coefficient, or leave it out"
                )
        return
    if kl.place == "loss" and kl.estimator == "k1":
        yield (
            'rl.kl.estimator = "k1" with rl.kl.place = "loss": the reference is not in its '
            'derivative; valid: k2, k3, abs, k1+, k3+, or rl.kl.place = "reward"'
        )
    if kl.place == "reward" and kl.weigh_by_ratio:
        yield (
            'rl.kl.weigh_by_ratio = true with rl.kl.place = "reward": there is no ratio before '
            'the update; leave it out, or set rl.kl.place = "loss"'
        )


def _reward_faults(config: Config) -> Iterator[str]:
    """Of the weights of each source, and of who gives the parts that have one."""
    rl, by_place = config.rl, {"rl.rewards": asdict(config.rl.rewards)}
    for source in config.rollouts.tasks:
        try:
            weight = weights.of_source(rl.rewards, source.rewards)
        except ConfigError as error:
            yield f"rollouts.tasks.{source.name}.rewards: {error}"
            continue
        by_place[f"rollouts.tasks.{source.name}.rewards"] = weight
    if config.rollouts.tasks:
        del by_place["rl.rewards"]  # every source says, or takes, all of them
    for place, weight in by_place.items():
        yield from _weight_faults(config, place, weight)
    if rl.judge.url and not rl.judge.url.startswith(("http://", "https://")):
        yield f'rl.judge.url = {rl.judge.url!r}; valid: an address, as "http://localhost:8000/v1"'


def _weight_faults(config: Config, place: str, weight: Mapping[str, float]) -> Iterator[str]:
    rl, most = config.rl, config.rollouts.max_new_tokens
    if not any(weight.values()):
        yield f"{place}: all weights are 0, so that nothing is rewarded; give one part a weight"
    if weight["judge"] and not rl.judge.url:
        yield f"{place}: judge = {weight['judge']:g} needs a judge; set rl.judge.url"
    if weight["model"] and not rl.judge.model:
        yield f"{place}: model = {weight['model']:g} needs a reward model; set rl.judge.model"
    if weight["overlong"] and rl.overlong_tokens > most:
        yield (
            f"rl.overlong_tokens = {rl.overlong_tokens} exceeds rollouts.max_new_tokens = {most}, "
            f"before whose end {place}: overlong falls; valid: 1 to {most}"
        )


def _entropy_faults(entropy: EntropyConfig) -> Iterator[str]:
    if entropy.high and entropy.high < entropy.low:
        yield (
            f"rl.entropy.high = {entropy.high} is below rl.entropy.low = {entropy.low}; valid: "
            "at least as much, or 0 for no upper end"
        )
    has_band = bool(entropy.low or entropy.high)
    if has_band and not entropy.change:
        yield (
            f"rl.entropy.low = {entropy.low} and high = {entropy.high} change nothing with "
            "rl.entropy.change = 0; set it, 0.001 for example"
        )
    if entropy.change and not has_band:
        yield (
            f"rl.entropy.change = {entropy.change} needs a band: set rl.entropy.low or "
            "rl.entropy.high"
        )
    if has_band and entropy.coefficient > entropy.most:
        yield (
            f"rl.entropy.coefficient = {entropy.coefficient} exceeds rl.entropy.most = "
            f"{entropy.most}; raise one, or lower the other"
        )


def _distill_faults(config: Config) -> Iterator[str]:
    distill = config.distill
    if distill.divergence != "jensen_shannon" and distill.beta != DistillConfig().beta:
        yield (
            f'distill.beta = {distill.beta} goes with distill.divergence = "jensen_shannon", not '
            f'"{distill.divergence}"; leave it out'
        )
    for source in config.rollouts.tasks:
        if source.rewards:
            yield (
                f"rollouts.tasks.{source.name}.rewards = {list(source.rewards)} has no effect in "
                'run.mode = "distill", where the teacher alone is learnt from; leave it out'
            )
    if distill.top_k and distill.divergence == "sampled":
        yield (
            f'distill.top_k = {distill.top_k} has no effect with distill.divergence = "sampled", '
            "which compares the sampled token alone; leave it out"
        )
    if distill.top_k > config.model.vocab_size:
        yield (
            f"distill.top_k = {distill.top_k} exceeds model.vocab_size = {config.model.vocab_size}"
        )
    if distill.divergence == "sampled" and distill.temperature != config.rollouts.temperature:
        yield (
            f'distill.temperature = {distill.temperature} with distill.divergence = "sampled" must '
            f"be rollouts.temperature = {config.rollouts.temperature}, at which the policy samples"
        )


def _scoring_teacher_faults(distill: DistillConfig) -> Iterator[str]:
    teacher, default = distill.teacher, ScoringTeacherConfig()
    if bool(teacher.path) == bool(teacher.url):
        given = "both are set" if teacher.path else "neither is set"
        yield (
            "distill.teacher has a path, for a model in memory, or the url of one that is served: "
            f"{given}; set one"
        )
    if not teacher.url:
        return
    for name in ("tensor", "pipeline", "expert", "in_turns"):
        if getattr(teacher, name) != getattr(default, name):
            yield (
                f"distill.teacher.{name} = {getattr(teacher, name)} is of a teacher in memory, but "
                "distill.teacher.url names one that is served; leave one out"
            )
    if distill.divergence != "sampled" and not distill.top_k:
        yield (
            "distill.top_k = 0 compares the whole vocabulary, which the teacher of "
            "distill.teacher.url does not tell; set it to 20 for example, or set "
            'distill.divergence = "sampled", or distill.teacher.path'
        )
    if distill.temperature != 1:
        yield (
            f"distill.temperature = {distill.temperature}, but a served teacher tells "
            "log-probabilities at 1; set it to 1, or set distill.teacher.path"
        )
