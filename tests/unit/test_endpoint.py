"""Generators at an endpoint: whatever it does, every request gets its answers, or the reason."""

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from endpoint import completion, send, serving
from scripted import Silent

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.building.answer_log import AnswerLog
from megatron_qwen3.posttrain.building.asking import Dead, ask
from megatron_qwen3.posttrain.generators.answers import Request
from megatron_qwen3.posttrain.generators.opened import open_generator
from megatron_qwen3.posttrain.generators.settings import EndpointLimits

ASKED = Request([{"role": "user", "content": "q"}])
QUICK = EndpointLimits(concurrency=4, tries=3, seconds=5, first_wait=0.001, longest_wait=0.05)
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def answers(reply, requests=(ASKED,), limits=QUICK, model="#m"):
    with serving(reply) as (address, asked), open_generator(address + model, limits) as generator:
        found = dict(generator.answers(requests))
        notes = generator.notes
    return [found[number] for number in range(len(requests))], asked, notes


def one(reply, request=ASKED, limits=QUICK):
    ((found,),), asked, _ = answers(reply, [request], limits)
    return found, asked


@pytest.mark.parametrize(
    ("reply", "text", "thinking", "content"),
    [
        (completion("a"), "a", "", "a"),
        (completion("<think>\nr\n</think>\n\na"), "<think>\nr\n</think>\n\na", "r", "a"),
        (completion("a", reasoning_content="r"), "<think>\nr\n</think>\n\na", "r", "a"),
        (completion("a", reasoning="r\n"), "<think>\nr\n</think>\n\na", "r", "a"),
        (completion("a", reasoning_content=None), "a", "", "a"),
        (
            completion([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
            "ab",
            "",
            "ab",
        ),
        (completion("", reasoning_content="r"), "<think>\nr\n</think>\n\n", "r", ""),
        (completion("r\n</think>\n\na"), "r\n</think>\n\na", "r", "a"),
        (completion(""), "", "", ""),
        (completion("a\ud800"), "a?", "", "a?"),
    ],
)
def test_thinking_is_understood_apart_and_in_the_text(reply, text, thinking, content):
    found, _ = one(lambda body, number: reply)
    assert (found.text, found.finish, found.error) == (text, "stop", "")
    assert (found.thinking, found.content) == (thinking, content)


def test_thinking_that_the_limit_cut_has_no_end_and_no_content():
    reply = completion(None, finish="length", reasoning_content="r")
    found, _ = one(lambda body, number: reply)
    assert (found.text, found.finish) == ("<think>\nr", "length")
    assert (found.thinking, found.content) == ("r", "")


def test_calls_of_tools_are_written_as_qwen_writes_them():
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    found, _ = one(lambda body, number: completion(None, finish="tool_calls", tool_calls=[call]))
    assert found.text == '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'
    call["function"]["arguments"] = "{"
    found, _ = one(lambda body, number: completion(None, finish="tool_calls", tool_calls=[call]))
    assert found.finish == "error" and "arguments are no JSON" in found.error


LONG = 60  # seconds, after which a reply ends that nobody cut off


def stall(handler):
    handler.connection.settimeout(LONG)
    with contextlib.suppress(OSError):
        handler.connection.recv(1)  # until the client leaves


def drip(handler, byte):
    with contextlib.suppress(OSError):  # the client leaves
        for _ in range(20 * LONG):
            handler.wfile.write(byte)
            time.sleep(0.05)


def drip_body(handler):
    send(handler, 200, b"{", Content_Length=1000)
    drip(handler, b" ")


def drip_headers(handler):
    drip(handler, b"H")


def cut_body(handler):
    send(handler, 200, json.dumps(completion("a")).encode()[:20], Content_Length=1000)


def cut_at_once(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut_chunk(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"100\r\n{")


def no_http(handler):
    handler.wfile.write(b"SSH-2.0-OpenSSH\r\n")


BAD = {
    "null": (b"null", "the reply is no table: None"),
    "no choices": ({"choices": []}, "no choices"),
    "choices null": ({"choices": None}, "no choices"),
    "choice null": ({"choices": [None]}, "has no message"),
    "content null": (completion(None), "content is null"),
    "content number": (completion(5), "content is no text"),
    "html": (b"<html><body>Sign in</body></html>", "no JSON (JSONDecodeError): '<html>"),
    "empty": (b"", "no JSON"),
    "cut JSON": (json.dumps(completion("a")).encode()[:-3], "no JSON"),
    "deep JSON": (b"[" * 100_000, "no JSON (RecursionError)"),
    "not UTF-8": (b'{"choices": "\xff\xfe"}', "no JSON (UnicodeDecodeError)"),
    "error as 200": ({"error": {"message": "overloaded"}}, "the endpoint says: overloaded"),
    "unknown end": (completion("a", finish="content_filter"), "finish_reason is 'content_filter'"),
    "no end": (completion("a", finish=None), "finish_reason is None"),
    "429": (429, "status 429: no"),
    "500": (500, "status 500: no"),
    "503 html": (lambda h: send(h, 503, b"<html>busy</html>"), "status 503: <html>busy"),
    "cut at once": (cut_at_once, "RemoteDisconnected"),
    "cut body": (cut_body, "bytes before the reply's end"),
    "cut chunk": (cut_chunk, "IncompleteRead"),
    "no HTTP": (no_http, "BadStatusLine"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_tried_again_and_then_an_answer_that_says_why(name):
    reply, reason = BAD[name]
    found, asked = one(lambda body, number: reply)
    assert (found.finish, found.text, found.ids) == ("error", "", None)
    assert reason in found.error and found.error.endswith("(3 tries)")
    assert len(asked) == 3
    found, asked = one(lambda body, number: completion("a") if number == 2 else reply)
    assert (found.text, found.error, len(asked)) == ("a", "", 3)


@pytest.mark.parametrize("reply", [stall, drip_body, drip_headers])
def test_an_answer_that_does_not_end_in_time_is_cut_off(reply):
    limits = dataclasses.replace(QUICK, seconds=0.3, tries=2)
    start = time.monotonic()
    found, asked = one(lambda body, number: reply, limits=limits)
    assert found.error == "no reply within 0.3 s (2 tries)" and len(asked) == 2
    assert time.monotonic() - start < LONG / 2


def test_a_reply_longer_than_it_may_be_is_refused_without_reading_it():
    limits = dataclasses.replace(QUICK, most_bytes=1000)

    def endless(handler):
        send(handler, 200, b'{"a": "', Content_Length=1 << 40)
        while True:
            handler.wfile.write(b"a" * 1000)

    found, asked = one(lambda body, number: endless, limits=limits)
    assert found.error == "the reply has more than 1,000 bytes" and len(asked) == 1


def test_a_dead_endpoint_fails_every_request_and_raises_nothing():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}/v1#m"
    with open_generator(address, QUICK) as generator:
        found = dict(generator.answers([ASKED] * 10))
    assert sorted(found) == list(range(10))
    assert all("ConnectionRefusedError" in answer.error for (answer,) in found.values())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_not_tried_again(status):
    found, asked = one(lambda body, number: status)
    assert found.error.partition(";")[0] == f"status {status}: no" and len(asked) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_key_does_not_follow_a_redirection(status):
    with serving(lambda body, number: completion("stolen")) as (elsewhere, asked_there):
        sends_on = lambda h: send(h, status, b"", Location=elsewhere)  # noqa: E731
        found, _ = one(lambda body, number: sends_on)
    assert found.error.startswith(f"status {status}: redirects to {elsewhere}") and not asked_there


def test_the_key_is_sent_and_stands_in_no_error():
    echo = lambda h: send(h, 401, b"wrong key: " + h.headers["Authorization"].encode())  # noqa: E731
    found, asked = one(lambda body, number: echo)
    assert asked[0][1]["Authorization"] == f"Bearer {KEY}"
    assert found.error.partition(";")[0] == "status 401: wrong key: Bearer [key]"


LONG_KEY = "sk-SECRET/0123'4567\\89abcdefghij"


def shows_the_key(form):
    """Replies with the key across whatever place an error is cut at, or at the page's end."""
    written = {
        "plain": LONG_KEY,
        "JSON": json.dumps(LONG_KEY)[1:-1].replace("/", "\\/"),
        "hexadecimal": "".join(f"\\u{ord(c):04x}" for c in LONG_KEY),
        "repr": repr(LONG_KEY)[1:-1],
    }[form]

    def reply(size, body, number):
        filler, status = "." * size, 401 if number % 2 else 503
        text = filler + written
        said = '"message": {"content": ""}'
        page = {
            "page": text,
            "message": f'{{"error": {{"message": "{text}"}}}}',
            "key": f'{{"error": {{"{text}": "a"}}}}',
            "choice": f'{{"choices": [{{"z": "{filler}", "k": "{written}"}}]}}',
            "finish": f'{{"choices": [{{"finish_reason": "{text}", {said}}}]}}',
            "body": text,
        }[body]
        if body in ("choice", "finish", "body"):
            return page.encode()
        return lambda h: send(h, status, page.encode())

    return reply


@pytest.mark.parametrize("form", ["plain", "JSON", "hexadecimal", "repr"])
@pytest.mark.parametrize("body", ["page", "message", "key", "choice", "finish", "body"])
def test_no_part_of_the_key_stands_in_an_error_wherever_it_is_cut(monkeypatch, form, body):
    if form == "repr" and body not in ("page", "body"):
        pytest.skip("no JSON")
    monkeypatch.setenv("OPENAI_API_KEY", LONG_KEY)
    reply, once = shows_the_key(form), dataclasses.replace(QUICK, tries=1, concurrency=1)
    around = {"page": 200, "message": 500, "key": 120, "choice": 120, "finish": 120, "body": 80}
    sizes = range(max(0, around[body] - 60), around[body] + 4, 6)
    with (
        serving(lambda asked, n: reply(sizes[n], body, n)) as (address, _),
        open_generator(f"{address}#m", once) as generator,
    ):
        errors = [found[0].error for _, found in generator.answers([ASKED] * len(sizes))]
    assert len(errors) == len(sizes) and all(errors)
    assert not any(part in error for error in errors for part in ("SEC", "sk-S", "u0073", "123"))


def test_a_page_that_ends_within_the_key_does_not_show_its_beginning():
    half = lambda h: send(h, 401, f"wrong key: {KEY[:9]}".encode(), Content_Length=100)  # noqa: E731
    found, _ = one(lambda body, number: half)
    assert found.error.partition(";")[0] == "status 401: wrong key: [key]"


def test_an_answer_with_the_words_of_the_key_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    found, _ = one(lambda body, number: completion("EMPTY"))
    assert found.text == "EMPTY"


@pytest.mark.parametrize(
    ("reply", "is_refused"),
    [(400, True), (413, True), (422, True), (401, False), (404, False), (302, False), (503, False)],
)
def test_a_refusal_of_one_request_is_told_from_an_endpoint_that_answers_nobody(reply, is_refused):
    found, _ = one(lambda body, number: reply, limits=dataclasses.replace(QUICK, tries=1))
    assert found.finish == "error" and found.is_refused == is_refused


def test_a_budget_that_the_endpoint_does_not_take_is_no_answer_without_one():
    def strict(body, number):
        told = b'{"error": {"message": "unknown field thinking_token_budget"}}'
        return (
            (lambda h: send(h, 400, told)) if "thinking_token_budget" in body else completion("a")
        )

    found, _ = one(strict, dataclasses.replace(ASKED, thinking_budget=5))
    assert found.is_refused and "thinking_token_budget" in found.error


@pytest.mark.parametrize("bad", ["sk-\nsecret", "sk-é"])
def test_a_key_that_no_header_takes_is_refused_and_not_repeated(monkeypatch, bad):
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with pytest.raises(ConfigError) as error:
        open_generator("http://h/v1#m")
    assert "OPENAI_API_KEY" in str(error.value) and "sk" not in str(error.value)


def test_samples_come_together_or_one_by_one():
    request = dataclasses.replace(ASKED, samples=3, seed=5)
    ((found,)), asked, _ = answers(
        lambda body, _: completion(*"abc"[: body.get("n", 1)]), [request]
    )
    assert [a.text for a in found] == ["a", "b", "c"] and len(asked) == 1
    for texts in (lambda n: "x", lambda n: "xy"[:n]):  # gives fewer than it is asked for
        one_or_two = lambda body, _: completion(*texts(body.get("n", 1)))  # noqa: B023, E731
        (found,), asked, _ = answers(one_or_two, [request])
        assert len(found) == 3 and all(a.finish == "stop" for a in found)
        assert len({body["seed"] for _, _, body in asked}) == len(asked)


def test_an_endpoint_that_refuses_several_samples_is_asked_for_one():
    request = dataclasses.replace(ASKED, samples=2)
    no = lambda h: send(h, 400, b'{"message": "only one choice is allowed"}')  # noqa: E731
    reply = lambda body, _: no if "n" in body else completion("a")  # noqa: E731
    found, asked, notes = answers(reply, [request] * 3, dataclasses.replace(QUICK, concurrency=1))
    assert all([a.text for a in group] == ["a", "a"] for group in found)
    assert len(asked) == 7 and "does not take n" in notes[0] and len(notes) == 1


def test_samples_that_came_before_a_failure_are_kept():
    request = dataclasses.replace(ASKED, samples=3)
    (found,), _, _ = answers(lambda body, n: completion("a") if n == 0 else 500, [request])
    assert [a.finish for a in found] == ["stop", "error", "error"]


def test_what_an_endpoint_does_not_take_is_left_out_and_told():
    def strict(body, number):
        for name in ("top_k", "chat_template_kwargs", "max_tokens"):
            if name in body:
                told = f"Unsupported: {name}" + " use max_completion_tokens" * (
                    name == "max_tokens"
                )
                return lambda h: send(h, 400, json.dumps({"error": {"message": told}}).encode())
        return completion("a")

    request = Request(ASKED.messages, top_k=5, enable_thinking=False)
    found, asked, notes = answers(
        strict, [request, request], dataclasses.replace(QUICK, concurrency=1)
    )
    assert [group[0].text for group in found] == ["a", "a"] and len(asked) == 5
    assert len(notes) == 2 and "left to the endpoint" in notes[0]
    assert asked[-1][2] == {
        "model": "m",
        "messages": [{"role": "user", "content": "q"}],
        "max_completion_tokens": 4096,
        "seed": 0,
    }


def test_a_refusal_that_quotes_a_bad_request_changes_nothing_for_the_others():
    def quotes(body, number):
        if body["messages"][0]["content"] == "bad":
            return lambda h: send(h, 400, json.dumps({"error": f"wrong: {body}"}).encode())
        return completion(str(body["temperature"]))

    bad = Request([{"role": "user", "content": "bad"}], temperature=0.5, samples=2)
    good = Request(ASKED.messages, temperature=0.5)
    found, _, notes = answers(quotes, [bad, good], dataclasses.replace(QUICK, concurrency=1))
    assert [a.finish for a in found[0]] == ["error", "error"] and found[1][0].text == "0.5"
    assert not notes


def test_as_many_requests_are_under_way_as_may_be_and_no_more_are_read():
    lock, now, most = threading.Lock(), [0], [0]
    four = threading.Barrier(4)  # none is answered before three others came

    def slow(body, number):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        four.wait(timeout=60)
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return completion("a")

    read = []
    requests = (read.append(k) or ASKED for k in range(12))
    with serving(slow) as (address, _), open_generator(f"{address}#m", QUICK) as generator:
        found = generator.answers(requests)
        next(found)
        assert len(read) <= 6
        assert len(list(found)) == 11
    assert most[0] == 4


def test_leaving_early_waits_for_nobody():
    limits = dataclasses.replace(QUICK, seconds=60)
    start = time.monotonic()
    reply = lambda body, number: completion("a") if number == 0 else stall  # noqa: E731
    with serving(reply) as (address, _), open_generator(f"{address}#m", limits) as generator:
        next(generator.answers([ASKED] * 8))
    assert time.monotonic() - start < LONG / 2


def test_after_it_is_left_nothing_is_sent_any_more():
    with serving(lambda body, number: completion("a")) as (address, asked):
        with open_generator(f"{address}#m", QUICK) as generator:
            pass
        ((_, (answer,)),) = generator.answers([ASKED])
        assert answer.error == "stopped" and not asked


def test_requests_a_minute_are_limited():
    limits = dataclasses.replace(QUICK, per_minute=1200)
    start = time.monotonic()
    answers(lambda body, number: completion("a"), [ASKED] * 9, limits)
    assert time.monotonic() - start >= 8 * 0.05


def test_the_only_model_is_taken_and_of_several_one_must_be_named():
    def served(*names):
        return lambda body, n: (
            {"data": [{"id": name} for name in names]}
            if body is None
            else completion(body["model"])
        )

    ((found,),), _, _ = answers(served("only"), model="")
    assert found.text == "only"
    for names, told in ((("a", "b"), "serves 2 models (a, b); name one"), ((), "serves 0 models")):
        with pytest.raises(ConfigError) as error:
            answers(served(*names), model="")
        assert told in str(error.value)
    with pytest.raises(ConfigError, match="it does not list its models"):
        answers(lambda body, number: 404, model="")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("http://user:hunter2@host/v1", "address of host has a user"),
        ("https://host/v1?key=hunter2", "address of host has a user"),
        ("ftp://host/v1", "valid: http"),
        ("http://", "valid: http"),
        ("http://host:port/v1", "makes no sense"),
        ("nowhere", "neither a folder with a model nor an address"),
    ],
)
def test_a_name_that_is_none_is_an_error_without_its_password(name, told):
    with pytest.raises(ConfigError) as error:
        open_generator(name)
    assert told in str(error.value) and "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"samples": 0},
        {"max_tokens": 0},
        {"thinking_budget": -1},
        {"top_p": 0.0},
        {"temperature": -1},
    ],
)
def test_a_request_out_of_range_is_refused(values):
    with pytest.raises(ConfigError, match=f"{next(iter(values))} = "):
        Request(ASKED.messages, **values)


@pytest.mark.parametrize("values", [{"concurrency": 0}, {"seconds": float("nan")}, {"tries": 0}])
def test_limits_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match=f"{next(iter(values))} = "):
        EndpointLimits(**values)


def test_an_endpoint_needs_no_torch():
    program = (
        "import sys\n"
        "from megatron_qwen3.posttrain.generators import endpoint, opened, own_generator\n"
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)


def test_a_wrong_key_is_told_with_its_variable_and_no_more_is_sent(monkeypatch, tmp_path):
    limits = dataclasses.replace(QUICK, concurrency=1)
    found, asked, _ = answers(lambda body, number: 401, [ASKED] * 12, limits)
    assert len(asked) == 1 and all(answer.is_locked_out for (answer,) in found)
    told = "status 401: no; the key in the environment variable OPENAI_API_KEY is not taken"
    assert {answer.error for (answer,) in found} == {f"{told} (--key-variable)"}
    with pytest.raises(ConfigError, match=told):
        answers(lambda body, number: 401, model="")
    monkeypatch.delenv("OPENAI_API_KEY")
    found, _ = one(lambda body, number: 401)
    assert "variable OPENAI_API_KEY is missing (--key-variable)" in found.error
    with (
        serving(lambda body, number: 401) as (address, _),
        open_generator(address + "#m", limits) as generator,
        AnswerLog(tmp_path / "log") as log,
        pytest.raises(Dead, match="status 401: no; the key in the environment variable OPENAI"),
    ):
        ask(generator, log, [ASKED] * 2, Silent(), "asked")


def test_a_dead_endpoint_and_a_page_of_html_are_told_apart_from_a_missing_list():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    with pytest.raises(ConfigError, match="cannot be reached .*; is it running"):
        open_generator(address, QUICK).__enter__()
    with pytest.raises(ConfigError, match="does not speak OpenAI's protocol .*; is that its addr"):
        answers(lambda body, number: b"<html>", model="")
