"""Finds the model that --model names: a size, a TOML file, a config.json, a name of the hub.

    named_model("235b-a22b"); named_model("Qwen/Qwen3-8B"); named_model("exports/mine")

Qwen's published models are known without their files. Nothing here imports torch.
"""

from pathlib import Path

from megatron_qwen3 import config as settings
from megatron_qwen3 import hub
from megatron_qwen3.config import ConfigError
from megatron_qwen3.convert.hf_config import read_config
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.settings import ModelConfig
from megatron_qwen3.storage.folder import SETTINGS_FILE
from megatron_qwen3.toml import did_you_mean

_QWEN = "qwen/"


def named_model(name: str) -> ModelConfig:
    """The model's settings. Raises ConfigError, with the valid kinds, for any other name."""
    path = Path(name)
    if name.endswith(".toml") or (path / SETTINGS_FILE).is_file():
        return settings.load([name], any_length=True).model
    if path.name == "config.json" or (path / "config.json").is_file():
        return read_config(path.parent if path.name == "config.json" else path).model
    if preset := _preset(name):
        return settings.load([], [f"model.preset={preset}", "train.steps=1"]).model
    if hub.is_id(name):
        return read_config(hub.folder_of(name, "config.json")).model
    sizes = [preset.removeprefix("qwen3-") for preset in PRESETS]
    guess = did_you_mean(name.lower(), [*PRESETS, *sizes])
    raise ConfigError(
        f"--model {name} is neither a size ({', '.join(sizes)}) nor a TOML file, a config.json, "
        f"its folder or a name of Hugging Face's hub (Qwen/Qwen3-8B){guess}"
    )


def _preset(name: str) -> str:
    """The preset of a size, or of a name that Qwen uses; "" for none."""
    short = name.lower().removeprefix(_QWEN)
    for preset in (short, short.removesuffix("-base"), f"qwen3-{short}"):
        if preset in PRESETS:
            return preset
    return ""
