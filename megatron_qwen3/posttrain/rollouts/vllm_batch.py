"""The answers of one batch while servers write them: rows, and their requests to servers.

    batch = AskBatch(asks, …)
    while (state := batch.work(fleet, version)) != DONE:
        …                       # WAITING: give servers that came back their weights, and go on
    batch.rollouts()

A thinking budget is enforced here, not by the server: a row in a think block asks for no more
tokens than its budget has left, then the tokens that end the block are inserted, and the row asks
for the rest. So forced tokens are known by their place and need not be found in a server's reply. A
request whose server dies is sent again, to another server or to the same one with the same weights;
a row's draws depend on its own seed, not on the server. Nothing here imports torch.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from megatron_qwen3.generate.thinking import Thinking, ThinkingBudget
from megatron_qwen3.posttrain.generators.replies import RequestRefused
from megatron_qwen3.posttrain.rollouts.rollout import ABORT, ERROR, LENGTH, STOP, Ask, Rollout
from megatron_qwen3.posttrain.rollouts.vllm_client import Died, DrawnSample, TokenDraw
from megatron_qwen3.posttrain.rollouts.vllm_fleet import Fleet, Member
from megatron_qwen3.settings import Config

DONE, WAITING, WORKING = "done", "waiting", "working"
TRIES = 3  # failures of a request at servers that did not die
_POLL_SECONDS = 0.2
WORD_SECONDS = 5.0  # longest wait for answers before the caller may stop the batch


@dataclass
class PendingSample:
    """One sample. parts: number of answered requests."""

    ask: int
    sample: int
    limit: int
    thinking: Thinking | None
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    parts: int = 0
    finish: str = ""
    error: str = ""

    def force(self) -> None:
        """Insert the tokens that the budget forces; a full row is done."""
        while not self.finish:
            if len(self.tokens) >= self.limit:
                self.finish = LENGTH
            elif self.thinking is not None and (token := self.thinking.forced()) is not None:
                self._add(token, 0.0, False)
            else:
                break

    def take(self, drawn: DrawnSample, version: int, stops: Sequence[int]) -> None:
        """Append a server's tokens."""
        asked = self.room()
        self.parts += 1
        self.versions.append(version)
        for token, log_prob in zip(drawn.tokens, drawn.log_probs, strict=True):
            self._add(token, log_prob, True)
        if drawn.tokens[-1] in stops:
            self.finish = STOP
        elif drawn.finish == LENGTH and len(drawn.tokens) < asked:
            self.finish = LENGTH  # the server's own, of prompt and answer together
        self.force()

    def room(self) -> int:
        """Tokens that may be drawn before the budget forces one."""
        left = self.limit - len(self.tokens)
        if self.thinking is None or self.thinking.spent is None:
            return left
        return min(left, self.thinking.budget.tokens - self.thinking.spent)

    @property
    def opening(self) -> tuple[int, ...]:
        """The id that begins a think block, if one may still begin: the request stops there."""
        thinking = self.thinking
        is_open = thinking is not None and thinking.spent is None and not thinking.is_over
        return (thinking.budget.opens,) if thinking is not None and is_open else ()

    def _add(self, token: int, log_prob: float, sampled: bool) -> None:
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.sampled.append(sampled)
        if self.thinking is not None:
            self.thinking.saw(token)


@dataclass
class _Request:
    """Rows that continue the same tokens. failed: (server, number of its deaths then)."""

    rows: list[PendingSample]
    failed: list[tuple[Member, int]] = field(default_factory=list)

    @property
    def tries(self) -> int:
        """Failures at servers that have not died since."""
        return sum(member.generation == count for member, count in self.failed)


class AskBatch:
    """The samples of all asks."""

    def __init__(
        self,
        asks: Sequence[Ask],
        config: Config,
        ends: tuple[int, ...],
        budget_of: Callable[[int], ThinkingBudget],
    ) -> None:
        """ends: ids that end an answer. budget_of: makes a thinking budget of a number of tokens.

        A prompt with its answer has at most data.sequence_length tokens.
        """
        self._asks, self._ends = asks, ends
        self._temperature = config.rollouts.temperature
        self._concurrency = config.rollouts.vllm.concurrency
        self._version = 0
        self._rows: list[list[PendingSample]] = []
        self._flying: dict[Future[list[DrawnSample]], tuple[_Request, Member, int]] = {}
        self._todo: list[_Request] = []
        for number, ask in enumerate(asks):
            made = budget_of(ask.thinking_budget) if ask.thinking_budget else None
            limit = min(ask.max_new_tokens, config.data.sequence_length - len(ask.prompt))
            rows = [
                PendingSample(number, k, limit, Thinking(made, ask.prompt) if made else None)
                for k in range(ask.samples)
            ]
            for row in rows:
                row.force()
            self._rows.append(rows)
            self._ask(rows)
        self._todo.reverse()  # taken from the end
        self._pool: ThreadPoolExecutor | None = None

    def work(self, fleet: Fleet, version: int) -> str:
        """DONE once all rows are; WAITING where a server needs the weights of `version`; WORKING
        after a while.

        ServerFailed where servers die again and again. Open requests stay open.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._concurrency * len(fleet.members))
        self._version, until = version, time.monotonic() + WORD_SECONDS
        while self._todo or self._flying:
            fleet.look()
            if fleet.waiting(version):
                return WAITING
            if time.monotonic() > until:
                return WORKING
            self._send(fleet, version)
            if not self._flying:
                time.sleep(_POLL_SECONDS)
                continue
            done, _ = wait(self._flying, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                self._take(future, fleet, version)
        self._pool.shutdown()
        fleet.absolve()
        return DONE

    def close(self) -> None:
        """Abandon the open requests."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def rollouts(self) -> list[list[Rollout]]:
        """The samples of each ask."""
        return [
            [_rollout(ask, row, self._version) for row in rows]
            for ask, rows in zip(self._asks, self._rows, strict=True)
        ]

    def _ask(self, rows: Sequence[PendingSample]) -> None:
        """Queue a request for the unfinished rows: one for all while none has tokens, else each."""
        left = [row for row in rows if not row.finish]
        if left and len(left) == len(self._rows[left[0].ask]) and not left[0].parts:
            self._todo.append(_Request(left))
        else:
            self._todo += [_Request([row]) for row in left]

    def _send(self, fleet: Fleet, version: int) -> None:
        """Send requests, each to the server with the fewest open ones."""
        ready = fleet.ready(version)
        load = Counter({id(member): 0 for member in ready})
        load.update(id(member) for _, member, _ in self._flying.values())
        while self._todo and ready:
            member = min(ready, key=lambda m: load[id(m)])
            if load[id(member)] >= self._concurrency:
                break
            request = self._todo.pop()
            load[id(member)] += 1
            assert self._pool is not None
            future = self._pool.submit(member.client.generate, *self._question(request))
            self._flying[future] = (request, member, member.generation)

    def _question(self, request: _Request) -> tuple[list[int], TokenDraw]:
        row = request.rows[0]
        ask = self._asks[row.ask]
        draw = TokenDraw(
            temperature=self._temperature,
            seed=seed_of(ask.seed, row.sample, row.parts),
            samples=len(request.rows),
            max_tokens=row.room(),
            stops=tuple(sorted({*self._ends, *row.opening})),
        )
        return [*ask.prompt, *row.tokens], draw

    def _take(self, future: Future[list[DrawnSample]], fleet: Fleet, version: int) -> None:
        request, member, generation = self._flying.pop(future)
        try:
            drawn = future.result()
        except RequestRefused as error:
            for row in request.rows:
                row.finish, row.error = ERROR, f"{member.name}: {error}"
            return
        except Died as error:
            if generation == member.generation:
                member.doubt()
            self._again(request, member, generation, ERROR, str(error))
            return
        if any(set(x.versions) - {str(version)} for x in drawn):
            if generation == member.generation:
                fleet.bury(member, f"its weights are {drawn[0].versions}, and {version} was asked")
            self._again(request, member, generation, ERROR, "weights of another version")
        elif any(x.finish == ABORT for x in drawn):
            self._again(request, member, generation, ABORT, "the server gave it up")
        else:
            for row, x in zip(request.rows, drawn, strict=True):
                row.take(x, version, self._ends)
            self._ask(request.rows)

    def _again(
        self, request: _Request, member: Member, generation: int, finish: str, why: str
    ) -> None:
        """Queue the request again, unless servers that did not die failed it TRIES times."""
        request.failed.append((member, generation))
        if request.tries < TRIES:
            self._todo.append(request)
            return
        for row in request.rows:
            row.finish, row.error = finish, f"{why} ({request.tries} tries)"


def seed_of(seed: int, sample: int, part: int) -> int:
    """The seed of part `part` of a sample: below 2^62, and no neighbour of another ask's.

    For the first part it is sample 0's plus `sample`, as a server numbers samples of a request.
    """
    text = f"{seed}" if not part else f"{seed} {sample} {part}"
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2
    return number if part else number + sample


def _rollout(ask: Ask, row: PendingSample, version: int) -> Rollout:
    versions = row.versions or [version]
    return Rollout(
        ask.task,
        ask.prompt,
        tuple(row.tokens),
        tuple(row.log_probs),
        tuple(row.sampled),
        row.finish,
        (versions[0], versions[-1]),
        ask.thinking,
        ask.seed,
        error=row.error,
    )
