#!/usr/bin/env python
"""A stand-in for vLLM's server: its command line, its calls, and transformers' results.

    rollouts.vllm.python = tests/slurm/stand_in.py   # is called as `python -P -m … serve FOLDER …`

A run sees the same of it as of vLLM: it begins with any weights, takes those of a folder
when it is told to, draws from the whole distribution by the seeds that it is given, and its
log-probabilities are of the weights that it has, so that a run which did not give them finds out.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM


class Server(BaseHTTPRequestHandler):
    lock, version, model = Lock(), "", None

    def do_GET(self):
        self._reply({})

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        path = self.path.partition("?")[0]
        if path == "/collective_rpc":
            self._reply({"results": [self._call(body["method"], **body["kwargs"])]})
        elif path == "/inference/v1/generate":
            with self.lock:
                self._reply({"choices": list(self._choices(body))})
        elif path == "/update_weight_version":
            type(self).version = body["new_version"]
            self._reply({})
        else:
            self._reply({"success": True})

    def log_message(self, *_):
        pass

    def _call(self, method, **arguments):
        if method == "mq3_from_folder":
            weights = {}
            for file in sorted(Path(arguments["path"]).glob("*.safetensors")):
                weights |= load_file(file)
            with self.lock:
                self.model.load_state_dict(weights, strict=False)
        return {"rank": 0}

    @torch.no_grad()
    def _choices(self, body):
        asked = body["sampling_params"]
        for sample in range(asked["n"]):
            random = torch.Generator().manual_seed(asked["seed"] + sample)
            row, content, finish = list(body["token_ids"]), [], "length"
            while len(content) < asked["max_tokens"] and finish == "length":
                logits_V = self.model(torch.tensor([row])).logits[0, -1] / asked["temperature"]
                token = int(torch.multinomial(logits_V.softmax(-1), 1, generator=random))
                log_prob = float(logits_V.log_softmax(-1)[token])
                content.append({"token_id": token, "logprob": log_prob})
                row.append(token)
                finish = "stop" if token in asked["stop_token_ids"] else finish
            yield {
                "index": sample,
                "token_ids": [entry["token_id"] for entry in content],
                "logprobs": {"content": content},
                "finish_reason": finish,
                "weight_versions": [{"version": self.version, "start": 0, "end": len(content)}],
            }

    def _reply(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main():
    words = sys.argv[1:]
    if "-c" in words:  # asked which vLLM it has
        print("stand-in")
        return
    options = dict(zip(words, words[1:], strict=False))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = words[words.index("serve") + 1]
    config = AutoConfig.from_pretrained(folder)
    Server.model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    address = options["--host"], int(options["--port"])
    ThreadingHTTPServer(address, Server).serve_forever()


if __name__ == "__main__":
    main()
