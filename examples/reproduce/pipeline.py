"""Parts of the pipeline: a teacher through all stages, and a student that is distilled from it."""

from collections.abc import Iterator, Sequence

from examples.reproduce.plan import HERE, Command, Plan, dialogs
from examples.reproduce.running import Part


def _base(plan: Plan, model: str, steps: Sequence[int]) -> tuple[Command, ...]:
    given = (f"data.curriculum={plan.data}/curriculum.json",)
    stages = zip(("base_1_facts", "base_2_short", "base_3_long"), steps, strict=True)
    return tuple(plan.train(model, stage, number, *given) for stage, number in stages)


def teacher(plan: Plan) -> Iterator[Part]:
    """Base, cold start, reasoning RL, fusion and general RL of the larger model."""
    data, mine = plan.data, plan.mine
    trained = _base(plan, "teacher", (240, 320, 640))
    yield plan.part("base", "the teacher's base", ("words",), 13, *trained)
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
        10,
        _answers(plan, f"{mine}/teacher/post_2_reasoning_rl", f"{mine}/thought"),
        ("python", "-m", "examples.reproduce.dialogs", "fuse", f"{mine}/thought/dialogs.jsonl")
        + ("--seed", str(plan.seed), "--out", f"{mine}/fused.jsonl"),
        dialogs(data, f"{mine}/fused.jsonl", f"{mine}/fused/set"),
        plan.train("teacher", "post_3_fusion", 1500, fused),
        plan.evaluate("teacher/post_3_fusion", "fusion", 400, *_obedience(plan, 400)),
    )
    budgets = [str(tokens) for tokens in range(6, 55, 6)]
    yield plan.part(
        "general",
        "general RL, and thinking budgets",
        ("fusion",),
        7,
        plan.train("teacher", "post_4_general_rl", 60, with_flags),
        plan.evaluate("teacher/post_4_general_rl", "general", 400, *_obedience(plan, 1000)),
        plan.evaluate(
            *("teacher/post_4_general_rl", "budgets", 500),
            *("--modes", "thinking", "non-thinking", "--budgets", *budgets),
        ),
    )


def student(plan: Plan) -> Iterator[Part]:
    """Off-policy distillation of the smaller model, and from there on-policy and RL."""
    data, mine = plan.data, plan.mine
    of = f"{mine}/teacher/post_2_reasoning_rl"
    # Shorter than the teacher's: one that knows as much has nothing left to be taught.
    trained = _base(plan, "student", (120, 160, 320))
    yield plan.part("student", "the student's base", ("words",), 3, *trained)
    given = f'sft.sources=[{{name="teacher",path="{mine}/taught/set",epochs=60}}]'
    yield plan.part(
        "off_policy",
        "off-policy distillation",
        ("reasoning", "student"),
        4,
        _answers(plan, of, f"{mine}/taught"),
        dialogs(data, f"{mine}/taught/dialogs.jsonl", f"{mine}/taught/set"),
        _until(plan, given),
        plan.evaluate("student/distill_1_off_policy", "off_policy", 400, "--modes", "thinking"),
        _many(plan, "distill_1_off_policy"),
    )
    asked = f'rollouts.tasks=[{{name="problems",path="{data}/tasks.jsonl"}}]'
    on_policy = (asked, f"distill.teacher.path={of}")
    yield _from_off_policy(
        *(plan, "on_policy", "on-policy distillation", "distill_2_on_policy", 3),
        plan.train("student", "distill_2_on_policy", 320, *on_policy),
    )
    yield _from_off_policy(
        *(plan, "student_rl", "RL of the student", "student_rl", 10),
        # Six times the compute of all of distillation: half of it left open where RL ends.
        plan.train("student", "post_2_reasoning_rl", 520, f"{HERE}/stages/student_rl.toml", asked),
    )


def _from_off_policy(
    plan: Plan, name: str, title: str, run: str, minutes: float, train: Command
) -> Part:
    """A way on from off-policy distillation, with its accuracy and its pass@64."""
    evaluate = plan.evaluate(f"student/{run}", name, 400, "--modes", "thinking")
    return plan.part(name, title, ("off_policy",), minutes, train, evaluate, _many(plan, run))


def _obedience(plan: Plan, dialogs: int) -> Command:
    return "--obedience", str(plan.size.tasks(dialogs))


def _until(plan: Plan, given: str) -> Command:
    """Off-policy distillation until one problem in five is right."""
    steps = plan.size.steps
    warmup = f"optim.warmup_steps={min(4, steps(100) - 1)}"
    words = plan.train("student", "distill_1_off_policy", 100, given, warmup)[2:]
    asked = ("--tasks", f"{plan.data}/queries.jsonl", "--out", f"{plan.mine}/evaluations/until")
    limits = ("--least", "0.2", "--by", "10", "--first", f"{steps(100)}", "--most", f"{steps(500)}")
    return ("python", "-m", "examples.reproduce.until", *limits, *asked, *words)


def _answers(plan: Plan, model: str, out: str) -> Command:
    """The right answers with thinking that a model gives, one of each task, without flags. Models
    that were trained for less than the full number of steps have few or none: at those sizes
    answers are made as the cold start's are."""
    if plan.size.share < 1:
        count = str(max(100, plan.size.tasks(1500)))
        made = ("--count", count, "--seed", "9", "--out", f"{out}/dialogs.jsonl")
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
