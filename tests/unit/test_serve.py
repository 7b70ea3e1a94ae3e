"""Servers of vLLM of a node, for ranks on others: their share of the GPUs, and their restart
when they die."""

import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.posttrain.rollouts import serve, vllm_server
from megatron_qwen3.posttrain.rollouts.vllm_server import ServerFailed, is_healthy
from megatron_qwen3.settings_rollouts import RolloutsConfig, VllmConfig

ANSWERING = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
        if self.path == "/die": sys.exit(3)
    def log_message(self, *_): pass
class Once(http.server.HTTPServer):
    def handle_error(self, *_): pass
server = Once(("127.0.0.1", {port}), Handler)
server.serve_forever()
"""


def config_of(home, **vllm):
    lines = ["model.preset=tiny-dense", "train.steps=1", f"run.dir={home}", "run.device=cpu"]
    served = VllmConfig(**{"python": sys.executable, "restarts": 1} | vllm)
    return replace(load([], lines), rollouts=RolloutsConfig(engine="vllm", vllm=served))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("visible", "servers", "expected"),
    [
        ("0,1,2,3", 2, ("0,1", "2,3")),
        ("4,5", 2, ("4", "5")),
        ("0,1", 1, ("0,1",)),
        ("", 2, ()),
    ],
)
def test_servers_share_the_gpus_of_their_node(visible, servers, expected):
    assert serve.shared(visible, servers) == expected


def test_gpus_that_cannot_be_shared_evenly_are_told():
    with pytest.raises(ConfigError, match="--servers 3 does not divide the 4 GPUs"):
        serve.shared("0,1,2,3", 3)


def test_gpus_that_the_settings_name_go_first(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    config = serve.config_of(config_of(tmp_path, servers=1, gpus=("7",)), 1)
    assert config.rollouts.vllm.gpus == ("7",)
    assert serve.config_of(config_of(tmp_path), 2).rollouts.vllm.gpus == ("0", "1")
    with pytest.raises(ConfigError, match="has 1 entries, but 2 servers"):
        serve.config_of(config_of(tmp_path, gpus=("7",)), 2)


def test_servers_that_never_come_up_end_all_with_the_reason(tmp_path, monkeypatch, capfd):
    text = "import sys; sys.exit('no GPU is free')"
    monkeypatch.setattr(vllm_server, "command", lambda *_: [sys.executable, "-c", text])
    (tmp_path / "home").mkdir()
    with pytest.raises(ServerFailed, match="no GPU is free"):
        serve.serve(config_of(tmp_path), "127.0.0.1", free_port(), tmp_path / "home")
    assert capfd.readouterr().err.count("started again") == 1  # rollouts.vllm.restarts


def test_a_server_that_answered_and_died_is_started_again_however_often(tmp_path, monkeypatch):
    """It is asked to die three times, more often than one that does not come up may."""
    port = free_port()
    text = ANSWERING.format(port=port)
    text = text.replace("sys.exit(3)", "__import__('os')._exit(3)")
    monkeypatch.setattr(vllm_server, "command", lambda *_: [sys.executable, "-c", text])
    monkeypatch.setattr(serve, "_POLL_SECONDS", 0.05)
    (tmp_path / "home").mkdir()
    faults = []

    def asking():
        for _ in range(3):
            assert until(lambda: is_healthy(f"http://127.0.0.1:{port}")), "not up"
            time.sleep(0.3)  # that it was seen
            with socket.create_connection(("127.0.0.1", port)) as wire:
                wire.sendall(b"GET /die HTTP/1.0\r\n\r\n")
                wire.recv(1)
        assert until(lambda: is_healthy(f"http://127.0.0.1:{port}")), "not up again"

    class Enough(Exception):
        pass

    def look(self, restarts, whole=serve._Watched.look):
        if not asker.is_alive():
            raise Enough
        whole(self, restarts)

    monkeypatch.setattr(serve._Watched, "look", look)
    monkeypatch.setattr(threading, "excepthook", lambda found: faults.append(found.exc_value))
    asker = threading.Thread(target=asking)
    asker.start()
    with pytest.raises(Enough):
        serve.serve(config_of(tmp_path), "127.0.0.1", port, tmp_path / "home")
    asker.join()
    assert not faults
    assert not is_healthy(f"http://127.0.0.1:{port}"), "it outlives what started it"


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_wrong_setting_is_told_with_status_2(tmp_path):
    words = ["--host", "a", "--port", "1", "rollouts.vlm.python=x"]
    module = "megatron_qwen3.posttrain.rollouts.serve"
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    assert done.returncode == 2 and "is not a setting" in done.stderr
