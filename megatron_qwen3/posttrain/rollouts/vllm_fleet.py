"""All servers of a run, as its first rank sees them: which are alive, which have current weights.

    fleet = Fleet(config, on_cpu, folder)
    fleet.start()
    while not fleet.are_up(20): …
    fleet.look()                     # notices deaths and restarts dead servers
    fleet.ready(version)             # servers that may be asked
    fleet.waiting(version)           # servers that answer but have other weights

A server of ours that dies is restarted up to rollouts.vllm.restarts times within a batch; a server
at a given address is waited for up to rollouts.vllm.start_seconds. Either comes back without the
run's weights. Nothing here imports torch.
"""

import time
from collections.abc import Callable
from pathlib import Path

from megatron_qwen3.posttrain.rollouts.vllm_client import Client
from megatron_qwen3.posttrain.rollouts.vllm_server import Server, ServerFailed, is_healthy
from megatron_qwen3.settings import Config

REST_SECONDS = 3.0  # after a failure: a broken server needs 2 s to end
_POLL_SECONDS = 0.2


class Member:
    """One server. version: of its weights, None where they are not the run's.

    generation: number of its deaths. workers: processes that share its model.
    """

    def __init__(self, config: Config, server: Server | None, url: str) -> None:
        self._config, self.server = config, server
        self.version: int | None = None
        self.generation = self.deaths = 0
        self.workers = 1
        self.is_up = False
        self._rests_until = 0.0
        self._down_since = time.monotonic()
        self.client = self._client(url)

    def _client(self, url: str) -> Client:
        config = self._config
        return Client(url, config.model.vocab_size, config.rollouts.vllm.answer_seconds)

    @property
    def name(self) -> str:
        return str(self.server) if self.server else f"vLLM at {self.client.url}"

    @property
    def rests(self) -> bool:
        """Whether a failure is so recent that the server may still turn out to have died."""
        return time.monotonic() < self._rests_until

    def doubt(self) -> None:
        """Called when it gave no answer: leave it alone until it is clear whether it lives."""
        self._rests_until = time.monotonic() + REST_SECONDS

    def start(self) -> None:
        """Start a server of ours, which has no weights of the run yet."""
        assert self.server is not None
        self.server.start()
        self.client = self._client(self.server.url)

    def lose(self) -> None:
        """Called when it died: forget its version, workers and requests."""
        self.client.stop()
        self.client = self._client(self.client.url)
        self.version, self.is_up = None, False
        self.generation += 1
        self.deaths += 1
        self._down_since = time.monotonic()

    def look(self) -> bool:
        """Whether it is up now. ServerFailed where it cannot start."""
        if self.server is not None:
            self.is_up = self.server.is_ready()
        else:
            self.is_up = is_healthy(self.client.url)
            seconds = self._config.rollouts.vllm.start_seconds
            if not self.is_up and time.monotonic() - self._down_since > seconds:
                raise ServerFailed(
                    f"{self.name} does not answer for {seconds:g} s (rollouts.vllm.start_seconds)"
                )
        return self.is_up

    def has_died(self) -> bool:
        """Whether a server that was up, and is not left alone, has died."""
        if self.server is not None and not self.server.is_running:
            return True
        if self._rests_until:
            self._rests_until = 0.0
            return not is_healthy(self.client.url)
        return False


class Fleet:
    """The servers of [rollouts.vllm]. `tell` gets a line for each restart."""

    def __init__(
        self, config: Config, on_cpu: bool, folder: Path, tell: Callable[[str], None]
    ) -> None:
        """folder: of the model's config.json."""
        settings = config.rollouts.vllm
        self._restarts, self._tell = settings.restarts, tell
        logs = config.run_dir / "vllm"
        if settings.urls:
            self.members = [Member(config, None, url.rstrip("/")) for url in settings.urls]
        else:
            servers = [
                Server(config, number, on_cpu, folder, logs / f"server_{number}.log")
                for number in range(settings.servers)
            ]
            self.members = [Member(config, server, "") for server in servers]
        self.restarted = 0

    def start(self) -> None:
        """Start all of them; `are_up` waits for them."""
        for member in self.members:
            if member.server:
                member.start()

    def are_up(self, seconds: float) -> bool:
        """Whether all answer within `seconds`. ServerFailed where one did not start."""
        until = time.monotonic() + seconds
        while not all(member.is_up or member.look() for member in self.members):
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def close(self) -> None:
        for member in self.members:
            member.client.stop()
            if member.server:
                member.server.kill()

    def ready(self, version: int) -> list[Member]:
        return [m for m in self.members if m.is_up and m.version == version and not m.rests]

    def waiting(self, version: int) -> list[Member]:
        return [m for m in self.members if m.is_up and m.version != version and not m.rests]

    def look(self) -> None:
        """Notice which servers died or came back. ServerFailed after too many deaths."""
        for member in self.members:
            if member.is_up:
                if not member.rests and member.has_died():
                    self.bury(member, "it gave no answer")
            elif not member.rests:
                try:
                    member.look()
                except ServerFailed as error:
                    self.bury(member, str(error))

    def bury(self, member: Member, why: str) -> None:
        """Restart a server that died or whose weights are unknown."""
        words = f": {member.server.last_words()}" if member.server and member.is_up else ""
        member.lose()
        if member.deaths > self._restarts:
            raise ServerFailed(
                f"{member.name} failed {member.deaths} times in one batch, and "
                f"rollouts.vllm.restarts = {self._restarts}: {why}{words}"
            )
        self.restarted += 1
        self._tell(f"{member.name} is started again: {why}{words}")
        if member.server:
            member.start()

    def absolve(self) -> None:
        """Called after a whole batch: deaths are counted from 0 again."""
        for member in self.members:
            member.deaths = 0
