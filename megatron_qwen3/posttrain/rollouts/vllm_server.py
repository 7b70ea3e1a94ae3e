"""Processes of `vllm serve` that a run starts, each on a free port of this machine.

    server = Server(config, 0, on_cpu, folder=model, log=run_dir / "vllm" / "server_0.log")
    server.start()
    server.is_ready()              # ServerFailed with the end of its log, where it does not start
    server.kill()                  # it and its child processes

A server of a run listens on the loopback only, because the calls that change its weights must not
be open to others. Its environment has no variables of our launcher, which its own workers would
take for theirs, and it ends when the run ends (`leash.py`). Nothing here imports torch.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from megatron_qwen3.cores import cores
from megatron_qwen3.posttrain.rollouts import leash
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import make

IN_SERVER = Path(__file__).parent / "in_server"
LEASH = Path(leash.__file__)
WORKER = "mq3_refit.Refit"
MODEL_FOLDER = "model"  # has config.json
MODEL = "policy"  # the name that it is served under
BLOCK = 32  # tokens of a cache block on a CPU, the least possible there
CPU_CACHE_BYTES = 1 << 30
_HOST = "127.0.0.1"
_LAST_LINES, _LINE = 12, 300
_HEALTH_SECONDS = 5.0
_GONE_SECONDS = 5.0  # unreaped dead processes look alive
_POLL_SECONDS = 0.02
# Of torchrun and SLURM: they describe our ranks, not a server's workers.
_OURS = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "TORCH_FR_")


class ServerFailed(ConfigError):
    """A server did not start, or died; the text ends with the last lines of its log."""


def python_of(config: Config) -> str:
    """The Python interpreter that runs the servers."""
    return config.rollouts.vllm.python or sys.executable


def command(config: Config, folder: Path, port: int, on_cpu: bool, host: str = _HOST) -> list[str]:
    """`vllm serve` for the model of a folder's config.json, with the options that rollouts need.

    It starts with arbitrary weights, since a refit comes before the first request.
    Log-probabilities are of the logits that tokens are drawn from, generation_config.json is
    ignored, and no tokenizer is loaded: requests and replies are ids.
    """
    settings = config.rollouts.vllm
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[config.train.precision]
    words = [
        python_of(config),
        "-P",
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        str(folder / MODEL_FOLDER),
    ]
    words += ["--served-model-name", MODEL, "--host", host, "--port", str(port)]
    words += ["--dtype", dtype, "--max-model-len", str(config.data.sequence_length)]
    words += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    words += ["--enable-scale-out", "--skip-tokenizer-init", "--seed", "0"]
    words += ["--disable-uvicorn-access-log"]  # a line for each answer would fill a disk
    words += ["--load-format", "dummy", "--worker-extension-cls", WORKER]
    cache = settings.cache_bytes
    if on_cpu:
        words += ["--enforce-eager", "--block-size", str(BLOCK)]
        cache = cache or CPU_CACHE_BYTES
    if cache:
        words += ["--kv-cache-memory-bytes", str(cache)]
    return words + list(settings.options)


def environment(config: Config, number: int, on_cpu: bool) -> dict[str, str]:
    """Our environment without the variables of our own ranks, with those that a server needs."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(_OURS)}
    kept.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override --kv-cache-memory-bytes
    kept |= {
        "PYTHONPATH": str(IN_SERVER),
        "PYTHONSAFEPATH": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # enables the calls of a refit
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    gpus = config.rollouts.vllm.gpus
    if on_cpu:
        kept["CUDA_VISIBLE_DEVICES"] = ""
        kept.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else all servers share core 0
        # Threads that wait for each other spin; where other servers or ranks use the cores, that
        # takes ten times as long as the computation.
        threads = cores() // config.rollouts.vllm.servers
        kept.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
        kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    elif gpus:
        kept["CUDA_VISIBLE_DEVICES"] = gpus[number]
    return kept


class Server:
    """One server, which can be restarted after it died."""

    def __init__(
        self,
        config: Config,
        number: int,
        on_cpu: bool,
        folder: Path,
        log: Path,
        address: tuple[str, int] | None = None,
    ) -> None:
        """address: host and port, for servers that other machines ask (`serve.py`); None: the
        loopback, at a free port."""
        self._config, self.number, self._on_cpu = config, number, on_cpu
        self._folder, self._log, self._address = folder, log, address
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0
        self.url = ""

    def start(self) -> None:
        """Start the processes without waiting; `self.url` is their address."""
        self.kill()
        make(self._log.parent)
        host, port = self._address or (_HOST, free_port())
        self.url = f"http://{host}:{port}"
        words = command(self._config, self._folder, port, self._on_cpu, host)
        with self._log.open("ab") as log:
            log.write(f"== {' '.join(words)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-S",
                    "-P",
                    str(LEASH),
                    str(os.getpid()),
                    str(self._folder),
                    *words,
                ],
                env=environment(self._config, self.number, self._on_cpu),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._deadline = time.monotonic() + self._config.rollouts.vllm.start_seconds

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_late(self) -> bool:
        """Whether it exceeded its time to start."""
        return time.monotonic() > self._deadline

    def is_ready(self) -> bool:
        """Whether it answers by now. ServerFailed where it ended or is too late."""
        if not self.is_running:
            raise ServerFailed(f"{self} ended: {self.last_words()}")
        if is_healthy(self.url):
            return True
        if self.is_late:
            seconds = self._config.rollouts.vllm.start_seconds
            raise ServerFailed(
                f"{self} did not answer within rollouts.vllm.start_seconds = {seconds:g}: "
                f"{self.last_words()}"
            )
        return False

    def kill(self) -> None:
        """Kill it and every process that it started, and wait until they free their memory."""
        if self._process is None:
            return
        leash.end(self._process.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            until = time.monotonic() + _GONE_SECONDS
            while time.monotonic() < until:
                os.killpg(self._process.pid, 0)  # raises once no process is left
                time.sleep(_POLL_SECONDS)
        self._process.wait()
        self._process = None

    def last_words(self) -> str:
        """The end of its log, in one line."""
        try:
            text = self._log.read_bytes()[-_LAST_LINES * _LINE :].decode("utf-8", "replace")
        except OSError as error:
            return f"no log ({error.strerror})"
        lines = [line.strip()[:_LINE] for line in text.splitlines() if line.strip()]
        return shown(f"{' | '.join(lines[-_LAST_LINES:])} (all of it: {self._log})")

    def __str__(self) -> str:
        return f"vLLM's server {self.number} at {self.url}"


def is_healthy(url: str) -> bool:
    """Whether a server's /health is fine; bypasses proxies."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=_HEALTH_SECONDS) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
