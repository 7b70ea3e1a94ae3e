"""vLLM as a teacher: log-probabilities of given ids from `/v1/completions`, `prompt_logprobs`.

    with EndpointTeacher("http://localhost:8000/v1", tokenizer, 20, EndpointLimits()) as teacher:
        write(dialogs, teacher.about, 20, teacher.score)

A sample is sent as ids, never as text, and each reply must be about these ids. The server must
allow as many log-probabilities (`--max-logprobs`, 20 by default), and a context of one token more
than a sample has. The log-probabilities are at temperature 1. No torch.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSample
from megatron_qwen3.posttrain.generators.endpoint import UNNAMED, Endpoint, Named
from megatron_qwen3.posttrain.generators.replies import Malformed, RequestRefused, ShutOut
from megatron_qwen3.posttrain.generators.settings import EndpointLimits
from megatron_qwen3.posttrain.generators.wire import Failure
from megatron_qwen3.posttrain.teachers.teacher_set import Targets, Unscored, none, trained_labels
from megatron_qwen3.posttrain.teachers.teacher_settings import tokenizer_sha256

_MOST_DIGITS = 18  # of an id
_CHECKED_IDS = 8
_LEAST = -1e30  # a float32 holds it; JSON can name whole numbers that no float does
_LEAST_REST = float(np.finfo(np.float32).eps)  # a smaller rest is rounding of the sum


class Told(NamedTuple):
    """targets: of the trained labels of a sample; label_log_probs: float32 [T], of themselves."""

    targets: Targets
    label_log_probs: npt.NDArray[np.float32]


class EndpointTeacher:
    """A scorer. Entering raises ConfigError where the endpoint does not list its models.

    tokenizer_path: of the served model's tokenizer, whose sha256 is `tokenizer`. vocab_size: an
    upper bound of the ids in replies.
    """

    leads = True
    part_labels = 1 << 15  # one part takes minutes, the most that a stop loses

    def __init__(
        self,
        name: str,
        tokenizer_path: str,
        vocab_size: int,
        top_k: int,
        limits: EndpointLimits,
        named: Named = UNNAMED,
    ) -> None:
        self._endpoint, self._limits = Endpoint(name, limits, named), limits
        self._top_k, self._vocab_size = top_k, vocab_size
        self.tokenizer = tokenizer_sha256(tokenizer_path)

    def __enter__(self) -> Self:
        self._endpoint.__enter__()
        self.about = {
            "teacher": f"{self._endpoint.address}#{self._endpoint.model}",
            "vocab_size": self._vocab_size,
            "temperature": 1.0,
        }
        return self

    def __exit__(self, *_: Any) -> None:
        self._endpoint.__exit__(None, None, None)

    def follow(self) -> None:
        raise AssertionError("an endpoint has no other ranks")

    def check(self) -> None:
        """Score a few ids. ConfigError, in a line, where the endpoint does not return their
        log-probabilities."""
        ids = np.arange(min(_CHECKED_IDS, self._vocab_size))
        try:
            found = self._one(DialogSample(ids, np.ones(len(ids), bool)))
            if isinstance(found, RequestRefused):
                raise found
        except (Failure, RequestRefused) as error:
            raise ConfigError(self._endpoint.fault(error)) from None

    def score(self, samples: Sequence[DialogSample]) -> list[Targets]:
        """Targets of the trained labels of each sample. Raises as `told` does."""
        return [one.targets for one in self.told(samples)]

    def told(self, samples: Sequence[DialogSample]) -> list[Told]:
        """Targets and label log-probabilities of each sample. Unscored where the endpoint refuses a
        sample, such as one that is too long; ConfigError where it answers nothing."""
        with ThreadPoolExecutor(self._limits.concurrency) as pool:
            try:
                found = list(pool.map(self._one, samples))
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                self._endpoint.wire.stop()  # nobody waits for the open requests
                if not isinstance(error, Failure | RequestRefused):
                    raise
                raise ConfigError(
                    f"{self._endpoint.address} does not score a sample: {error}; whole parts are "
                    "kept: start again to go on"
                ) from None
        refused = [one for one in found if isinstance(one, RequestRefused)]
        if refused:
            told = f"{self._endpoint.address} does not score a sample: {refused[0]}"
            raise Unscored(told, len(refused), len(refused) == len(samples) > 1)
        return [one for one in found if isinstance(one, Told)]

    def _one(self, sample: DialogSample) -> Told | RequestRefused:
        """The scores of a sample, or why the endpoint refused it; Failure or ShutOut where all
        others will fail too."""
        ids, labels = sample.ids.tolist(), trained_labels(sample) + 1
        if not len(labels):
            return Told(none(self._top_k), np.zeros(0, np.float32))
        body = {
            "model": self._endpoint.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": self._top_k,
            "return_token_ids": True,
        }
        try:
            return self._endpoint.wire.ask(
                "/completions", body, lambda reply: self._targets(reply, ids, labels.tolist())
            )
        except ShutOut:
            raise
        except RequestRefused as error:
            return error

    def _targets(self, reply: Any, ids: list[int], labels: list[int]) -> Told:
        """Malformed where the reply is not about these ids, or has too few of each label."""
        rows = _rows_of(reply, ids)
        found = [self._most_probable(rows[place], ids[place], place) for place in labels]
        shape = len(labels), self._top_k
        ids_TK = np.array([row[0] for row in found], np.int32).reshape(shape)
        log_probs_TK = np.array([row[1] for row in found], np.float64).reshape(shape)
        rest_T = np.maximum(1 - np.exp(log_probs_TK).sum(1), _LEAST_REST)
        log_rest_T = np.log(rest_T).astype(np.float32)
        of_labels = [_log_prob(rows[place][str(ids[place])]) for place in labels]
        return Told(
            Targets(ids_TK, log_probs_TK.astype(np.float32), log_rest_T),
            np.array(of_labels, np.float32),
        )

    def _most_probable(self, row: Any, sent: int, place: int) -> tuple[list[int], list[float]]:
        """The K most probable ids of a position; the reply may add the token that was sent."""
        if not isinstance(row, Mapping) or str(sent) not in row:
            raise Malformed(f"prompt_logprobs of token {place} say nothing of {sent}, its id")
        pairs = sorted((-_log_prob(said), _id(token)) for token, said in row.items())
        if len(pairs) < self._top_k:
            raise Malformed(
                f"prompt_logprobs of token {place} are {len(pairs)}, {self._top_k} were asked for"
            )
        best = pairs[: self._top_k]
        if beyond := [token for _, token in best if not 0 <= token < self._vocab_size]:
            raise ShutOut(
                f"it answers with id {beyond[0]}, of a vocabulary of {self._vocab_size:,}"
            )
        return [token for _, token in best], [-negative for negative, _ in best]


def _rows_of(reply: Any, ids: list[int]) -> list[Any]:
    """The reply's log-probabilities for each id that was sent."""
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    rows = choice.get("prompt_logprobs") if isinstance(choice, Mapping) else None
    if not isinstance(rows, list):
        raise ShutOut("the reply has no prompt_logprobs: the endpoint is no vLLM, or too old")
    back = choice.get("prompt_token_ids") if isinstance(choice, Mapping) else None
    if len(rows) != len(ids) or (back is not None and back != ids):
        raise ShutOut(
            f"{len(ids)} ids were sent and {len(rows)} came back, or others: it retokenizes"
        )
    return rows


def _id(token: str) -> int:
    if not token.isdecimal() or len(token) > _MOST_DIGITS:
        raise Malformed(f"prompt_logprobs name {token[:40]!r}, which is no id")
    return int(token)


def _log_prob(said: Any) -> float:
    value: Any = said.get("logprob") if isinstance(said, Mapping) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (_LEAST <= value <= 1e-3 or value == -math.inf):
        return float(value)
    raise Malformed(f"a log-probability is {value!r:.40}")
