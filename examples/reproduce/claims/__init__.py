"""What the report claims, and what came of it here: `CLAIMS`, in the report's order.

thinking.py  budgets, reasoning RL, fusion    students.py  on-policy distillation against RL
sparse.py    balance, sparse against dense    others.py    long texts, mixtures, laws
claim.py     what a claim is                  spent.py     floating point operations of runs
page.py      all of them as a page
"""

from examples.reproduce.claims import others, sparse, students, thinking
from examples.reproduce.claims.claim import Claim

CLAIMS = (
    Claim(
        "a",
        "Thinking budgets",
        "Accuracy rises smoothly with the thinking budget, for which nothing was trained, and "
        "thinking beats answering at once (figure 2).",
        ("general",),
        ("teacher/post_4_general_rl",),
        thinking.budgets,
    ),
    Claim(
        "b",
        "Reasoning RL",
        "Reinforcement learning raises accuracy from the cold start in a single run without "
        "retuning, with entropy steady or rising (section 4.2).",
        ("cold_start", "reasoning"),
        ("teacher/post_1_cold_start", "teacher/post_2_reasoning_rl"),
        thinking.reasoning,
    ),
    Claim(
        "c",
        "Both modes in one model",
        "After general RL modes are obeyed in 98.9 % of dialogs with flags in random turns (table "
        "22), and thinking loses little: here 2 points at most.",
        ("fusion", "general"),
        ("teacher/post_3_fusion", "teacher/post_4_general_rl"),
        thinking.fusion,
    ),
    Claim(
        "d",
        "On-policy distillation",
        "From one checkpoint on-policy distillation ends better than RL at a tenth of its compute, "
        "and raises pass@64, which RL does not (table 21).",
        ("off_policy", "on_policy", "student_rl"),
        ("student/distill_*", "student/student_rl"),
        students.distillation,
    ),
    Claim(
        "e",
        "Balance over the global batch",
        "Balancing experts over the global batch gives a lower loss than over each micro-batch, "
        "and experts that specialise by domain (arXiv 2501.11873, which the report follows).",
        ("balance",),
        ("balance/*",),
        sparse.balance,
    ),
    Claim(
        "f",
        "Sparse equals dense",
        "A sparse model equals a dense one with a fifth of its active parameters (section 3.3; "
        "embeddings left out here).",
        ("sizes",),
        ("sizes/*",),
        sparse.dense,
    ),
    Claim(
        "g",
        "Four times the trained length",
        "YaRN and Dual Chunk Attention read four times the length that was trained (section 3.2).",
        ("long",),
        ("long/short", "long/long"),
        others.reading,
    ),
    Claim(
        "h",
        "Mixtures by instances",
        "A mixture found for instances, by labels and small proxies, has a lower held-out loss "
        "than one of whole domains (section 3.1).",
        ("mixture",),
        ("mixture/runs/*",),
        others.mixtures,
    ),
    Claim(
        "i",
        "Laws of the learning rate",
        "Scaling laws of small runs give the rate and the batch of a larger one (section 3.1); "
        "here the rate, within 1 % of the best loss found at a size that was left out. (The "
        "smallest batch is best at nearly every size here.)",
        ("ladder",),
        ("ladder/*/*", "left_out/*/*", "by_laws/*/*"),
        others.laws,
    ),
)
