"""How generators are run: `EndpointLimits` of an endpoint, `Local` of a model of ours."""

from dataclasses import dataclass

from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options


@dataclass(frozen=True)
class EndpointLimits:
    """Load, retries and time limits of requests to an endpoint."""

    concurrency: int = setting(16, "requests that are open at a time", at_least=1)
    tries: int = setting(6, "times that a request is sent before it counts as failed", at_least=1)
    seconds: float = setting(600.0, "seconds that each try may take", above=0)
    first_wait: float = setting(
        1.0, "seconds before the second try; then twice as long", at_least=0
    )
    longest_wait: float = setting(60.0, "seconds between two tries, at most", at_least=0)
    per_minute: float = setting(0.0, "requests a minute, at most; 0 is any number", at_least=0)
    most_bytes: int = setting(32 << 20, "bytes of a reply; a longer one is refused", at_least=1)
    key_variable: str = setting("OPENAI_API_KEY", "environment variable that holds the key")

    def __post_init__(self) -> None:
        options.check(self)


@dataclass(frozen=True)
class Local:
    """How a model of ours is run."""

    rows: int = setting(64, "answers that a model of ours writes at a time", at_least=1)
    local: tuple[str, ...] = setting(
        (), "settings of a model of ours, such as parallel.tensor=2", metavar="KEY=VALUE"
    )

    def __post_init__(self) -> None:
        options.check(self)
