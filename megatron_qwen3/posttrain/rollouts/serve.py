"""Runs the vLLM servers of one node, for a run whose ranks are on other nodes.

    python -m megatron_qwen3.posttrain.rollouts.serve --host NODE --port 30000 --servers 2 \\
        STAGE.toml MODEL.toml [key=value …]

It takes the run's own arguments, so that servers have its model, lengths and options; the run names
them in rollouts.vllm.urls. They share the node's GPUs evenly, or as rollouts.vllm.gpus says. A
server that dies is started again. All end with status 1 where one dies rollouts.vllm.restarts times
without having answered in between, or does not answer within rollouts.vllm.start_seconds. They
listen on the network and accept calls that change weights, so the network must be trusted.
examples/slurm/rl.sbatch calls this. torch is imported only where run.device = "auto" has to find
out whether there are GPUs.
"""

import dataclasses
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_qwen3 import config as settings
from megatron_qwen3 import entry
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.convert import hf_config
from megatron_qwen3.posttrain.rollouts.vllm_server import MODEL_FOLDER, Server, ServerFailed
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import make

_POLL_SECONDS = 0.5
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Serve until told to end; the exit status."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("--host", required=True, help="this node's name for other nodes")
    parser.add_argument("--port", type=int, required=True, help="of the first server")
    parser.add_argument("--servers", type=int, default=1, help="default: 1")
    parser.add_argument("settings", nargs="+", metavar="FILE.toml | key=value")
    given = entry.parse(parser, arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        asked = settings.load(*settings.split(given.settings))
        with tempfile.TemporaryDirectory(prefix="mq3-serve-") as home:
            config = config_of(asked, given.servers)
            return serve(config, given.host, given.port, Path(home))
    except (ConfigError, ServerFailed) as error:
        print(shown(f"error: {error}"), file=sys.stderr, flush=True)
        return 1 if isinstance(error, ServerFailed) else 2


def _leave(*_: object) -> None:
    raise SystemExit(0)


def config_of(config: Config, servers: int) -> Config:
    """The run's settings with the number of servers and the GPUs of each.

    ConfigError where they cannot share the node's GPUs evenly.
    """
    vllm = config.rollouts.vllm
    gpus = vllm.gpus or shared(os.environ.get("CUDA_VISIBLE_DEVICES", ""), servers)
    if gpus and len(gpus) != servers:
        raise ConfigError(f"rollouts.vllm.gpus has {len(gpus)} entries, but {servers} servers")
    vllm = dataclasses.replace(vllm, servers=servers, gpus=gpus)
    return dataclasses.replace(config, rollouts=dataclasses.replace(config.rollouts, vllm=vllm))


def shared(visible: str, servers: int) -> tuple[str, ...]:
    """The visible GPUs, as in CUDA_VISIBLE_DEVICES, split among servers; () without GPUs."""
    gpus = [gpu for gpu in visible.split(",") if gpu]
    if not gpus:
        return ()
    if len(gpus) % servers:
        raise ConfigError(f"--servers {servers} does not divide the {len(gpus)} GPUs of this node")
    each = len(gpus) // servers
    return tuple(",".join(gpus[n * each : (n + 1) * each]) for n in range(servers))


def serve(config: Config, host: str, port: int, home: Path) -> int:
    """Keep the servers running. ServerFailed where one does not start."""
    on_cpu = config.run.device == "cpu" or not _has_gpus()
    make(home / MODEL_FOLDER)
    length, dtype = config.data.sequence_length, _DTYPES[config.train.precision]
    hf_config.write_config(home / MODEL_FOLDER, config.model, config.rope, length, dtype, {})
    logs = config.run_dir / "vllm"
    servers = [
        Server(config, n, on_cpu, home, logs / f"{host}_{n}.log", (host, port + n))
        for n in range(config.rollouts.vllm.servers)
    ]
    watched = [_Watched(server) for server in servers]
    try:
        for server in servers:
            server.start()
        while True:
            for each in watched:
                each.look(config.rollouts.vllm.restarts)
            time.sleep(_POLL_SECONDS)
    finally:
        for server in servers:
            server.kill()


@dataclasses.dataclass
class _Watched:
    """A server; whether it has answered since its start, and how often it died before that."""

    server: Server
    is_up: bool = False
    deaths: int = 0

    def look(self, restarts: int) -> None:
        """Start it again if it died. ServerFailed where it does not start."""
        try:
            if not self.is_up:
                self.is_up = self.server.is_ready()
                self.deaths = 0 if self.is_up else self.deaths
            elif not self.server.is_running:
                raise ServerFailed(f"{self.server} ended: {self.server.last_words()}")
        except ServerFailed as error:
            if self.server.is_running or self.deaths >= restarts:
                raise
            print(shown(f"started again: {error}"), file=sys.stderr, flush=True)
            self.is_up, self.deaths = False, self.deaths + 1
            self.server.start()


def _has_gpus() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    entry.run(main)
