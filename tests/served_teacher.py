"""A teacher over real HTTP: vLLM's /v1/completions with prompt_logprobs, of a made-up model.

with served(320) as (address, bodies): ...
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np


def log_p_after(ids, vocabulary):
    """The served model's scores after these ids, [V]."""
    logits = np.random.default_rng([7, *ids]).normal(size=vocabulary) * 2
    return logits - np.log(np.exp(logits).sum())


def reply_to(body, vocabulary):
    """As vLLM 0.32 replies: of each id the K most probable, and the id itself, in any order."""
    ids, rows = body["prompt"], [None]
    for place in range(1, len(ids)):
        log_p = log_p_after(ids[:place], vocabulary)
        order = np.argsort(-log_p)
        named = {*order[: body["prompt_logprobs"]].tolist(), ids[place]}
        rows.append(
            {
                str(token): {
                    "logprob": float(log_p[token]),
                    "rank": int(np.flatnonzero(order == token)[0]) + 1,
                    "decoded_token": "?",
                }
                for token in sorted(named)
            }
        )
    choice = {"index": 0, "text": "", "prompt_logprobs": rows, "prompt_token_ids": ids}
    return {"object": "text_completion", "choices": [choice]}


@contextmanager
def served(vocabulary, change=lambda reply, body: reply):
    """The address of a server whose replies `change` spoils, and the bodies that came."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._send({"object": "list", "data": [{"id": "big"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append((self.path, body))
            self._send(change(reply_to(body, vocabulary), body))

        def _send(self, content):
            status = content if isinstance(content, int) else 200
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    finally:
        server.shutdown()
        server.server_close()
