"""Claims of sparse models: balance over the global batch, and sparse against dense."""

from pathlib import Path

from examples.reproduce.claims.claim import Found, Measured, Seeds, mean, model_of, read, rows
from megatron_qwen3.model.flops import active_parameter_count
from megatron_qwen3.pages import pictures

_SMOOTHED = 25  # steps
_BALANCES = {"last_step": "global batch", "micro_batch": "micro-batch"}


def balance(seeds: Seeds) -> Found:
    """e: loss and specialisation by the batch that is balanced."""
    losses = {
        name: {seed: loss(folder / "balance" / name) for seed, folder in seeds.items()}
        for name in _BALANCES
    }
    apart = {
        name: {s: mean(_experts(f, name)["mutual_information"]) for s, f in seeds.items()}
        for name in _BALANCES
    }
    numbers = [
        *(Measured(f"held-out loss, {said}", losses[name]) for name, said in _BALANCES.items()),
        *(
            Measured(f"information of the expert about the domain, nats, {said}", apart[name])
            for name, said in _BALANCES.items()
        ),
    ]
    of_global, of_micro, specialised, shared = (number.mean for number in numbers)
    lower = of_global < of_micro
    return Found(
        f"The loss is {of_global:.4f} against {of_micro:.4f}, "
        f"{'lower' if lower else 'not lower'}; what an expert tells of the domain is "
        f"{specialised / shared if shared else float('inf'):.1f} times as much.",
        lower and specialised > 2 * shared,
        numbers,
        [_domains(seeds)],
    )


def dense(seeds: Seeds) -> Found:
    """f: a sparse model with a fifth of the active parameters."""
    losses = {
        name: {seed: loss(folder / "sizes" / name) for seed, folder in seeds.items()}
        for name in ("dense", "sparse")
    }
    folder = next(iter(seeds.values()))
    active = {name: _active(folder / "sizes" / name) for name in ("dense", "sparse")}
    numbers = [Measured(f"held-out loss, {name}", losses[name]) for name in ("dense", "sparse")]
    of_dense, of_sparse = (number.mean for number in numbers)
    return Found(
        f"With {active['sparse']:,} of {active['dense']:,} active parameters, one to "
        f"{active['dense'] / active['sparse']:.1f}, the loss is {of_sparse:.4f} against "
        f"{of_dense:.4f}.",
        of_sparse <= 1.01 * of_dense,
        numbers,
        [_training(seeds)],
    )


def loss(run: Path) -> float:
    """Nats per token over all held-out text at the end."""
    found: float = [row for row in rows(run, "eval") if row["source"] == "all"][-1]["loss"]
    return found


def _experts(folder: Path, name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = read(folder / "balance" / f"{name}.json")
    return found


def _active(run: Path) -> int:
    model = model_of(run)
    ends = 1 if model.tie_embeddings else 2
    return active_parameter_count(model) - ends * model.vocab_size * model.hidden_size


def _training(seeds: Seeds) -> pictures.Picture:
    """Training loss of both models by tokens, means of several steps."""
    axes = pictures.axes("thousand tokens", "training loss, nats per token")
    for hue, name in zip(pictures.HUES, ("dense", "sparse"), strict=False):
        for order, folder in enumerate(seeds.values()):
            found = rows(folder / "sizes" / name, "train")
            groups = [found[at : at + _SMOOTHED] for at in range(0, len(found), _SMOOTHED)]
            tokens = [group[-1]["tokens"] / 1e3 for group in groups]
            losses = [mean(row["loss"] for row in group) for group in groups]
            axes.plot(tokens, losses, color=hue, label=name if order == 0 else None)
    axes.legend(frameon=False)
    caption = f"a line a seed, means of {_SMOOTHED} steps"
    return pictures.finish(axes, "f", "Sparse against dense", caption, is_wide=False)


def _domains(seeds: Seeds) -> pictures.Picture:
    """Of the first seed's last layer each expert's share, by domain."""
    seed, folder = next(iter(seeds.items()))
    axes = pictures.axes("expert", "share of a domain's choices, %", is_wide=True)
    for half, (name, said) in enumerate(_BALANCES.items()):
        found = read(folder / "balance" / f"{name}.json")
        shares_DE = found["shares"][-1]
        width = 0.8 / len(shares_DE)
        for hue, domain, shares_E, place in zip(
            pictures.HUES, found["domains"], shares_DE, range(len(shares_DE)), strict=False
        ):
            at = [half * (len(shares_E) + 1) + e + place * width for e in range(len(shares_E))]
            label = domain if half == 0 else None
            axes.bar(at, [100 * share for share in shares_E], width, color=hue, label=label)
        axes.text(
            half * (len(shares_DE[0]) + 1), 1, said, va="top", transform=axes.get_xaxis_transform()
        )
    axes.set_xticks([])
    axes.legend(frameon=False)
    caption = (
        f"last layer, seed {seed}: left balanced over the global batch, right over micro-batches"
    )
    return pictures.finish(axes, "e", "Experts by domain", caption, is_wide=True)
