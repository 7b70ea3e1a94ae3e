"""Gets the answers that are still missing: `ask(generator, log, requests, steps)`.

Each answer is in the log before the next one is waited for, so that a run which stops for any
reason has lost nothing. Where one request after another fails, the endpoint is taken for dead: the
run ends with a message, and the same command resumes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.building.answer_log import AnswerLog, key_of
from megatron_qwen3.posttrain.building.steps import Steps
from megatron_qwen3.posttrain.generators.answers import Answer, Request
from megatron_qwen3.posttrain.generators.opened import AnyGenerator

MOST_FAILURES = 32  # failed requests in a row


class Dead(ConfigError):
    """The generator no longer answers; the text has the reason."""


class Failures(dict[int, str]):
    """By number of request, why it has fewer answers than samples."""


def ask(
    generator: AnyGenerator, log: AnswerLog, requests: Sequence[Request], steps: Steps, title: str
) -> Failures:
    """Get as many answers to every request as it has samples; returns why some lack answers.

    Dead after MOST_FAILURES failures without an answer in between, refusals not counted: these are
    due to their request, and the same command would meet them again before reaching later ones.
    Dead at once where the endpoint rejects the key.
    """
    keys = [key_of(generator.label, request) for request in requests]
    missing = [n for n, (k, r) in enumerate(zip(keys, requests, strict=True)) if _left(log, k, r)]
    there = sum(r.samples - _left(log, k, r) for k, r in zip(keys, requests, strict=True))
    if there:
        steps.say(f"{title}: {there:,} answers of {generator.label} are in {log.path} already")
    failures, in_a_row = Failures(), 0
    with steps.bar(title, len(requests), done=len(requests) - len(missing)) as bar:
        for place, answers in generator.answers(_rest(log, keys, requests, missing)):
            number = missing[place]
            log.note(generator.label, generator.notes)
            log.add(keys[number], answers)
            errors = [answer for answer in answers if answer.finish == "error"]
            if errors:
                failures[number] = errors[0].error
            if len(errors) < len(answers):
                in_a_row = 0
            elif not errors[0].is_refused:
                in_a_row += 1
            bar.advance()
            if errors and errors[0].is_locked_out:
                raise Dead(f"{generator.label}: {errors[0].error}; then the same command goes on")
            if in_a_row >= MOST_FAILURES:
                raise Dead(
                    f"{generator.label}: {in_a_row} requests in a row failed, the last with: "
                    f"{errors[0].error}; answers so far are kept in {log.path}, and the same "
                    "command goes on"
                )
    for note in generator.notes:
        steps.say(f"note: {note}")
    generator.notes.clear()
    return failures


def answers_to(generator: AnyGenerator, log: AnswerLog, request: Request) -> list[Answer]:
    """The stored answers of a request, at most its number of samples."""
    return log.answers(key_of(generator.label, request))[: request.samples]


def _left(log: AnswerLog, key: str, request: Request) -> int:
    return max(0, request.samples - log.count(key))


def _rest(
    log: AnswerLog, keys: Sequence[str], requests: Sequence[Request], missing: Sequence[int]
) -> Iterator[Request]:
    """Requests for the missing samples of each, with seeds other than those of stored answers."""
    for number in missing:
        request = requests[number]
        left = _left(log, keys[number], request)
        yield replace(request, samples=left, seed=request.seed + request.samples - left)
