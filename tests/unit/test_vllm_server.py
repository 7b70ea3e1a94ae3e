"""Servers that a run starts: how, when they fail to start, and that none outlives the run."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from endpoint import serving

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.posttrain.rollouts import vllm_server
from megatron_qwen3.posttrain.rollouts.vllm_check import check
from megatron_qwen3.posttrain.rollouts.vllm_server import (
    LEASH,
    Server,
    ServerFailed,
    command,
    environment,
)
from megatron_qwen3.settings_rollouts import RolloutsConfig, VllmConfig

SECONDS = 20  # that a busy machine may need


def config_of(home, **vllm):
    lines = ["model.preset=tiny-dense", "train.steps=1", f"run.dir={home}"]
    served = VllmConfig(**{"python": sys.executable} | vllm)
    return replace(load([], lines), rollouts=RolloutsConfig(engine="vllm", vllm=served))


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_listens_on_the_loopback_and_draws_from_the_whole_distribution(tmp_path):
    config = config_of(tmp_path, options=("--tensor-parallel-size=2",))
    words = command(config, tmp_path, 4321, on_cpu=True)
    assert words[0] == sys.executable and words[5] == str(tmp_path / "model")
    pairs = dict(zip(words, words[1:], strict=False))
    assert pairs["--host"] == "127.0.0.1" and pairs["--port"] == "4321"
    assert pairs["--dtype"] == "bfloat16" and pairs["--max-model-len"] == "4096"
    assert pairs["--logprobs-mode"] == "processed_logprobs"
    assert pairs["--generation-config"] == "vllm" and pairs["--block-size"] == "32"
    assert pairs["--kv-cache-memory-bytes"] == str(1 << 30)
    assert words[-1] == "--tensor-parallel-size=2" and "--disable-uvicorn-access-log" in words
    on_gpu = command(config_of(tmp_path), tmp_path, 1, on_cpu=False)
    for option in ("--block-size", "--kv-cache-memory-bytes", "--enforce-eager"):
        assert option not in on_gpu


def test_a_server_knows_nothing_of_our_ranks(tmp_path, monkeypatch):
    ours = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
    for name in (*ours, "VLLM_CPU_KVCACHE_SPACE", "MINE"):
        monkeypatch.setenv(name, "1")
    config = config_of(tmp_path, servers=2, gpus=("6", "7"))
    found = environment(config, 1, on_cpu=False)
    assert not found.keys() & {*ours, "VLLM_CPU_KVCACHE_SPACE"} and found["MINE"] == "1"
    assert found["CUDA_VISIBLE_DEVICES"] == "7" and found["VLLM_SERVER_DEV_MODE"] == "1"
    assert os.listdir(found["PYTHONPATH"]) and "vllm.py" not in os.listdir(found["PYTHONPATH"])
    on_cpu = environment(config, 1, on_cpu=True)
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == "" and on_cpu["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_servers_on_a_cpu_share_its_cores_and_do_not_spin(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("megatron_qwen3.posttrain.rollouts.vllm_server.cores", lambda: 8)
    for servers, threads in ((1, "8"), (3, "2"), (9, "1")):
        found = environment(config_of(tmp_path, servers=servers), 0, on_cpu=True)
        assert found["OMP_NUM_THREADS"] == threads and found["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment(config_of(tmp_path, servers=9), 0, on_cpu=True)["OMP_NUM_THREADS"] == "5"
    assert "OMP_WAIT_POLICY" not in environment(config_of(tmp_path), 0, on_cpu=False)


FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
{then}
"""


def child_in(log):
    """The process that FAMILY named; 0 before it did."""
    return next((int(line) for line in log.read_text().splitlines() if line.isdigit()), 0)


def scripted(monkeypatch, text):
    monkeypatch.setattr(vllm_server, "command", lambda *_: [sys.executable, "-c", text])


def test_killing_a_server_ends_all_that_it_started(tmp_path, monkeypatch):
    scripted(monkeypatch, FAMILY.format(then="time.sleep(600)"))
    server = Server(config_of(tmp_path), 0, True, tmp_path, tmp_path / "log")
    server.start()
    until(lambda: child_in(tmp_path / "log"))
    child = child_in(tmp_path / "log")
    assert psutil.pid_exists(child) and server.is_running
    server.kill()
    until(lambda: gone(child))
    assert not server.is_running


def test_what_a_server_leaves_behind_when_it_ends_is_ended_and_its_last_words_are_told(
    tmp_path, monkeypatch
):
    scripted(monkeypatch, FAMILY.format(then="sys.exit('no \\x1b[1m memory')"))
    server = Server(config_of(tmp_path), 0, True, tmp_path, tmp_path / "log")
    server.start()
    with pytest.raises(ServerFailed, match=r"no \\x1b\[1m memory.*ended with status 1") as told:
        until(server.is_ready)
    assert "\n" not in str(told.value) and str(tmp_path / "log") in str(told.value)
    until(lambda: gone(child_in(tmp_path / "log")))


SHARING = """
import os, time
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=64)
print("shares", memory.name, os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["it is killed", "it dies"])
def test_what_a_server_shared_by_name_goes_with_it(tmp_path, monkeypatch, how):
    """vLLM's processes talk by hundreds of megabytes in /dev/shm."""
    scripted(monkeypatch, SHARING)
    log = tmp_path / "log"
    server = Server(config_of(tmp_path), 0, True, tmp_path, log)
    server.start()
    until(lambda: log.read_text().partition("shares ")[2].endswith("\n"))
    name, pid = log.read_text().partition("shares ")[2].split()[:2]
    memory = Path("/dev/shm") / name
    assert memory.exists()
    if how == "it dies":
        os.kill(int(pid), signal.SIGKILL)
        until(lambda: not server.is_running)
    server.kill()
    assert not memory.exists()


def test_a_server_that_does_not_answer_in_time_has_failed(tmp_path, monkeypatch):
    scripted(monkeypatch, "import time; time.sleep(600)")
    server = Server(config_of(tmp_path, start_seconds=0.3), 0, True, tmp_path, tmp_path / "log")
    server.start()
    with pytest.raises(ServerFailed, match=r"within rollouts.vllm.start_seconds = 0.3"):
        until(server.is_ready)
    server.kill()


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_servers_and_their_weights_go_with_a_run_that_is_killed(tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (tmp_path / "family.py").write_text(FAMILY.format(then="time.sleep(600)"))
    parent = f"""
import os, subprocess, sys, time
command = [sys.executable, {str(LEASH)!r}, str(os.getpid()), {str(weights)!r}]
command += [sys.executable, {str(tmp_path / "family.py")!r}]
with open({str(tmp_path / "log")!r}, "wb") as log:
    leash = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)
print(leash.pid, flush=True)
time.sleep(600)
"""
    run = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    leash = int(run.stdout.readline())
    until(lambda: child_in(tmp_path / "log"))
    child = child_in(tmp_path / "log")
    assert weights.is_dir() and psutil.pid_exists(child)
    run.send_signal(signal.SIGKILL)
    run.wait()
    until(lambda: gone(child) and gone(leash))
    assert not weights.exists()
    assert "was left by who started it" in (tmp_path / "log").read_text()


def test_what_keeps_servers_from_starting_is_told_before_any_rank_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"python = /none/python cannot be run: No such file"):
        check(config_of(tmp_path, python="/none/python"))
    told = r"rollouts.vllm.python = .* has no vLLM; set it"
    with pytest.raises(ConfigError, match=told):
        check(config_of(tmp_path))
    with pytest.raises(ConfigError, match=r"rollouts.vllm.python is not set, and .* has no vLLM"):
        check(config_of(tmp_path, python=""))
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho PackageNotFoundError: vllm >&2; exit 1\n")
    stub.chmod(0o755)
    with pytest.raises(ConfigError, match="without the metadata that it asks for"):
        check(config_of(tmp_path, python=str(stub)))
    stub.write_text("#!/bin/sh\necho 0.32.0\n")
    check(config_of(tmp_path, python=str(stub)))
    with pytest.raises(ConfigError, match=r"rollouts.vllm.folder = .*none is no folder"):
        check(config_of(tmp_path, python=str(stub), folder=str(tmp_path / "none")))


def test_addresses_where_nobody_answers_are_told(tmp_path):
    worker = {"results": [{"error": "a is missing"}]}
    with serving(lambda body, number: worker if body else {}) as (address, asked):
        check(config_of(tmp_path, python="", urls=(address.removesuffix("/v1"),)))
        assert [path for path, *_ in asked] == ["/health", "/collective_rpc"]
    with pytest.raises(ConfigError, match=r"urls: http://127.0.0.1:9 does not answer at /health"):
        check(config_of(tmp_path, python="", urls=("http://127.0.0.1:9",)))


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (404, r"is no server that takes weights \(status 404: no\); start it by python -m"),
        (500, r"is no server that takes weights \(.*: status 500: no\)"),
        (401, r"status 401: no; the key in the environment variable VLLM_API_KEY is missing"),
    ],
)
def test_an_address_of_another_server_or_with_another_key_is_told(tmp_path, reply, told):
    with serving(lambda body, number: reply if body else {}) as (address, _):
        url = address.removesuffix("/v1")
        with pytest.raises(ConfigError, match=rf"rollouts.vllm.urls: {url}:? {told}"):
            check(config_of(tmp_path, python="", urls=(url,)))


FAULTS = {
    "engine=own servers=2": r"servers = 2 goes with rollouts.engine = \"vllm\", not \"own\"",
    "urls=['localhost:80']": "is no address of a server",
    "urls=['http://a:1'] servers=2": "names some that run already",
    "servers=2 gpus=['1']": r"gpus has 1 entries, but rollouts.vllm.servers = 2",
    "options=['x']": "is no option",
    "options=['--port=80']": "--port is set by the run",
    "refit=nccl device=cpu": "is between GPUs",
    "sequence_length=32": "is too short for the prompts that servers are checked with",
}


@pytest.mark.parametrize("given", FAULTS)
def test_settings_that_do_not_go_together_are_told_with_both_sides(given):
    tables = {"engine": "rollouts", "device": "run", "sequence_length": "data"}
    lines = [f"{tables.get(s.split('=')[0], 'rollouts.vllm')}.{s}" for s in given.split()]
    base = ["run.mode=rl", "model.preset=tiny-dense", "train.steps=1", "rollouts.engine=vllm"]
    with pytest.raises(ConfigError, match=FAULTS[given]):
        load([], [*base, *lines])
