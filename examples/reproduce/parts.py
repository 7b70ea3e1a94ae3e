"""The parts of the reproduction: which commands make what, and what each needs.

    parts(SIZES["full"], folder, seeds=(1, 2, 3))

Every command is one of the project's own, with the stage files of this folder; what a seed makes
lies in FOLDER/seed_N, data that all seeds read in FOLDER/data. A smaller size has fewer steps and
tasks of the same kind.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from examples.reproduce import pipeline
from examples.reproduce.plan import HERE, Command, Plan, Size, dialogs
from examples.reproduce.running import Part


def parts(size: Size, root: Path, seeds: Sequence[int]) -> list[Part]:
    """All parts, each after those that it needs."""
    plans = [Plan(size, root, seed) for seed in seeds]
    return [*_data(plans[0]), *(part for plan in plans for part in _of_seed(plan))]


def _data(plan: Plan) -> Iterator[Part]:
    data, size = plan.data, plan.size
    make = ("python", "-m", "examples.reproduce.corpus", "--out", f"{data}/documents")
    ask = ("python", "-m", "examples.reproduce.dialogs")
    tasks, queries = str(size.tasks(4000)), str(size.tasks(1500))
    yield Part(
        "words",
        "documents, tokenizer, tasks",
        (),
        (
            (*make, "--scale", f"{max(size.share, 0.05):g}"),
            _tokenizer(data, "640", "6"),
            _tokenize(data),
            _mix(data, HERE),
            (*ask, "cold-start", "--count", str(size.tasks(3000)), "--out", f"{data}/worked.jsonl"),
            dialogs(data, f"{data}/worked.jsonl", f"{data}/worked/set"),
            (*ask, "tasks", "--count", tasks, "--seed", "2", "--out", f"{data}/tasks.jsonl"),
            (*ask, "flagged", "--count", tasks, "--seed", "5", "--out", f"{data}/flagged.jsonl"),
            (*ask, "tasks", "--count", queries, "--seed", "4", "--out", f"{data}/queries.jsonl"),
            (*ask, "tasks", "--count", "1000", "--seed", "3", "--out", f"{data}/held_out.jsonl"),
            (*ask, "tasks", "--count", "100", "--fewest", "8", "--out", f"{data}/hard.jsonl"),
        ),
        1.5,
    )
    yield Part(
        "texts",
        "real texts in three domains",
        (),
        (
            (
                *("bash", "examples/quickstart/data.sh", f"{data}/texts", "512"),
                f"{HERE}/texts.toml",
            ),
        ),
        1.5,
    )
    yield Part(
        "mixed",
        "texts of several qualities",
        (),
        (("bash", f"{HERE}/mixture/data.sh", f"{data}/mixture"),),
        0.5,
    )
    long = data / "long"
    yield Part(
        "long_texts",
        "long texts with pass keys",
        (),
        (
            ("python", "examples/long_context/texts.py", "--out", f"{long}"),
            _tokenizer(long, "282", "1"),
            _tokenize(long),
            _mix(long, "examples/long_context"),
        ),
        1,
    )


def _tokenizer(data: Path, size: str, sample_mb: str) -> Command:
    folders = (f"{data}/documents", "--out", f"{data}/tokenizer")
    return ("mq3", "data", "tokenizer", *folders, "--vocab-size", size, "--sample-mb", sample_mb)


def _tokenize(data: Path) -> Command:
    tokenizer = ("--tokenizer", f"{data}/tokenizer")
    return ("mq3", "data", "tokenize", f"{data}/documents", "--out", f"{data}/tokens", *tokenizer)


def _mix(data: Path, recipe_of: str) -> Command:
    recipe = ("--recipe", f"{recipe_of}/curriculum.toml", "--out", f"{data}/curriculum.json")
    return ("mq3", "data", "mix", "mix", f"{data}/tokens", *recipe)


def _of_seed(plan: Plan) -> Iterator[Part]:
    yield from pipeline.teacher(plan)
    yield _mixture(plan)
    yield _ladder(plan)  # the longest that nothing else needs: last, it would run alone
    yield from pipeline.student(plan)
    yield _balance(plan)
    yield _sizes(plan)
    yield _long(plan)


def _texts(plan: Plan, model: str, folder: str, name: str, steps: int, *more: str) -> Command:
    """A model trained on real texts."""
    return (
        *("mq3", "train", f"{HERE}/stages/texts.toml", f"{HERE}/models/{model}.toml"),
        *(f"run.dir={plan.mine}/{folder}", f"run.name={name}", f"run.seed={plan.seed}"),
        f"data.tokenizer={plan.data}/texts/tokenizer",
        f"data.curriculum={plan.data}/texts/curriculum.json",
        *(*plan.length(steps), *plan.size.of_stage("texts"), *more),
    )


def _balance(plan: Plan) -> Part:
    """The same sparse model balanced over the global batch and over micro-batches of one row."""
    given = ("data.stage=domains", "train.micro_batch=1")
    domains = [f"{plan.data}/texts/documents/{name}.jsonl" for name in ("code", "docs", "worked")]
    commands: list[Command] = []
    for name in ("last_step", "micro_batch"):
        more = (*given, f"model.router_balance={name}")
        commands.append(_texts(plan, "domains", "balance", name, 600, *more))
        out = ("--texts", *domains, "--out", f"{plan.mine}/balance/{name}.json")
        run = f"{plan.mine}/balance/{name}"
        commands.append(("python", "-m", "examples.reproduce.experts", run, *out))
    return plan.part("balance", "balance of experts", ("texts",), 5, *commands)


def _sizes(plan: Plan) -> Part:
    """A dense model, and a sparse one with a fifth of its active parameters."""
    runs = [_texts(plan, model, "sizes", model, 800) for model in ("dense", "sparse")]
    return plan.part("sizes", "sparse against dense", ("texts",), 6, *runs)


def _long(plan: Plan) -> Part:
    """The long-context example: trained at 64 and at 256 positions, read at 1,024."""
    data, root = f"{plan.data}/long", "examples/long_context"
    given = (
        *(f"{root}/model.toml", f"run.dir={plan.mine}/long", f"run.seed={plan.seed}"),
        *(f"data.tokenizer={data}/tokenizer", f"data.curriculum={data}/curriculum.json"),
    )

    def train(stage: str, steps: int, decay: int) -> Command:
        decayed = f"optim.decay_steps={plan.size.steps(decay) - 1}"
        more = (*plan.length(steps), decayed, *plan.size.settings.get("pretrain", ()))
        return ("mq3", "train", f"{root}/{stage}.toml", *given, *more)

    keys = ("--key-said", "[{key}]", "--key-asked", "<{key}", "--key-digits", "4")
    texts = ("--texts", f"{data}/test.jsonl", "--count", str(plan.size.tasks(64)))
    return plan.part(
        "long",
        "four times the trained length",
        ("long_texts",),
        9,
        train("short", 700, 150),
        train("long", 600, 200),
        ("mq3", "read-long", f"{plan.mine}/long/long", *texts, *keys)
        + ("--out", f"{plan.mine}/long/reading"),
    )


def _mixture(plan: Plan) -> Part:
    """The study of mixtures, whose last runs compare what it found with coarser ones."""
    data, file = plan.data / "mixture", f"{plan.mine}/mixture.toml"
    proxies = max(12, plan.size.steps(40))
    pairs = [
        *(f'dir="{plan.mine}/mixture"', f'shards="{data}/tokens"', f"seed={plan.seed}"),
        *(f"proxies={proxies}", "at_once=1"),
    ]
    if plan.size.share < 1:
        pairs.append("seeds=1")
    if plan.size.name == "smoke":
        pairs.append(f'settings=["{HERE}/mixture/proxy.toml", "train.steps=30"]')
    study = ("python", "-m", "examples.reproduce.placed", f"{HERE}/mixture/study.toml")
    place = (*study, *pairs, "--out", file)
    optimize = ("mq3", "data", "optimize", file)
    return plan.part("mixture", "mixtures by instances", ("mixed",), 9, place, optimize)


# Few steps know no best rate unless those beside it are far off.
_RATES = {
    "smoke": (("xs", "s", "--factors", "0.05", "20", "300"), ("l", "--factors", "1")),
    "quick": (("xs", "s", "m", "--factors", "0.5", "2", "8"), ("l", "--factors", "0.5", "2")),
}


def _ladder(plan: Plan) -> Part:
    """A law of three sizes, the sweep of a fourth, and that one by the law."""
    tokens = f"{max(20e3, 400e3 * plan.size.share):g}"
    texts = ("--texts", f"{plan.data}/texts", "--seed", str(plan.seed), "--tokens", tokens)
    smaller, left_out = _RATES.get(plan.size.name, (("xs", "s", "m"), ("l",)))
    commands: list[Command] = []
    for name, swept in (("ladder", smaller), ("left_out", left_out)):
        file = f"{plan.mine}/{name}.toml"
        out = ("--dir", f"{plan.mine}/{name}", "--out", file)
        write = ("python", "-m", "examples.reproduce.ladder", *texts, "--sizes", *swept, *out)
        commands += [write, ("mq3", "study", "laws", "run", file, "--no-fit")]
    model = f"{HERE}/models/left_out.toml"
    predicted = ("--model", model, "--tokens", tokens, "--sequence-length", "128")
    overlay = f"{plan.mine}/tuned.toml"
    fit = ("mq3", "study", "laws", "fit", f"{plan.mine}/ladder", *predicted, "--overlay", overlay)
    file = f"{plan.mine}/by_laws.toml"
    by = ("--by", overlay, "--dir", f"{plan.mine}/by_laws", "--out", file)
    once = ("python", "-m", "examples.reproduce.ladder", *texts, "--sizes", "l", *by)
    tuned = ("mq3", "study", "laws", "run", file, "--no-fit")
    return plan.part(
        "ladder", "law of the learning rate", ("texts",), 13, *commands, fit, once, tuned
    )
