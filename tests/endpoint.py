"""An endpoint of OpenAI's protocol for tests, which misbehaves as it is told.

    with serving(reply) as (address, asked):            # address ends in /v1
        ...

`reply(body, number)` is called with each request's body (None for a GET) and its number from 0, or
`reply(path, body)` where it is served with_path; it gives a table (a reply), bytes (a body), a
status, or a function of the handler that does as it likes. `asked` has (path, headers, body) of all
requests.
"""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(*texts, finish="stop", **more):
    """The reply with these contents."""
    messages = [{"role": "assistant", "content": text, **more} for text in texts]
    return {"choices": [{"message": m, "finish_reason": finish} for m in messages]}


def send(handler, status, body, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    if "Content_Length" not in headers:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextlib.contextmanager
def serving(reply, with_path=False):
    asked, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body):
            with lock:
                number = len(asked)
                asked.append((self.path, dict(self.headers), body))
            made = reply(self.path, body) if with_path else reply(body, number)
            with contextlib.suppress(OSError):  # the other side may have left
                if callable(made):
                    made(self)
                elif isinstance(made, int):
                    send(self, made, b'{"error": {"message": "no"}}')
                else:
                    send(self, 200, made if isinstance(made, bytes) else json.dumps(made).encode())

        def do_GET(self):
            self.answer(None)

        def do_POST(self):
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
