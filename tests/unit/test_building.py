"""Cold start, fusion and distillation with scripted models: dialogs kept, dropped and counted."""

import dataclasses
import json
import re

import pytest
from scripted import InProcess, Scripted, Silent, thought

from megatron_qwen3.cli import build_dialogs
from megatron_qwen3.config import ConfigError
from megatron_qwen3.pages import dialogs as pages
from megatron_qwen3.posttrain.building import cold_start, distill, fusion
from megatron_qwen3.posttrain.building.answer_rules import AnswerRules, AnswerSettings
from megatron_qwen3.posttrain.building.begun import begin
from megatron_qwen3.posttrain.building.candidates import DrawSettings
from megatron_qwen3.posttrain.building.choosing import ChoiceSettings
from megatron_qwen3.posttrain.building.flags import FlagSettings
from megatron_qwen3.posttrain.building.judges import Judge
from megatron_qwen3.posttrain.building.queries import Query, QueryProblem
from megatron_qwen3.posttrain.building.work import BuildWork, write_result
from megatron_qwen3.posttrain.verifiers import Verdict
from megatron_qwen3.tables import console

DRAWS = DrawSettings(samples=2)
THINKING = (
    "The two numbers have to be added. Take the larger one first and count up by the smaller one, "
    "digit by digit, with the carry in mind, and then check the sum once more: it is right."
)


@pytest.fixture
def work(tmp_path):
    made = BuildWork(tmp_path, InProcess(), AnswerRules(AnswerSettings(), None), Silent())
    with made:
        yield made


def query(name, text="What is 2 plus 2?", domain="math", gold="4", checklist=()):
    spec = {"kind": "numeric", "gold": gold} if gold else None
    messages = ({"role": "user", "content": f"{text} ({name})"},)
    return Query(name, messages, f"f:{name}", domain, "s", spec, checklist=checklist)


def says(thinking=THINKING, content="It is \\boxed{4}.", direct="It is \\boxed{5}."):
    def say(request, sample):
        return thought(thinking, f"{content} {sample}") if request.enable_thinking else direct

    return say


def counted(work, level):
    return dict(work.outcomes.reasons(level))


def start(work, queries, say=None, direct=None, judge=None, tries=2):
    generator = Scripted(say or says(), "g")
    asked = cold_start.ColdStartModels(
        generator, Scripted(direct, "d") if direct else generator, judge
    )
    settings = (cold_start.QuerySettings(direct_tries=tries), DRAWS, ChoiceSettings())
    rows, about = cold_start.build(work, queries, asked, settings, None)
    return list(rows), about


def word(request):
    return re.search(r'"word": "(\w+)"', request.messages[1]["content"].rsplit("END", 1)[1])[1]


def judge(work, say):
    return Judge(Scripted(say, "j"), work.log, work.steps)


def test_a_query_that_a_judge_finds_unfit_or_fails_at_is_dropped(work):
    def rules(request, sample):
        text = request.messages[1]["content"]
        if "(failed)" in text:
            return "Score: 10"
        verdicts = ["yes", "no" if "(unfit)" in text else "yes", "yes"]
        return json.dumps({"word": word(request), "verdicts": verdicts})

    queries = [query("good"), query("unfit"), query("failed")]
    rows, about = start(work, queries, judge=judge(work, rules))
    assert counted(work, "query") == {"kept": 1, "judged unfit": 1, "judge failed": 1}
    assert [row["id"].split("/")[0] for row in rows] == ["good"]
    assert about["judge"] == {"the reply is no JSON object": 1}


def test_answers_that_think_although_they_should_not_solve_nothing_and_it_is_told(work):
    stubborn = lambda request, sample: thought(THINKING, "It is \\boxed{4}.")  # noqa: E731
    rows, _ = start(work, [query("q")], direct=stubborn)
    assert len(rows) == 1 and "2 answers have thinking although none" in work.steps.said[0]


def test_a_query_with_fewer_tries_than_asked_for_is_not_taken_for_unsolved(work):
    def direct(request, sample):
        if sample == 1:
            raise ValueError("no luck")
        return "It is \\boxed{5}."

    rows, _ = start(work, [query("q")], direct=direct)
    assert not rows and counted(work, "query") == {"not answered": 1}
    rows, _ = start(work, [query("q")], direct=says())
    assert len(rows) == 1 and counted(work, "query") == {"not answered": 1, "kept": 1}


def test_missing_candidates_are_counted_among_answers_and_the_others_used(work):
    def say(request, sample):
        if request.enable_thinking and sample == 1:
            raise ValueError("no luck")
        return says()(request, sample)

    rows, _ = start(work, [query("q")], say)
    assert len(rows) == 1
    assert counted(work, "answer") == {"not answered": 1, "kept": 1}
    assert counted(work, "query") == {"kept": 1}


def test_without_tries_nobody_is_asked_for_answers_without_thinking(work):
    direct = Scripted(says(), "d")
    settings = (cold_start.QuerySettings(direct_tries=0), DRAWS, ChoiceSettings())
    asked = cold_start.ColdStartModels(Scripted(says(), "g"), direct)
    rows, _ = cold_start.build(work, [query("q")], asked, settings, None)
    assert len(list(rows)) == 1 and not direct.asked


def test_a_cold_start_asks_nothing_that_was_answered_before(work):
    before = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    talk = dataclasses.replace(query("talk"), messages=(*before, *query("talk").messages))
    start(work, [talk, query("q")])
    assert counted(work, "query") == {"brings answers": 1, "kept": 1}


def test_a_cold_start_tells_how_many_good_answers_it_does_without(work):
    rows, _ = start(work, many(30, "q"), direct=lambda request, sample: "5")
    told = f"of 60 good answers {len(rows)} are taken: the settings per_query, cover"
    assert len(rows) < 30 and any(told in line for line in work.steps.said)


def test_equal_answers_count_once_and_wrong_ones_as_wrong_whatever_else_they_are(work):
    equal = lambda request, sample: thought(THINKING, "It is \\boxed{4}.")  # noqa: E731
    start(work, [query("q")], equal, tries=0)
    assert counted(work, "answer") == {"kept": 1, "same as another answer": 1}
    start(work, [query("r")], says("Just a guess.", "It is \\boxed{7}."), tries=0)
    assert counted(work, "answer")["wrong answer"] == 2
    row = json.loads(list(work.outcomes.dropped())[-1])
    assert row["detail"].startswith("no derivation: 3 words of thinking; wrong answer: 7 is not 4")


def test_a_verifier_that_fails_is_counted_as_that_and_passes_nothing(work):
    class Fails(InProcess):
        def judge(self, pairs):
            return [
                Verdict(None, "time-out") if "boxed{4}" in text else Verdict(0.0, "wrong")
                for _, text in pairs
            ]

    work.verifiers = work.checker._verifiers = Fails()
    rows, _ = start(work, [query("q")])
    assert not rows and counted(work, "answer") == {"verifier failed": 2}


def test_an_answer_that_nobody_could_judge_makes_a_query_no_harder(work):
    class FailsOnce(InProcess):
        def judge(self, pairs):
            judged = super().judge(pairs)
            return [
                Verdict(None, "time-out") if text.endswith(" 1") else verdict
                for verdict, (_, text) in zip(judged, pairs, strict=True)
            ]

    work.verifiers = work.checker._verifiers = FailsOnce()
    start(work, [query("q")], tries=0)
    assert counted(work, "answer") == {"kept": 1, "verifier failed": 1}
    assert work.outcomes.content()["numbers"]["answer: pass rate"]["least"] == 1.0


def test_a_query_whose_tries_nobody_could_verify_is_not_taken_for_unsolved(work):
    class Fails(InProcess):
        def judge(self, pairs):
            judged = super().judge(pairs)
            return [
                v if "boxed" in text else Verdict(None, "time-out")
                for v, (_, text) in zip(judged, pairs, strict=True)
            ]

    work.verifiers = Fails()

    def partly(request, sample):
        if request.enable_thinking:
            return thought(THINKING, "It is \\boxed{4}.")
        is_verified = "(r)" in request.messages[0]["content"] and sample
        return "It is \\boxed{5}." if is_verified else "Four?"

    rows, _ = start(work, [query("q"), query("r")], partly)
    assert counted(work, "query") == {"verifier failed": 1, "kept": 1}
    assert rows and all(row["id"].startswith("r") for row in rows)


def fuse(work, thinking, plain, say=None, ruler=None, **settings):
    generator = Scripted(say or says(direct="It is \\boxed{4}. Done."), "g")
    asked = fusion.FusionModels(generator, generator, judge(work, ruler) if ruler else None)
    tables = (fusion.FusionSettings(plain_samples=2, **settings), DRAWS, FlagSettings())
    rows, about = fusion.build(work, thinking, plain, asked, tables, None)
    return list(rows), about


def many(count, prefix, domain="math", **more):
    return [query(f"{prefix}{k}", domain=domain, **more) for k in range(count)]


@pytest.mark.parametrize(
    ("share", "there", "taken"),
    [(0.5, (6, 4), (4, 4)), (0.25, (6, 6), (2, 6)), (0.75, (6, 6), (6, 2)), (1.0, (6, 4), (6, 0))],
)
def test_both_modes_have_their_shares_where_there_are_enough(work, share, there, taken):
    thinking, plain = many(there[0], "t"), many(there[1], "p")
    _, about = fuse(work, thinking, plain, thinking_share=share)
    assert about["there were"] == {"thinking": there[0], "plain": there[1]}
    assert about["taken"] == {"thinking": taken[0], "plain": taken[1]}
    told = f"of {there[0]} good answers with thinking {taken[0]} are taken, of {there[1]} without"
    assert any(told in line for line in work.steps.said) == (taken != there)


def test_a_mode_without_an_answer_is_told(work):
    rows, _ = fuse(work, many(3, "t"), many(2, "p", gold="9"))
    assert rows == [] and "thinking_share = 0.5 leaves none" in work.steps.said[-1]


def test_domains_have_their_shares_and_one_without_answers_is_an_error(work):
    plain = [*many(8, "c", "code"), *many(8, "w", "writing"), *many(4, "x", "roles")]
    shares = {"plain_shares": ("code=0.25", "writing=0.25"), "thinking_share": 0.5}
    rows, _ = fuse(work, many(30, "t"), plain, **shares)
    names = [part.split("/")[0] for row in rows for part in row["id"].split("+")]
    assert [sum(n[0] == letter for n in names) for letter in "cwx"] == [2, 2, 4]
    with pytest.raises(ConfigError, match="give 0.5 to domain law, of which no answer passed"):
        fuse(work, many(3, "t"), plain, plain_shares=("law=0.5",))
    with pytest.raises(ConfigError, match="0.5 to domain any that is not named"):
        fuse(work, many(3, "t"), many(3, "c", "code"), plain_shares=("code=0.5",))


@pytest.mark.parametrize("words", [("code",), ("code=x",), ("=0.5",), ("a=2",), ("a=0.6", "b=0.6")])
def test_shares_that_make_no_sense_are_refused(words):
    with pytest.raises(ConfigError, match="plain_shares"):
        fusion.FusionSettings(plain_shares=words)


def ruler(request, sample):
    text = request.messages[1]["content"]
    if '"checklist": [' in text:
        return json.dumps({"word": word(request), "checklist": ["It rhymes.", "It is short."]})
    verdicts = ["yes", "yes" if "poem 1" in text or "(free)" in text else "no"]
    return json.dumps({"word": word(request), "verdicts": verdicts})


def test_the_answer_that_does_its_checklist_is_taken_and_one_that_does_not_is_dropped(work):
    say = lambda r, k: thought(THINKING, "\\boxed{4}") if r.enable_thinking else f"A poem {k}."  # noqa: E731
    plain = [query("own", gold="", domain="writing", checklist=("It is good.", "It is long."))]
    plain.append(query("made", gold="", domain="writing"))
    rows, about = fuse(work, many(4, "t"), plain, say, ruler)
    assert about["taken"] == {"thinking": 2, "plain": 2}
    texts = [m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"]
    assert texts.count("A poem 1.") == 2 and "A poem 0." not in texts
    assert counted(work, "answer")["checklist not met"] == 2
    missed = [json.loads(line) for line in work.outcomes.dropped() if b"checklist not met" in line]
    assert "It is long." in missed[0]["detail"] and missed[0]["numbers"]["checklist"] == 0.5


def test_what_nobody_grades_is_kept_only_where_that_is_asked_for(work):
    plain = many(2, "w", "writing", gold="")
    _, about = fuse(work, many(2, "t"), plain)
    assert counted(work, "query")["nothing grades it"] == 2 and about["taken"]["plain"] == 0
    _, about = fuse(work, many(2, "t"), plain, rules_alone=True)
    assert about["taken"]["plain"] == 2


def test_a_teachers_wrong_answers_are_left_out_unless_they_are_asked_for(work):
    tables = (distill.DistillSettings(), DRAWS, FlagSettings())
    _, about = distill.build(work, many(3, "q"), Scripted(says(), "t"), tables, None)
    assert about["taken"] == {"thinking": 3, "non-thinking": 0}
    tables = (distill.DistillSettings(unverified=True, per_query=2), DRAWS, FlagSettings())
    rows, about = distill.build(work, many(3, "q"), Scripted(says(), "t"), tables, None)
    assert about["taken"] == {"thinking": 6, "non-thinking": 3}  # which are equal
    rows = list(rows)
    assert len({row["id"] for row in rows}) == len(rows) > 5


HOSTILE = "<script>alert('x')</script>\x1b[2J\u202e$\\frac$ {{ 7 * 7 }}"


def test_a_report_shows_hostile_texts_as_text(work, tmp_path, capsys):
    bad = dataclasses.replace(query(HOSTILE, domain=HOSTILE), source=HOSTILE)
    rows, about = start(work, [query("good"), bad], says(content=f"{HOSTILE} \\boxed{{9}}"))
    problems = [QueryProblem(HOSTILE, 3, HOSTILE, HOSTILE)] * 12
    head = {"command": "cold-start", "models": [HOSTILE], "settings": {"a": HOSTILE}}
    content = write_result(work, rows, problems, head | about)
    assert json.loads((tmp_path / "report.json").read_bytes()) == json.loads(json.dumps(content))
    pages.write(content, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert "{{ 7 * 7 }}" in page and "and 2 more" in page
    for table in pages.tables(content):
        console().print(table)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\u202e" not in shown and "and 2 more" in shown


def test_dropped_lines_numbers_and_examples_are_written(work, tmp_path):
    rows, about = start(work, many(6, "q"), says(content="It is \\boxed{9}."))
    head = {"command": "cold-start", "models": ["g"], "settings": {}}
    content = write_result(work, rows, [], head | about)
    dropped = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_bytes().splitlines()]
    assert len(dropped) == 12 and all(row["reason"] == "wrong answer" for row in dropped)
    assert all(row["numbers"]["words of thinking"] > 12 for row in dropped)
    examples = [row for row in content["examples"] if row["reason"] == "wrong answer"]
    assert len(examples) == 3 and "\\boxed{9}" in examples[0]["answer"]
    assert content["numbers"]["answer: pass rate"]["most"] == 0
    assert all("\\boxed{9}" in row["answer"] and row["thinking"] == THINKING for row in dropped)
    assert content["dialogs"]["count"] == 0


def test_a_run_that_makes_nothing_leaves_the_dialogs_of_the_one_before(work, tmp_path):
    head = {"command": "cold-start", "models": ["g"], "settings": {}}
    assert write_result(work, [], [], head)["dialogs"]["count"] == 0
    assert not (tmp_path / "dialogs.jsonl").exists()
    rows, about = start(work, [query("q")])
    write_result(work, rows, [], head | about)
    before = (tmp_path / "dialogs.jsonl").read_bytes()
    write_result(work, iter(()), [], head)
    assert before and (tmp_path / "dialogs.jsonl").read_bytes() == before


@pytest.mark.parametrize("left", ["command.json", "report.json", "results.json"])
def test_a_folder_that_another_command_began_is_refused(tmp_path, left):
    (tmp_path / left).write_text('{"command": "evaluate", "version": 1}')
    with pytest.raises(
        ConfigError, match="was begun by evaluate, whose files distill would overwrite"
    ):
        begin(tmp_path, "distill")
    (tmp_path / "new").mkdir()
    for _ in range(2):
        begin(tmp_path / "new", "distill")
    with pytest.raises(ConfigError, match="was begun by distill, whose files fusion"):
        begin(tmp_path / "new", "fusion")


def test_a_wrong_verifier_is_told_though_another_line_asks_the_same(work):
    good = query("q")
    wrong = dataclasses.replace(good, id="wrong", verifier={"kind": "numeric"})
    rows, _ = start(work, [good, wrong])
    assert counted(work, "query") == {"kept": 1, "not verifiable": 1} and len(rows) == 1


def test_a_wrong_verifier_takes_no_other_line_out(work):
    good = query("q")
    wrong = dataclasses.replace(good, id="wrong", verifier={"kind": "numeric"})
    rows, _ = start(work, [wrong, good])
    assert counted(work, "query") == {"kept": 1, "not verifiable": 1} and len(rows) == 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            ["--out", "FOLDER/queries.jsonl"],
            "--out FOLDER/queries.jsonl: FOLDER/queries.jsonl is no",
        ),
        (["--out", "FOLDER/queries.jsonl/x"], "queries.jsonl is no folder; name another one"),
        (["--validation", "FOLDER/none", "--tokenizer", "FOLDER"], "--validation FOLDER/none: "),
    ],
)
def test_files_that_are_missing_or_in_the_way_are_named_with_their_option(
    tmp_path, capsys, more, told
):
    line = json.dumps({"messages": [{"role": "user", "content": "What is 2 plus 2?"}]})
    (tmp_path / "queries.jsonl").write_text(line + "\n")
    words = ["--queries", "FOLDER/queries.jsonl", "--generator", "http://127.0.0.1:9/v1#m"]
    words = ["distill", "--out", "FOLDER/out", *words, *more]
    assert build_dialogs.main([w.replace("FOLDER", str(tmp_path)) for w in words]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert told.replace("FOLDER", str(tmp_path)) in error and "Errno" not in error


def test_a_missing_option_is_told_in_one_line_and_every_option_has_help(capsys):
    words = ["fusion", "--queries", "q", "--generator", "g", "--out", "o"]
    with pytest.raises(SystemExit) as stop:
        build_dialogs.main(words)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1
    assert "the following arguments are required: --plain-queries; " in told
    for command in ("cold-start", "fusion", "distill"):
        with pytest.raises(SystemExit):
            build_dialogs.main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert (
            "--queries JSONL [JSONL ...] " in shown and "--draw-seed N of the answers (0)" in shown
        )
        assert "--queries JSONL [JSONL ...] --" not in shown.partition("options:")[2]
