"""The parts of the reproduction: which commands make what, and what each needs.

    parts(Size.of("full"), folder, seeds=(1, 2, 3))

Every command is one of the project's own, with the stage files of this folder; what a seed makes
lies in FOLDER/seed_N, data that all seeds read in FOLDER/data. A smaller size has fewer steps and
tasks of the same kind.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.reproduce.running import Part

HERE = "examples/reproduce"
Command = tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """share: of the full number of steps and of tasks, with a least number of each."""

    name: str
    share: float

    def steps(self, full: int) -> int:
        return max(3, round(full * self.share))

    def tasks(self, full: int) -> int:
        return max(24, round(full * self.share))


SIZES = {size.name: size for size in (Size("full", 1), Size("quick", 0.1), Size("smoke", 0.01))}


@dataclass(frozen=True)
class Plan:
    """size; root: the folder of all; seed."""

    size: Size
    root: Path
    seed: int

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def mine(self) -> Path:
        return self.root / f"seed_{self.seed}"

    def part(
        self, name: str, title: str, needs: Sequence[str], minutes: float, *commands: Command
    ) -> Part:
        """A part of this seed, whose needs are of this seed too unless they are data."""
        known = {"words", "texts", "long_texts", "mixed"}
        return Part(
            f"{name}_{self.seed}",
            f"{title}, seed {self.seed}",
            tuple(need if need in known else f"{need}_{self.seed}" for need in needs),
            commands,
            minutes * max(self.size.share, 0.1),
        )

    def train(self, model: str, stage: str, steps: int, *more: str) -> Command:
        """A stage of one of the pipeline's models; its run is mine/MODEL/STAGE."""
        return (
            *("mq3", "train", f"{HERE}/stages/{stage}.toml", f"{HERE}/models/{model}.toml"),
            *(f"run.dir={self.mine}/{model}", f"run.seed={self.seed}"),
            *(f"data.tokenizer={self.data}/tokenizer", *self.length(steps), *more),
        )

    def length(self, steps: int) -> Command:
        """As many steps as the size has, a tenth of them to warm up."""
        number = self.size.steps(steps)
        return f"train.steps={number}", f"optim.warmup_steps={max(1, number // 10)}"

    def evaluate(self, run: str, out: str, most: int, *more: str) -> Command:
        """Held-out problems, asked of a run."""
        return (
            *("mq3", "evaluate", f"{self.mine}/{run}", "--tasks", f"{self.data}/held_out.jsonl"),
            *("--out", f"{self.mine}/evaluations/{out}", "--most", str(self.size.tasks(most))),
            *("--max-tokens", "160", "--rows", "256", "--temperature", "0.6", "--top-p", "1"),
            *("--top-k", "0", *more),
        )


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
            _dialogs(data, f"{data}/worked.jsonl", f"{data}/worked/set"),
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


def _dialogs(data: Path, lines: str, out: str) -> Command:
    return ("mq3", "data", "dialogs", lines, "--out", out, "--tokenizer", f"{data}/tokenizer")


def _of_seed(plan: Plan) -> Iterator[Part]:
    yield from _teacher(plan)
    yield from _student(plan)
    yield _balance(plan)
    yield _sizes(plan)
    yield _long(plan)
    yield _mixture(plan)
    yield _ladder(plan)


def _base(plan: Plan, model: str) -> tuple[Command, ...]:
    given = (f"data.curriculum={plan.data}/curriculum.json",)
    stages = (("base_1_facts", 240), ("base_2_short", 320), ("base_3_long", 640))
    return tuple(plan.train(model, stage, steps, *given) for stage, steps in stages)


def _teacher(plan: Plan) -> Iterator[Part]:
    """Base, cold start, reasoning RL, fusion and general RL of the larger model."""
    data, mine = plan.data, plan.mine
    yield plan.part("base", "the teacher's base", ("words",), 12, *_base(plan, "teacher"))
    worked = f'sft.sources=[{{name="worked",path="{data}/worked/set",epochs=60}}]'
    yield plan.part(
        "cold_start",
        "cold start",
        ("base",),
        3,
        plan.train("teacher", "post_1_cold_start", 220, worked),
        plan.evaluate("teacher/post_1_cold_start", "cold_start", 400, "--modes", "thinking"),
    )
    asked = f'rollouts.tasks=[{{name="problems",path="{data}/tasks.jsonl"}}]'
    yield plan.part(
        "reasoning",
        "reasoning RL",
        ("cold_start",),
        4,
        plan.train("teacher", "post_2_reasoning_rl", 60, asked),
        plan.evaluate("teacher/post_2_reasoning_rl", "reasoning", 400, "--modes", "thinking"),
    )
    with_flags = asked.replace("tasks.jsonl", "flagged.jsonl")
    fused = f'sft.sources=[{{name="fused",path="{mine}/fused/set",epochs=60}}]'
    yield plan.part(
        "fusion",
        "fusion of the modes",
        ("reasoning",),
        5,
        _answers(plan, f"{mine}/teacher/post_2_reasoning_rl", f"{mine}/thought"),
        ("python", "-m", "examples.reproduce.dialogs", "fuse", f"{mine}/thought/dialogs.jsonl")
        + ("--seed", str(plan.seed), "--out", f"{mine}/fused.jsonl"),
        _dialogs(data, f"{mine}/fused.jsonl", f"{mine}/fused/set"),
        plan.train("teacher", "post_3_fusion", 300, fused),
        plan.evaluate("teacher/post_3_fusion", "fusion", 400, "--obedience", "400"),
    )
    budgets = [str(tokens) for tokens in range(6, 55, 6)]
    yield plan.part(
        "general",
        "general RL, and thinking budgets",
        ("fusion",),
        7,
        plan.train("teacher", "post_4_general_rl", 60, with_flags),
        plan.evaluate("teacher/post_4_general_rl", "general", 400, "--obedience", "1000"),
        plan.evaluate(
            *("teacher/post_4_general_rl", "budgets", 500),
            *("--modes", "thinking", "non-thinking", "--budgets", *budgets),
        ),
    )


def _student(plan: Plan) -> Iterator[Part]:
    """Off-policy distillation of the smaller model, and from there on-policy and RL."""
    data, mine = plan.data, plan.mine
    teacher = f"{mine}/teacher/post_2_reasoning_rl"
    yield plan.part("student", "the student's base", ("words",), 6, *_base(plan, "student"))
    given = f'sft.sources=[{{name="teacher",path="{mine}/taught/set",epochs=60}}]'
    yield plan.part(
        "off_policy",
        "off-policy distillation",
        ("reasoning", "student"),
        4,
        _answers(plan, teacher, f"{mine}/taught"),
        _dialogs(data, f"{mine}/taught/dialogs.jsonl", f"{mine}/taught/set"),
        _until(plan, given),
        plan.evaluate("student/distill_1_off_policy", "off_policy", 400, "--modes", "thinking"),
        _many(plan, "distill_1_off_policy"),
    )
    asked = f'rollouts.tasks=[{{name="problems",path="{data}/tasks.jsonl"}}]'
    on_policy = (asked, f"distill.teacher.path={teacher}")
    yield _from_off_policy(
        *(plan, "on_policy", "on-policy distillation", "distill_2_on_policy", 4),
        plan.train("student", "distill_2_on_policy", 160, *on_policy),
    )
    yield _from_off_policy(
        *(plan, "student_rl", "RL of the student", "student_rl", 10),
        plan.train("student", "post_2_reasoning_rl", 260, f"{HERE}/stages/student_rl.toml", asked),
    )


def _from_off_policy(
    plan: Plan, name: str, title: str, run: str, minutes: float, train: Command
) -> Part:
    """A way on from off-policy distillation, with its accuracy and its pass@64."""
    evaluate = plan.evaluate(f"student/{run}", name, 400, "--modes", "thinking")
    return plan.part(name, title, ("off_policy",), minutes, train, evaluate, _many(plan, run))


def _until(plan: Plan, given: str) -> Command:
    """Off-policy distillation until one problem in seven is right."""
    few = plan.size.name != "full"
    words = plan.train("student", "distill_1_off_policy", 12, given, "optim.warmup_steps=4")[2:]
    asked = ("--tasks", f"{plan.data}/queries.jsonl", "--out", f"{plan.mine}/evaluations/until")
    limits = ("--least", "0.15", *(("--first", "3", "--most", "4") if few else ()))
    return ("python", "-m", "examples.reproduce.until", *limits, *asked, *words)


def _answers(plan: Plan, model: str, out: str) -> Command:
    """The right answers with thinking that a model gives, one of each task, without flags. A model
    of three steps has none: at that size they are made as the cold start's are."""
    if plan.size.name == "smoke":
        made = ("--count", "100", "--seed", "9", "--out", f"{out}/dialogs.jsonl")
        return ("python", "-m", "examples.reproduce.dialogs", "cold-start", *made)
    return (
        *("mq3", "data", "build", "distill", "--queries", f"{plan.data}/queries.jsonl"),
        *("--generator", model, "--out", out, "--modes", "thinking", "--samples", "1"),
        *("--flagged-thinking", "0", "--joined", "0", "--max-tokens", "160", "--rows", "256"),
        *("--temperature", "0.6", "--top-p", "1", "--top-k", "0"),
        *("--fewest-steps", "1", "--most-repeated", "1", "--most-foreign", "1"),
    )


def _many(plan: Plan, stage: str) -> Command:
    """64 answers to each of the longest problems, for pass@64."""
    return (
        *("mq3", "evaluate", f"{plan.mine}/student/{stage}", "--tasks", f"{plan.data}/hard.jsonl"),
        *("--out", f"{plan.mine}/evaluations/{stage}_64", "--most", str(plan.size.tasks(60))),
        *("--samples", "64", "--modes", "thinking", "--max-tokens", "160", "--rows", "256"),
        *("--temperature", "1", "--top-p", "1", "--top-k", "0"),
    )


def _texts(plan: Plan, model: str, folder: str, name: str, steps: int, *more: str) -> Command:
    """A model trained on real texts."""
    return (
        *("mq3", "train", f"{HERE}/stages/texts.toml", f"{HERE}/models/{model}.toml"),
        *(f"run.dir={plan.mine}/{folder}", f"run.name={name}", f"run.seed={plan.seed}"),
        f"data.tokenizer={plan.data}/texts/tokenizer",
        f"data.curriculum={plan.data}/texts/curriculum.json",
        *plan.length(steps),
        *more,
    )


def _balance(plan: Plan) -> Part:
    """The same sparse model balanced over the global batch and over micro-batches of one row."""
    given = ("data.stage=domains", "train.global_batch=16", "train.micro_batch=1")
    domains = [f"{plan.data}/texts/documents/{name}.jsonl" for name in ("code", "docs", "worked")]
    commands: list[Command] = []
    for name in ("last_step", "micro_batch"):
        more = (*given, f"model.router_balance={name}")
        commands.append(_texts(plan, "domains", "balance", name, 600, *more))
        out = ("--texts", *domains, "--out", f"{plan.mine}/balance/{name}.json")
        run = f"{plan.mine}/balance/{name}"
        commands.append(("python", "-m", "examples.reproduce.experts", run, *out))
    return plan.part("balance", "balance of experts", ("texts",), 8, *commands)


def _sizes(plan: Plan) -> Part:
    """A dense model, and a sparse one with a fifth of its active parameters."""
    runs = [_texts(plan, model, "sizes", model, 800) for model in ("dense", "sparse")]
    return plan.part("sizes", "sparse against dense", ("texts",), 16, *runs)


def _long(plan: Plan) -> Part:
    """The long-context example: trained at 64 and at 256 positions, read at 1,024."""
    data, root = f"{plan.data}/long", "examples/long_context"
    given = (
        *(f"{root}/model.toml", f"run.dir={plan.mine}/long", f"run.seed={plan.seed}"),
        *(f"data.tokenizer={data}/tokenizer", f"data.curriculum={data}/curriculum.json"),
    )

    def train(stage: str, steps: int, decay: int) -> Command:
        more = (*plan.length(steps), f"optim.decay_steps={plan.size.steps(decay) - 1}")
        return ("mq3", "train", f"{root}/{stage}.toml", *given, *more)

    keys = ("--key-said", "[{key}]", "--key-asked", "<{key}", "--key-digits", "4")
    texts = ("--texts", f"{data}/test.jsonl", "--count", "64")
    return plan.part(
        "long",
        "four times the trained length",
        ("long_texts",),
        12,
        train("short", 700, 150),
        train("long", 600, 200),
        ("mq3", "read-long", f"{plan.mine}/long/long", *texts, *keys)
        + ("--out", f"{plan.mine}/long/reading"),
    )


def _mixture(plan: Plan) -> Part:
    """The study of mixtures, whose last runs compare what it found with coarser ones."""
    data, file = plan.data / "mixture", f"{plan.mine}/mixture.toml"
    pairs = (
        *(f'dir="{plan.mine}/mixture"', f'shards="{data}/tokens"', f"seed={plan.seed}"),
        *(f"proxies={max(12, plan.size.steps(40))}", "at_once=1"),
    )
    place = (
        "python",
        "-m",
        "examples.reproduce.placed",
        f"{HERE}/mixture/study.toml",
        *pairs,
        "--out",
        file,
    )
    optimize = ("mq3", "data", "optimize", file)
    return plan.part("mixture", "mixtures by instances", ("mixed",), 9, place, optimize)


def _ladder(plan: Plan) -> Part:
    """Laws of three sizes, the sweep of a fourth, and that one by the laws."""
    tokens = f"{max(20e3, 500e3 * plan.size.share):g}"
    texts = ("--texts", f"{plan.data}/texts", "--seed", str(plan.seed), "--tokens", tokens)
    batches = ("4",) if plan.size.share < 0.05 else ("2", "4", "8")
    commands: list[Command] = []
    for name, sizes in (("ladder", ("xs", "s", "m")), ("left_out", ("l",))):
        file = f"{plan.mine}/{name}.toml"
        out = ("--dir", f"{plan.mine}/{name}", "--out", file)
        swept = ("--sizes", *sizes, "--batches", *batches)
        commands.append(("python", "-m", "examples.reproduce.ladder", *texts, *swept, *out))
        commands.append(("mq3", "study", "laws", "run", file))
    model = f"{HERE}/models/left_out.toml"
    predicted = ("--model", model, "--tokens", tokens, "--sequence-length", "128")
    overlay = f"{plan.mine}/tuned.toml"
    fit = ("mq3", "study", "laws", "fit", f"{plan.mine}/ladder", *predicted, "--overlay", overlay)
    file = f"{plan.mine}/by_laws.toml"
    by = ("--by", overlay, "--dir", f"{plan.mine}/by_laws", "--out", file)
    once = ("python", "-m", "examples.reproduce.ladder", *texts, "--sizes", "l", *by)
    tuned = ("mq3", "study", "laws", "run", file)
    title = "laws of rate and batch"
    return plan.part("ladder", title, ("texts",), 16, *commands, fit, once, tuned)
