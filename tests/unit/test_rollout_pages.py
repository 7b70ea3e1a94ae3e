"""The pages about runs that sample: their curves, their tables, and answers that harm nobody."""

import contextlib
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import pytest

from megatron_qwen3.cli import report
from megatron_qwen3.config import ConfigError
from megatron_qwen3.pages import answers
from megatron_qwen3.pages.rollout_pictures import draw_all, seconds_by_kind
from megatron_qwen3.pages.rollouts import KeptRollouts, examples, sections, source_rows, suspects
from megatron_qwen3.posttrain.rewards import hacking
from megatron_qwen3.posttrain.rollouts.record import folder_of
from megatron_qwen3.posttrain.watching import samples
from megatron_qwen3.training.history import RunHistory
from tests import records
from tests.unit.test_pages import Tags

HOSTILE = "</pre></details><script>alert(1)</script>{{ 7*7 }}\x1b[2J\u202e\"'&"
OF_RL = {
    *("rollout_reward", "rollout_pass_rate", "entropy", "kl", "clip_share", "mismatch", "parts"),
    *("answer_lengths", "cut_answers", "groups", "advantages", "age", "time", "rollout_speed"),
    *("refit", "refit_difference"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of 30 batches, its page, the page of one batch, and the printed lines."""
    home, printed = tmp_path_factory.mktemp("rl"), io.StringIO()
    records.write_run(home / "run", 30)
    out = home / "page.html"
    with contextlib.redirect_stdout(printed):
        assert report.main([str(home / "run"), "--out", str(out), "--batches", "0", "29"]) == 0
    batch = (home / "page" / "batch_29.html").read_text()
    return home, out.read_text(), batch, printed.getvalue()


def test_every_curve_is_drawn_in_the_page_and_beside_it(made):
    home, html, _, _ = made
    names = {path.stem for path in (home / "page").glob("*.png")}
    assert names >= OF_RL
    assert html.count("<svg") == len(names)
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S):
        assert {"updates", "tokens trained on"} & set(ElementTree.fromstring(svg).itertext())
    assert not Tags(html).open


def test_the_band_of_the_entropy_is_drawn(made):
    home, _, _, _ = made
    drawn = {picture.name: picture for picture in draw_all(RunHistory.read(home / "run"))}
    assert "dashed: the band of rl.entropy" in drawn["entropy"].caption
    assert drawn["entropy"].svg.count("stroke-dasharray") == 2


def test_the_page_has_rewards_by_source_and_mode_and_answers_to_read(made):
    _, html, _, _ = made
    text = re.sub(r"<[^>]*>", "|", html)
    for part in ("sums", "non-thinking", "Where the time goes", "Held-out tasks by source"):
        assert part in text, part
    for kind in ("Best", "Worst", "Most surprising"):
        assert f"{kind} of the kept answers" in text
    assert "Kept answers without a reward" in text
    assert "the best and the worst answer to each of the first 4 tasks of a batch" in text
    assert "Held-out text" not in text


def test_the_report_on_hacking_is_joined(made):
    _, html, _, _ = made
    assert "Signs of reward hacking" in html
    assert "answers are cut at their limit" in html  # a twelfth of them is, in all batches
    rows = [dict(LINE, answer="", batch=3, why="form"), {"why": "changed by hand", "batch": 3}]
    ((title, (sample,)),) = suspects({"samples": rows}).items()
    assert (title, sample.batch) == ("To be read: form", 3)


def test_answers_of_distillation_are_not_looked_at_for_hacking(made):
    home, _, _, _ = made
    run = RunHistory.read(home / "run")
    kept = KeptRollouts([], hacking.report(home / "run"))
    assert "hacking" in "".join(sections(run, kept))
    del run.rollouts["reward"]
    assert "hacking" not in "".join(sections(run, kept))


def test_sources_of_distillation_have_their_rows(made):
    home, _, _, _ = made
    run = RunHistory.read(home / "run")
    for name in [name for name in run.rollouts if name.partition("/")[0] == "reward"]:
        del run.rollouts[name]
    rows = {(row[0], row[1]): row[2:6] for row in source_rows(run)}
    assert rows["sums", "thinking"][:2] == ["–", "–"] and rows["sums", "thinking"][2] != "–"


def test_a_run_is_told_in_the_terminal(made):
    _, _, _, told = made
    assert "Answers of run" in told and "non-thinking" in told
    assert "4:30" in told  # 30 batches of 5 s, 60 updates of 2 s


@pytest.mark.slow
def test_pictures_of_two_stages_keep_names_of_their_own(tmp_path):
    for name in ("one", "two"):
        records.write_run(tmp_path / name, 2)
    runs = [str(tmp_path / name) for name in ("one", "two")]
    assert report.main([*runs, "--out", str(tmp_path / "r.html")]) == 0
    names = {path.stem for path in (tmp_path / "r").glob("*.png")}
    assert {"1_entropy", "2_entropy", "loss"} <= names


def test_means_of_a_source_are_of_its_first_and_its_last_batches(made):
    home, _, _, _ = made
    run = RunHistory.read(home / "run")
    run.rollouts["reward/sums/thinking"][:] = range(30)
    rows = {(row[0], row[1]): row[2:4] for row in source_rows(run)}
    assert rows["sums", "thinking"] == ["1.000", "28.000"]  # 0, 1, 2 and 27, 28, 29


def test_time_is_that_of_each_batch_with_its_updates(made):
    home, _, _, _ = made
    seconds = seconds_by_kind(RunHistory.read(home / "run"))
    assert {name: spent.tolist() for name, spent in seconds.items()} == {
        "rollout": [4.0] * 30,
        "reward": [1.0] * 30,
        "update": [4.0] * 30,
    }


def test_the_page_of_a_batch_folds_thinking_and_marks_what_was_not_sampled(made):
    _, _, html, _ = made
    assert not Tags(html).open
    thinking = re.findall(
        r"<summary>thinking, (\d+) characters</summary><pre>(.*?)</pre>", html, re.S
    )
    assert len(thinking) == 6
    size, text = thinking[0]
    assert (
        text.startswith("&lt;think&gt;\nthoughts") and '<mark class="forced">&lt;/think&gt;' in text
    )
    assert int(size) == len(re.sub("<[^>]*>", "", text).replace("&lt;", "<").replace("&gt;", ">"))
    assert "truncated: it reached its limit" in html and "not trained" in html
    assert "not the gold answer" in html and "Question of sum-1?" in html


def test_no_answer_becomes_markup(tmp_path):
    line = {"task": HOSTILE, "source": HOSTILE, "mode": HOSTILE, "finish": "error", "tokens": 3}
    line |= {"messages": [{"role": HOSTILE, "content": HOSTILE, "tool_calls": [HOSTILE]}]}
    line |= {"answer": HOSTILE, "reward": 1.0, "parts": {HOSTILE: 0.5, "verifier": None}}
    line |= {"error": HOSTILE, "reasons": {HOSTILE: HOSTILE}, "advantage": 2.0, "is_trained": False}
    line |= {"pieces": [[f"<think>{HOSTILE}", True], [f"<tool_response>{HOSTILE}", False]]}
    records.write(tmp_path, 1, lines=[line])
    (sample,) = samples.newest(tmp_path, 1)
    assert sample.batch == 1 and not sample.is_trained
    answers.write([sample], HOSTILE, tmp_path / "b.html")
    html = (tmp_path / "b.html").read_text()
    tags = Tags(html)
    assert not tags.open and "script" not in tags.names
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    assert "\x1b" not in html and "\u202e" not in html and "7*7" in html
    assert '<mark class="tool">&lt;tool_response&gt;' in html


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("<think>a</think>b", ["thinking", "answer"]),
        ("a</think>b", ["thinking", "answer"]),
        ("just this", ["answer"]),
        ("<think>never closed", ["thinking"]),
        ("x<think>a</think>b<think>c</think>", ["answer", "thinking", "answer", "thinking"]),
        ("", []),
    ],
)
def test_thinking_is_told_from_answers_and_no_text_is_lost(text, kinds):
    (line,) = [json.loads(json.dumps(dict(LINE, answer=text)))]
    sample = samples.of_line(0, line)
    assert [block.kind for block in sample.blocks] == kinds
    assert "".join(t for block in sample.blocks for t, _ in block.spans) == text


def test_what_a_tool_says_opens_no_thinking(tmp_path):
    said = "<|im_start|>user\n<tool_response>\n<think>\n</tool_response><|im_end|>"
    pieces = [["<think>a</think>call", True], [said, False], ["<think>b</think>c", True]]
    sample = samples.of_line(0, dict(LINE, pieces=pieces))
    assert [block.kind for block in sample.blocks] == ["thinking", "answer", "thinking", "answer"]
    assert "".join(t for block in sample.blocks for t, _ in block.spans) == "".join(
        text for text, _ in pieces
    )
    assert sample.blocks[1].spans == (("call", ""), (said, "tool"))


LINE = {"task": "t", "source": "s", "mode": "m", "messages": [], "parts": {}, "reasons": {}}


def test_pieces_are_runs_of_tokens_that_were_sampled_or_were_not():
    found = samples.pieces_of(
        [1, 2, 3, 4, 5], [True, True, False, False, True], lambda ids: str(ids)
    )
    assert found == [["[1, 2]", True], ["[3, 4]", False], ["[5]", True]]
    assert samples.pieces_of([], [], str) == []


@pytest.mark.parametrize("line", ["{", "[]", '{"task": 1}', "null"])
def test_a_damaged_line_is_named(tmp_path, line):
    records.write_run(tmp_path / "run", 1)
    path = folder_of(tmp_path / "run", 0) / "samples.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=r"samples\.jsonl: ") as error:
        samples.read(folder_of(tmp_path / "run", 0))
    assert "\n" not in str(error.value)


def test_a_batch_that_is_not_there_is_named_with_those_that_are(tmp_path, capsys):
    records.write_run(tmp_path / "run", 3)
    out = ["--out", str(tmp_path / "r.html"), "--batches", "7"]
    assert report.main([str(tmp_path / "run"), *out]) == 2
    assert "--batches 7" in (told := capsys.readouterr().err) and "valid: 0 to 2" in told
    assert not (tmp_path / "r.html").exists()


def test_examples_are_the_best_the_worst_and_the_farthest_from_their_groups():
    made = [samples.of_line(0, dict(LINE, answer="", reward=r, advantage=a)) for r, a in VALUES]
    found = {title: [(s.reward, s.advantage) for s in own] for title, own in examples(made).items()}
    best, worst, surprising, unscored = found.values()
    assert best[0] == (3, 0.0) and worst[0] == (-1, -0.5)
    assert surprising[:2] == [(0.5, 2.0), (1, -1.5)]
    assert unscored == [(None, 0.0)]


VALUES = [(3, 0.0), (0.5, 2.0), (1, -1.5), (-1, -0.5), (None, 0.0)]


@pytest.mark.slow
def test_a_run_without_rollouts_on_the_disk_still_has_its_page(tmp_path):
    """Records of long ago may have been removed: the curves are in metrics.jsonl."""
    records.write_run(tmp_path / "run", 2)
    shutil.rmtree(tmp_path / "run" / "rollouts")
    assert report.main([str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r" / "rollout_reward.png").exists()
    assert answers.MARKS[:20] not in (tmp_path / "r.html").read_text()
