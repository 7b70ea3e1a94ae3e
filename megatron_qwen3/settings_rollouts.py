"""The settings of rollouts: the tables of the modes whose model answers tasks while it trains.

`[rollouts]` is read by run.mode = "rl" and "distill" alike: which tasks the run poses, how it
samples answers, and with which engine. Nothing here imports torch.
"""

from dataclasses import dataclass, field

from megatron_qwen3.fields import REQUIRED, setting


@dataclass(frozen=True)
class TaskSourceConfig:
    """One set of tasks, and its share of the prompts."""

    name: str = setting(REQUIRED, "name of the source in logs")
    path: str = setting(
        REQUIRED,
        "file of JSON lines of tasks, or a generator, as gym:chain_sum,min_terms=3 or own:code",
    )
    weight: float = setting(1.0, "share of the prompts, relative to the other sources", above=0)
    mode: str = setting(
        "",
        "in which mode its tasks are answered; empty is rollouts.mode",
        choices=("", "thinking", "non_thinking", "mixed"),
    )
    rewards: tuple[str, ...] = setting(
        (), "weights in place of those of [rl.rewards], as verifier=1.0", metavar="NAME=WEIGHT"
    )


@dataclass(frozen=True)
class AgentConfig:
    """Rollouts of several turns, in which the model calls tools of an environment."""

    environment: str = setting(
        "",
        "python (an interpreter in the sandbox), search (over agent.corpus), or module:Class of "
        "your own; empty has no tools",
    )
    corpus: str = setting("", "file of JSON lines with id and text that search looks through")
    turns: int = setting(8, "most answers of the model in a rollout", at_least=1)
    answer_tokens: int = setting(
        0,
        "most tokens that a tool's answer is given, of those of rollouts.max_new_tokens; 0 is a "
        "quarter of them, or 512 where that is less",
        at_least=0,
    )
    call_seconds: float = setting(60.0, "that a tool may take to answer", above=0)


@dataclass(frozen=True)
class VllmConfig:
    """Servers of vLLM, which the run starts, or finds at addresses."""

    python: str = setting("", "python of the environment that vLLM is installed in")
    servers: int = setting(1, "servers that the run starts on its first node", at_least=1)
    urls: tuple[str, ...] = setting(
        (), "addresses of servers that are running; none are started then", metavar="URL"
    )
    options: tuple[str, ...] = setting(
        (), "further options of vllm serve, as --gpu-memory-utilization=0.5", metavar="OPTION"
    )
    gpus: tuple[str, ...] = setting(
        (), 'GPUs of each server that the run starts, as ["6", "7"]; empty sees all of them'
    )
    cache_bytes: int = setting(
        0, "of a server's KV cache; 0 is vLLM's choice on a GPU, 1 GiB on a CPU", at_least=0
    )
    concurrency: int = setting(64, "prompts that a server is asked at a time", at_least=1)
    refit: str = setting(
        "folder",
        "how new weights reach the servers: through a shared folder, or by a process group",
        choices=("folder", "gloo", "nccl"),
    )
    folder: str = setting(
        "",
        "where refit = folder puts the weights; empty is this machine's memory (/dev/shm), or with "
        "urls the run's own folder, which servers must see",
    )
    bucket_bytes: int = setting(1 << 30, "weights of a refit that are gathered at once", at_least=1)
    start_seconds: float = setting(600.0, "that a server may take to start", above=0)
    answer_seconds: float = setting(1800.0, "that an answer may take", above=0)
    restarts: int = setting(3, "times that a server which died is started again", at_least=0)
    difference: float = setting(
        1e-4,
        "largest difference of a log-probability between servers and trainer that a refit may "
        "leave on fixed prompts; bf16 needs more",
        above=0,
    )


@dataclass(frozen=True)
class RolloutsConfig:
    """Answers that the model in training samples."""

    prompts: int = setting(32, "tasks that are asked at a time", at_least=1)
    samples: int = setting(8, "answers of each task, its group", at_least=1)
    max_new_tokens: int = setting(1024, "of an answer, with its thinking", at_least=1)
    temperature: float = setting(1.0, "of sampling", above=0)
    mode: str = setting(
        "thinking",
        "in which mode tasks are answered",
        choices=("thinking", "non_thinking", "mixed"),
    )
    thinking_share: float = setting(
        0.5, "of tasks that are answered thinking where the mode is mixed", at_least=0, at_most=1
    )
    thinking_budget: int = setting(
        0, "tokens of thinking after which its end is inserted; 0 is none", at_least=0
    )
    switch: str = setting(
        "template",
        "how a task is told its mode: by the template's empty think block, or by /think and "
        "/no_think at the end of its question",
        choices=("template", "flag"),
    )
    engine: str = setting(
        "own", "sampler of answers: the weights in training, or vLLM", choices=("own", "vllm")
    )
    rows: int = setting(64, "answers that a data rank's own weights sample at once", at_least=1)
    lag: int = setting(
        0,
        "batches of rollouts that are sampled ahead, by older weights: 0 or 1",
        at_least=0,
        at_most=1,
    )
    held_out: float = setting(
        0.02,
        "fraction of each source's questions, about, that is asked in evaluations alone; of a "
        "generator a tenth at least, and with 0 none",
        at_least=0,
        below=1,
    )
    keep_arrays: bool = setting(
        False,
        "keep ids, log-probs and samples of all batches, not only those that a resume needs, and "
        "samples of the newest",
    )
    eval_prompts: int = setting(64, "held-out tasks of each source that are asked", at_least=0)
    tasks: tuple[TaskSourceConfig, ...] = setting(
        (), "tables [[rollouts.tasks]]: name, path, weight, mode, rewards"
    )
    agent: AgentConfig = field(default_factory=AgentConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)

    @property
    def tool_tokens(self) -> int:
        """Most tokens that a tool's answer is given."""
        return self.agent.answer_tokens or max(1, min(512, self.max_new_tokens // 4))
