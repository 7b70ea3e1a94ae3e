"""Chooses the modules of a Qwen3 layer: the one place that looks at installed packages.

    kind(config)              # "torch" or "te"; ConfigError where model.kind cannot be had
    described(config)         # the choice, with versions, or why it is not Transformer Engine

'torch' is our layer on megatron-core's parallel linears, with torch's fused attention and grouped
products, on CPUs and GPUs; 'te' is megatron-core's own layer on Transformer Engine, on GPUs.
parallel/installed.py and parallel/fp8.py check the other packages that settings need.
"""

import torch

from megatron_qwen3.cpu import redirect
from megatron_qwen3.model import te
from megatron_qwen3.model.experts import SparseMLP
from megatron_qwen3.model.layer import DenseMLP, Layer, RMSNorm
from megatron_qwen3.parallel.installed import older_than, release
from megatron_qwen3.parallel.mcore import (
    HAVE_DEEP_EP,
    HAVE_HYBRIDEP,
    HAVE_TE,
    ModuleSpec,
    TransformerBlockSubmodules,
    TransformerConfig,
    TransformerLayerSubmodules,
    get_num_layers_to_build,
)
from megatron_qwen3.settings import Config, ConfigError

_GITHUB = "git+https://github.com/deepseek-ai/DeepEP"  # its setup.py imports torch
_DEEP_EP = {
    "deepep": f"pip install --no-build-isolation {_GITHUB}",
    "hybridep": f"pip install --no-build-isolation {_GITHUB}@hybrid-ep",
}
_ENGINE = "transformer_engine"
_INSTALL = 'pip install --upgrade --no-build-isolation "transformer_engine[pytorch]"'
# The first whose attention can be told that there is no padding between documents.
_LEAST_ENGINE = "2.2"
_LEAST_TO_GATHER = "2.18"  # the first in which context ranks gather keys of documents


def kind(config: Config) -> str:
    """ "torch" or "te": model.kind where it says so; "auto" is decided here.

    ConfigError where it is "te", or products are in FP8, and this process cannot have it.
    """
    asked = config.model.kind
    if asked == "torch":
        return asked
    lacking = _lacking()
    if config.fp8.is_on and lacking:
        raise ConfigError(f'fp8.recipe = "{config.fp8.recipe}", but {lacking}; valid here: "none"')
    if asked == "te" and lacking:
        raise ConfigError(f'model.kind = "te", but {lacking}; valid here: "torch", "auto"')
    if asked == "te" or config.fp8.is_on:
        _check_dispatch(config.parallel.dispatch)
        _check_exchange(config)
        return "te"
    # Transformer Engine's fused attention has no kernel for float32.
    return "te" if not lacking and config.train.precision == "bf16" else "torch"


def _check_dispatch(dispatch: str) -> None:
    """ConfigError where the package of parallel.dispatch is not installed."""
    installed = {"deepep": HAVE_DEEP_EP, "hybridep": HAVE_HYBRIDEP}
    if not installed.get(dispatch, True):
        raise ConfigError(
            f'parallel.dispatch = "{dispatch}", but it is not installed ({_DEEP_EP[dispatch]}); '
            'valid here: "alltoall"'
        )


def _check_exchange(config: Config) -> None:
    """ConfigError where the installed Transformer Engine cannot gather keys of documents."""
    asked, found = config.parallel.context_exchange, older_than(_ENGINE, _LEAST_TO_GATHER)
    has_documents = config.run.mode != "pretrain" or config.data.reset_at_documents
    if asked == "all_gather" and has_documents and found:
        raise ConfigError(
            f'parallel.context_exchange = "{asked}", but Transformer Engine {found} gathers keys '
            f"of whole rows alone; those of documents from {_LEAST_TO_GATHER} on ({_INSTALL}); "
            'valid here: "own", "p2p", "a2a"'
        )


def _lacking() -> str:
    """Why Transformer Engine cannot be used here; "" where it can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU, which Transformer Engine needs"
    if not HAVE_TE:
        return f"Transformer Engine is not installed ({_INSTALL})"
    if found := older_than(_ENGINE, _LEAST_ENGINE):
        return f"Transformer Engine {found} is older than {_LEAST_ENGINE} ({_INSTALL})"
    return ""


def described(config: Config) -> str:
    """The kind of layers, and the versions of their packages."""
    if kind(config) == "torch":
        return f"torch's{_why_torch(config)}"
    versions = {
        "Transformer Engine": release(_ENGINE),
        "cuDNN": _cudnn(),
        "flash-attn": release("flash_attn"),
        "apex": release("apex"),
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())) if not redirect.REDIRECTED else "",
    }
    return ", ".join(f"{name} {version or 'none'}" for name, version in versions.items())


def _why_torch(config: Config) -> str:
    """On a GPU, why "auto" did not choose Transformer Engine."""
    if config.model.kind != "auto" or not torch.cuda.is_available():
        return ""
    wide = f'for train.precision = "{config.train.precision}" Transformer Engine has slow ones'
    return f", as {_lacking() or wide}"


def _cudnn() -> str:
    """Major, minor and patch, of 91900 or 8907."""
    number = torch.backends.cudnn.version()
    if number is None:
        return ""
    major, rest = divmod(number, 10000 if number >= 90000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def block_spec(
    config: Config, transformer: TransformerConfig, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """The layers that this pipeline rank holds in model chunk `vp_stage`."""
    of_kind = te.block_spec if kind(config) == "te" else _torch_block_spec
    return of_kind(transformer, vp_stage)


def _torch_block_spec(
    config: TransformerConfig, vp_stage: int | None
) -> TransformerBlockSubmodules:
    mlp = ModuleSpec(module=SparseMLP if config.num_moe_experts else DenseMLP)
    layer = ModuleSpec(module=Layer, submodules=TransformerLayerSubmodules(mlp=mlp))
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


def settings_of_kind(config: Config) -> dict[str, object]:
    """Settings for megatron-core's configuration that depend on the layers' kind."""
    if kind(config) == "torch":
        return {}
    return te.settings(config, has_triton=not redirect.REDIRECTED)


def settings_of_device() -> dict[str, bool]:
    """Settings for megatron-core's configuration that depend on the device."""
    return {
        "use_cpu_initialization": redirect.REDIRECTED,
        # gloo reads a sent tensor until the send is done, even if nobody waits for it.
        "deallocate_pipeline_outputs": not redirect.REDIRECTED,
    }
