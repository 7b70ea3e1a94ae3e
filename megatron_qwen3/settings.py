"""Every setting: one frozen dataclass per TOML table, with the rule and the help of every field.

This is the only place where a setting is named, described and given its default; the command line,
the checks and `python -m megatron_qwen3.config` read it from here. Whoever is given settings knows
them by this module alone; `megatron_qwen3.config` makes them of files and key=value pairs. The
tables of post-training stand in `settings_posttrain.py`, `settings_rollouts.py` and
`settings_rl.py`, those of long texts, of FP8 and of overlap in `settings_rope.py`,
`settings_fp8.py` and `settings_overlap.py`; `modes.py` says which mode has which. Nothing here
imports torch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from megatron_qwen3.fields import REQUIRED, setting, settings_of, tables_of
from megatron_qwen3.fields import ConfigError as ConfigError
from megatron_qwen3.settings_fp8 import Fp8Config
from megatron_qwen3.settings_overlap import OverlapConfig
from megatron_qwen3.settings_posttrain import RewardConfig, SftConfig
from megatron_qwen3.settings_rl import DistillConfig, RlConfig
from megatron_qwen3.settings_rollouts import RolloutsConfig
from megatron_qwen3.settings_rope import RopeConfig


@dataclass(frozen=True)
class RunConfig:
    """The mode of the run, and its folder."""

    mode: str = setting(
        "pretrain",
        "which training loop runs",
        choices=("pretrain", "sft", "reward", "rl", "distill"),
    )
    name: str = setting("run", "name of the run; its folder is {run.dir}/{run.name}")
    dir: str = setting("runs", "folder of all runs")
    # torch takes 64 bits, and steps and ranks are added to it
    seed: int = setting(
        1234, "seed of the weights and of the data order", at_least=0, below=1 << 62
    )
    time_limit_minutes: float = setting(
        0.0, "from the start to a save and a stop, to be continued; 0 is none", at_least=0
    )
    stop_early_seconds: float = setting(
        120.0, "left for the save before the time limit, and before SLURM's end", at_least=0
    )
    device: str = setting(
        "auto", "auto takes cuda where there is a GPU", choices=("auto", "cpu", "cuda")
    )
    deterministic: bool = setting(
        False, "repeated on the same GPUs, a run has the same bits; slower. A CPU's has them anyway"
    )
    memory_check: str = setting(
        "warn", "a run that will not fit into memory", choices=("warn", "refuse", "off")
    )
    memory_gb: float = setting(
        0.0, "memory of a rank for memory_check; 0 is the GPU's, or a share of RAM", at_least=0
    )


@dataclass(frozen=True)
class ModelConfig:
    """The transformer. A preset fills every field; other keys replace the preset's values."""

    preset: str = setting("", "a row of megatron_qwen3/presets.py")
    kind: str = setting(
        "auto",
        "whose layers: torch's, or Transformer Engine's. auto takes these where it is installed, "
        "there is a GPU and precision is bf16; weights and checkpoints are the same",
        choices=("auto", "torch", "te"),
    )
    num_layers: int = setting(0, "transformer layers", at_least=1, below=1 << 14)
    hidden_size: int = setting(0, "width of the residual stream", at_least=1, below=1 << 20)
    ffn_hidden_size: int = setting(
        0, "width of the SwiGLU of a dense layer", at_least=0, below=1 << 22
    )
    num_attention_heads: int = setting(0, "query heads", at_least=1, below=1 << 16)
    num_query_groups: int = setting(0, "key-value heads", at_least=1, below=1 << 16)
    head_dim: int = setting(128, "size of one head", at_least=1, below=1 << 16)
    vocab_size: int = setting(151936, "rows of the embedding", at_least=1, below=1 << 28)
    tie_embeddings: bool = setting(False, "the output layer is the embedding")
    head: str = setting(
        "vocabulary",
        "output of the last layer at each position: logits of all tokens, or one number, as a "
        "reward model does; run.mode decides",
        choices=("vocabulary", "scalar"),
    )
    num_experts: int = setting(
        0, "experts of every layer; 0 is a dense model", at_least=0, below=1 << 16
    )
    experts_per_token: int = setting(
        0, "experts that each token is sent to", at_least=0, below=1 << 16
    )
    expert_ffn_hidden_size: int = setting(
        0, "width of the SwiGLU of one expert", at_least=0, below=1 << 22
    )
    rope_theta: float = setting(1e6, "base of the rotary embedding", above=0)
    norm_eps: float = setting(1e-6, "epsilon of RMSNorm", above=0)
    init_std: float = setting(0.02, "standard deviation of fresh weights", above=0)
    router_aux_loss: float = setting(
        1e-3, "coefficient of the global-batch load-balancing loss", at_least=0
    )
    router_balance: str = setting(
        "last_step",
        "the experts' shares that this loss takes: of the step before, or, by one more forward "
        "pass, of the same batch; or of each micro-batch, to compare with",
        choices=("last_step", "this_batch", "micro_batch"),
    )


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks share the model; the ranks that remain are data parallel."""

    tensor: int = setting(1, "ranks that split each matrix", at_least=1)
    pipeline: int = setting(1, "ranks that split the layers", at_least=1)
    virtual_pipeline: int = setting(1, "model chunks on each pipeline rank", at_least=1)
    pipeline_layers: tuple[int, ...] = setting(
        (), "layers of each of pipeline * virtual_pipeline stages, in model order; [] is even"
    )
    expert: int = setting(1, "ranks that split the experts of a layer", at_least=1)
    expert_tensor: int = setting(1, "ranks that split the matrices of one expert", at_least=1)
    dispatch: str = setting(
        "alltoall",
        'how tokens reach the ranks of their experts, where model.kind is "te": by NCCL, or by '
        "DeepEP, or its form for ranks that NVLink joins",
        choices=("alltoall", "deepep", "hybridep"),
    )
    context: int = setting(1, "ranks that split each row", at_least=1)
    context_exchange: str = setting(
        "own",
        "how context ranks read each other's keys: by our attention, gathered; or, where "
        'model.kind is "te", by Transformer Engine\'s: in a ring, gathered, or heads for places, '
        "which pad every document to 2 * context",
        choices=("own", "p2p", "all_gather", "a2a"),
    )
    sequence: bool = setting(True, "sequence parallelism where tensor > 1")
    recompute: str = setting(
        "none", "activations computed again in backward", choices=("none", "selective", "full")
    )
    overlap: bool = setting(
        True, "reduce gradients while backward runs, gather weights while forward runs"
    )


@dataclass(frozen=True)
class SourceConfig:
    """One tokenized corpus, PATH.bin and PATH.idx, and its share of the mixture."""

    name: str = setting(REQUIRED, "name of the source in logs")
    path: str = setting(REQUIRED, "prefix of PATH.bin and PATH.idx")
    weight: float = setting(1.0, "share of the mixture, relative to the other sources", above=0)


@dataclass(frozen=True)
class DataConfig:
    """The mixture of the training data: a stage of a curriculum, or sources named here."""

    sequence_length: int = setting(4096, "tokens of one sequence", at_least=1)
    tokenizer: str = setting("", "tokenizer folder or tokenizer.json; needed for bits per byte")
    held_out: float = setting(
        0.001, "fraction of each source, at its end, that is never trained on", at_least=0, below=1
    )
    loader: str = setting(
        "thread",
        "who reads the next batch while one is trained: a thread of the rank, or NVIDIA DALI, in a "
        "process of its own and onto the GPU by itself; the batches are the same",
        choices=("thread", "dali"),
    )
    sources: tuple[SourceConfig, ...] = setting((), "tables [[data.sources]]: name, path, weight")
    curriculum: str = setting("", "file that mq3 data mix wrote, in place of sources")
    stage: str = setting("", "stage of the curriculum; its held-out share replaces held_out")
    reset_at_documents: bool = setting(
        False,
        "documents that share a sequence are kept apart: none sees another, positions count anew, "
        "and a document's last token is not trained to predict the next one's first; also in "
        "evaluations (Megatron-LM: reset-position-ids, reset-attention-mask and eod-mask-loss)",
    )


@dataclass(frozen=True)
class TrainConfig:
    """The run's length and the sizes of its batches. Exactly one of tokens and steps is set."""

    tokens: int = setting(0, "tokens of the stage", at_least=0)
    steps: int = setting(0, "optimizer steps of the stage", at_least=0)
    global_batch: int = setting(8, "sequences of one optimizer step, all ranks", at_least=1)
    micro_batch: int = setting(1, "sequences of one forward pass on one rank", at_least=1)
    precision: str = setting("bf16", "arithmetic of the model", choices=("bf16", "fp32"))


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate."""

    lr: float = setting(3e-4, "highest learning rate", above=0)
    min_lr: float = setting(3e-5, "learning rate at the end of the decay", at_least=0)
    schedule: str = setting(
        "cosine", "shape of the learning rate", choices=("cosine", "constant", "wsd")
    )
    warmup_steps: int = setting(0, "steps of the linear rise from 0 to lr", at_least=0)
    decay_steps: int = setting(
        0, "wsd: steps of the final decay; 0 is a tenth of the run, after the rise", at_least=0
    )
    beta1: float = setting(0.9, "Adam's first moment", at_least=0, below=1)
    beta2: float = setting(0.95, "Adam's second moment", at_least=0, below=1)
    eps: float = setting(1e-8, "Adam's epsilon", above=0)
    weight_decay: float = setting(0.1, "decoupled weight decay", at_least=0)
    clip_grad: float = setting(1.0, "largest gradient norm; 0 is no clipping", at_least=0)
    z_loss: float = setting(0.0, "coefficient of the z-loss on the logits", at_least=0)
    distributed: bool = setting(True, "shard the optimizer state over data parallel ranks")
    adam: str = setting(
        "auto",
        "whose AdamW takes the steps; auto is Transformer Engine's where it is installed on a GPU, "
        "then apex's, then torch's",
        choices=("auto", "te", "apex", "torch"),
    )
    gradients: str = setting(
        "fp32",
        "type that gradients are added up and reduced in; bf16 is half as much memory, and rounds "
        "with every micro-batch and rank",
        choices=("fp32", "bf16"),
    )
    first_moment: str = setting(
        "fp32", "type of Adam's first moment; bf16 needs adam = te", choices=("fp32", "bf16")
    )
    second_moment: str = setting(
        "fp32", "type of Adam's second moment; bf16 needs adam = te", choices=("fp32", "bf16")
    )
    offload: float = setting(
        0.0,
        "share of master weights and moments that the host's memory keeps and its CPU updates",
        at_least=0,
        at_most=1,
    )
    offload_overlap: bool = setting(
        False, "with offload: weights are updated one by one, beside the copies of others"
    )

    @property
    def is_mixed(self) -> bool:
        """Whether AdamW works on the model's own bf16 weights, and keeps its float32 ones itself:
        megatron-core's precision-aware optimizer."""
        return bool(self.offload) or "bf16" in (self.first_moment, self.second_moment)


@dataclass(frozen=True)
class EvalConfig:
    """Loss on the held-out end of each source."""

    every_steps: int = setting(0, "steps between evaluations; 0 is only at the end", at_least=0)
    tokens: int = setting(262144, "tokens of each source, at most", at_least=1)
    by: tuple[str, ...] = setting(
        (),
        "labels of a curriculum's sources whose combinations have a result each, as "
        '["domain", "quality"]; empty is by source, where there are many by domain and language',
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, which are kept, and the weights that a run starts from."""

    every_steps: int = setting(0, "steps between checkpoints; 0 is only at the end", at_least=0)
    at_end: bool = setting(True, "save after the last step; false is for runs that only measure")
    init_from: str = setting(
        "",
        "run folder of the stage before: its weights, not its optimizer; or a checkpoint, or a "
        "folder of Hugging Face's format; {dir} is run.dir",
    )
    asynchronous: bool = setting(
        True, "write while steps run, from a copy in host memory; false stops the run meanwhile"
    )
    keep: int = setting(2, "newest checkpoints that are kept", at_least=1)
    keep_every_steps: int = setting(
        0, "checkpoints of these steps are kept for good; 0 is none", at_least=0
    )
    resume: bool = setting(True, "go on from the newest checkpoint of the run folder")
    verify: str = setting(
        "full",
        "check of a checkpoint before it is loaded: checksums, or the files' sizes alone",
        choices=("full", "sizes"),
    )


@dataclass(frozen=True)
class GuardConfig:
    """The answer to bad batches, hangs and slow ranks. A spike is a step above its median."""

    bad_batch: str = setting(
        "skip",
        "at a NaN, an infinity or a spike: leave the batch out, or go back to the last checkpoint "
        "and leave out all batches since, or stop",
        choices=("skip", "rollback", "stop"),
    )
    loss_spike: float = setting(
        0.0, "nats above the median loss that are a spike; 0 looks for none", at_least=0
    )
    grad_spike: float = setting(
        0.0, "times the median gradient norm that are a spike; 0 looks for none", at_least=0
    )
    window_steps: int = setting(64, "recent steps that medians are taken of", at_least=16)
    most_bad_batches: int = setting(
        5, "bad batches within window_steps with which the run goes on", at_least=0
    )
    hang_seconds: float = setting(
        600.0, "without a step, evaluated source or save that are a hang; 0 never is", at_least=0
    )
    slow_rank: float = setting(
        1.3,
        "times the median of its pipeline stage at which a rank is named; 0 is never",
        at_least=0,
    )


@dataclass(frozen=True)
class LogConfig:
    """Reports on a run, and where they go."""

    every_steps: int = setting(1, "steps between lines", at_least=1)
    tensorboard: bool = setting(True, "write TensorBoard events to the run folder")
    wandb_project: str = setting("", "Weights & Biases project; empty is off")
    peak_tflops: float = setting(
        0.0, "dense peak of one rank, for MFU (H100 bf16: 989); 0 prints none", at_least=0
    )


@dataclass(frozen=True)
class Config:
    """One run. A copy that `dataclasses.replace` made is validated only by `config.validate`."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    fp8: Fp8Config = field(default_factory=Fp8Config)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    overlap: OverlapConfig = field(default_factory=OverlapConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    @property
    def run_dir(self) -> Path:
        """Folder of checkpoints, metrics and the resolved configuration."""
        return Path(self.run.dir) / self.run.name

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage; a token budget is rounded down to whole steps."""
        return self.train.steps or self.train.tokens // self.step_tokens

    @property
    def batch_updates(self) -> int:
        """Optimizer steps on each batch of rollouts; 0 in modes whose model samples none."""
        return {"rl": self.rl.updates, "distill": self.distill.updates}.get(self.run.mode, 0)

    @property
    def step_rows(self) -> int:
        """Sequences of one optimizer step, over all ranks; in modes whose model samples them, the
        answers of an update, which fill so many rows at most."""
        if updates := self.batch_updates:
            return -(-self.rollouts.prompts * self.rollouts.samples // updates)
        return self.train.global_batch

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step, over all ranks, in modes whose rows are full."""
        return self.train.global_batch * self.data.sequence_length


TABLES: Final[dict[str, type]] = tables_of(Config)
"""Every table by its name in TOML, a nested one after the table that it stands in: sft.teacher."""
SETTINGS: Final = MappingProxyType(
    {name: row for t in TABLES for name, row in settings_of(TABLES[t], f"{t}.").items()}
)
