"""The choice of tasks: shares, epochs, held-out ones, modes, pass rates, going on."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from megatron_qwen3.chat import soft_switch
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.posttrain.evaluation.task import Task
from megatron_qwen3.posttrain.rollouts import asking
from megatron_qwen3.posttrain.rollouts.asking import Asker, SplitTasks, TaskOutcome
from megatron_qwen3.posttrain.rollouts.prompts import check_room

SPEC = {"kind": "exact", "gold": "42"}


class Tasks:
    """Tasks by number; size None: without an end."""

    def __init__(self, name, size, said=""):
        self.name, self.size, self.said = name, size, said

    def task(self, number):
        messages = ({"role": "user", "content": f"{self.name} {number}{self.said}"},)
        return Task(f"{self.name}-{number}", messages, SPEC, self.name)


def encode(messages, tools, enable_thinking):
    """As many ids as the question has words, and whether it may think."""
    return [int(enable_thinking), *(len(word) for word in messages[-1]["content"].split())]


def config(*overrides, sources=("a",)):
    tasks = ", ".join(f'{{name="{s.split("=")[0]}", path="p", {_more(s)}}}' for s in sources)
    base = ["model.preset=tiny-dense", "train.steps=9", "run.mode=rl", "data.sequence_length=99"]
    base += ["rollouts.max_new_tokens=50", "rollouts.samples=4", f"rollouts.tasks=[{tasks}]"]
    return load([], [*base, "rollouts.held_out=0.0", *overrides])


def _more(source):
    name, _, weight = source.partition("=")
    return f"weight={weight or 1}"


def sources_of(config, sizes, **more):
    fraction = config.rollouts.held_out
    return [
        SplitTasks.of(own, Tasks(own.name, size, **more), fraction)
        for own, size in zip(config.rollouts.tasks, sizes, strict=True)
    ]


def asker(config, sizes, state=None, **more):
    return Asker(config, sources_of(config, sizes, **more), encode, state)


def test_sources_have_exactly_the_shares_of_their_weights():
    settings = config(sources=("a=3", "b=1", "c=2"))
    drawn = asker(settings, (7, 9, None)).draw(600)
    assert Counter(each.source for each in drawn) == {"a": 300, "b": 100, "c": 200}


def test_each_task_of_a_file_comes_once_an_epoch_in_an_order_of_its_own():
    drawn = [each.number for each in asker(config(), (20,)).draw(60)]
    epochs = [drawn[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [each.number for each in asker(config("run.seed=5"), (20,)).draw(20)] != epochs[0]


def test_a_generators_tasks_come_one_after_the_other_without_an_end():
    assert [each.number for each in asker(config(), (None,)).draw(50)] == list(range(50))


@pytest.mark.parametrize("size", [400, None])
def test_what_is_held_out_is_never_trained_on_and_no_setting_changes_it(size):
    settings = config("rollouts.held_out=0.2", "rollouts.eval_prompts=30")
    (source,) = sources_of(settings, (size,))
    held_out = {each.number for each in asking.held_out(settings, source, encode)}
    trained = {each.number for each in asker(settings, (size,)).draw(300)}
    assert len(held_out) == 30 and not held_out & trained
    assert not set(source.held_out) & trained
    other = config("rollouts.held_out=0.2", "run.seed=77", "rollouts.eval_prompts=10")
    again = asking.held_out(other, *sources_of(other, (size,)), encode)
    assert {each.number for each in again} < held_out
    share = len(source.held_out) / size if size else 400 / max(source.first_held_out(400))
    assert share == pytest.approx(0.2, abs=0.06)


def test_sources_of_one_generator_hold_out_the_same_tasks():
    """In two modes, for example: one must not train on tasks that the other evaluates."""
    settings = config("rollouts.held_out=0.2", "rollouts.eval_prompts=30", sources=("a", "b"))
    one, other = (SplitTasks.of(own, Tasks("p", None), 0.2) for own in settings.rollouts.tasks)
    trained = {number for number, *_ in islice(other.trained_from(0, 1), 400)}
    assert not trained & set(one.first_held_out(30))


class Few(Tasks):
    """Tasks of every number with an id of its own, of which few are different questions."""

    def task(self, number):
        return replace(super().task(number % 12), id=f"{self.name}-{number}")


@pytest.mark.parametrize("size", [300, None])
def test_no_question_is_on_both_sides_whatever_its_number_and_id(size):
    settings = config("rollouts.held_out=0.3", "rollouts.eval_prompts=30")
    source = SplitTasks.of(settings.rollouts.tasks[0], Few("a", size), 0.3)
    held_out = asking.held_out(settings, source, encode)
    trained = Asker(settings, [source], encode).draw(300)
    one, other = ({asking.question(d.task) for d in drawn} for drawn in (held_out, trained))
    assert one and other and not one & other and len(one | other) == 12
    assert size or len(held_out) == len(one)


def test_a_generator_of_held_out_questions_alone_is_told():
    settings = config("rollouts.held_out=0.9")
    names = (f"a{n}" for n in range(100))
    found = (Few(name, None) for name in names)
    alone = next(t for t in found if all(asking.is_held_out(t.task(n), 0.9) for n in range(12)))
    source = SplitTasks.of(settings.rollouts.tasks[0], alone, 0.9)
    with pytest.raises(ConfigError, match="in a row of 'a' are held out .* too few questions"):
        Asker(settings, [source], encode).draw(1)


def test_a_source_of_which_nothing_is_left_to_train_on_is_refused():
    with pytest.raises(ConfigError, match="all 2 tasks of 'a' are held out"):
        sources_of(config("rollouts.held_out=0.9999"), (2,))


@pytest.mark.parametrize("curriculum", ["uniform", "learnable"])
def test_draws_go_on_from_a_state_that_was_json(curriculum):
    settings = config(f"rl.curriculum={curriculum}", sources=("a", "b"))
    whole, state, parts = asker(settings, (9, None)), None, []
    for _ in range(12):
        part = asker(settings, (9, None), state)
        parts.append(part.draw(5))
        outcomes = [TaskOutcome(d.source, d.task.id, 4, d.number % 5) for d in parts[-1]]
        part.learn(outcomes)
        state = json.loads(json.dumps(part.state))
        assert whole.draw(5) == parts[-1]
        whole.learn(outcomes)
    seeds = [each.ask.seed for part in parts for each in part]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 1 << 63 for seed in seeds)


def chances(rates, epochs=400):
    """How often tasks of these (answers, passed) come in an epoch."""
    settings = config("rl.curriculum=learnable")
    state = {"task_rates": {"a": {f"a-{n}": list(rate) for n, rate in enumerate(rates)}}}
    made = asker(settings, (len(rates),), {"turn": 0, "drawn": 0, **state})
    counts, ends = Counter(), epochs * len(rates)
    while made.state["cursors"].get("a", 0) < ends:
        counts[made.draw(1)[0].number] += 1
    return [counts[n] / epochs for n in range(len(rates))]


def test_what_can_be_learned_is_asked_most_and_nothing_is_left_out_for_good():
    found = chances([(0, 0), (8, 1), (8, 4), (8, 6), (8, 7.9), (8, 8), (8, 0)])
    expected = [1, 1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 8]
    assert found == pytest.approx(expected, abs=0.07)


def test_a_file_of_which_all_is_solved_is_asked_nevertheless():
    found = chances([(8, 8)] * 4, 50)
    assert all(share > 0.05 for share in found)


def test_a_generator_that_is_solved_leaves_its_turns_to_others():
    settings = config("rl.curriculum=learnable", sources=("a", "b"))
    state = {"turn": 0, "drawn": 0, "rates": {"a": [64.0, 64.0], "b": [64.0, 20.0]}}
    drawn = asker(settings, (None, None), state).draw(900)
    assert Counter(d.source for d in drawn)["a"] / 900 == pytest.approx(1 / 9, abs=0.04)


def test_newer_answers_count_more_than_older_ones():
    made = asker(config("rl.curriculum=learnable"), (3,))
    made.learn([TaskOutcome("a", "a-1", 8, 8)])
    made.learn([TaskOutcome("a", "a-1", 8, 2), TaskOutcome("a", "a-2", 4, 1)])
    assert made.state["task_rates"]["a"] == {"a-1": [12.0, 6.0], "a-2": [4.0, 1.0]}
    assert made.state["rates"]["a"] == [16.0, 7.0]


def test_modes_are_mixed_by_an_exact_share():
    settings = config("rollouts.mode=mixed", "rollouts.thinking_share=0.3", sources=("a", "b"))
    drawn = asker(settings, (10, None)).draw(200)
    of_modes = Counter((d.source, d.ask.thinking) for d in drawn)
    assert of_modes == {
        **{(s, True): 30 for s in ("a", "b")},
        **{(s, False): 70 for s in ("a", "b")},
    }
    assert all(bool(d.ask.prompt[0]) == d.ask.thinking for d in drawn)  # by the template
    assert {d.name.mode for d in drawn} == {"thinking", "non-thinking"}


def test_a_flag_tells_the_mode_where_that_is_asked_for():
    settings = config("rollouts.mode=mixed", "rollouts.switch=flag")
    asked = []

    def noting(messages, tools, enable_thinking):
        asked.append((soft_switch(messages), enable_thinking))
        return [1]

    drawn = Asker(settings, sources_of(settings, (10,)), noting).draw(20)
    assert asked == [(d.ask.thinking, True) for d in drawn]


@pytest.mark.parametrize("switch", ["flag", "template"])
def test_a_flag_of_the_tasks_own_decides(switch):
    settings = config("rollouts.mode=thinking", f"rollouts.switch={switch}")
    drawn = asker(settings, (10,), said=" /no_think").draw(5)
    assert not any(d.ask.thinking for d in drawn) and all(d.ask.prompt[0] for d in drawn)


def test_only_thinking_has_a_budget():
    settings = config("rollouts.mode=mixed", "rollouts.thinking_budget=9")
    drawn = asker(settings, (10,)).draw(10)
    assert {(d.ask.thinking, d.ask.thinking_budget) for d in drawn} == {(True, 9), (False, 0)}


def test_held_out_tasks_are_asked_once_in_each_mode_of_their_source():
    settings = config("rollouts.held_out=0.3", "rollouts.mode=mixed", "rollouts.eval_prompts=5")
    drawn = asking.held_out(settings, *sources_of(settings, (60,)), encode)
    assert Counter(d.number for d in drawn) == {d.number: 2 for d in drawn} and len(drawn) == 10
    assert all(d.ask.samples == 1 for d in drawn)


def test_a_task_without_room_is_passed_over_and_counted():
    settings = config(sources=("a", "b"))
    long = SplitTasks.of(settings.rollouts.tasks[1], Tasks("b", 5, " word" * 60), 0.0)
    made = Asker(settings, [sources_of(config(), (5,))[0], long], encode)
    assert {d.source for d in made.draw(10)} == {"a"} and made.too_long > 5
    alone = config(sources=("b",))
    with pytest.raises(ConfigError, match=r"1,000 tasks in a row have no room: .* = 99; raise"):
        Asker(alone, [long], encode).draw(1)


@pytest.mark.parametrize("size", [7, None])
def test_a_source_of_which_no_task_has_room_is_refused_with_ways_out_that_work(size):
    """Prompts of 3 ids, and answers of 50."""
    short = config("data.sequence_length=51")
    with pytest.raises(ConfigError) as caught:
        check_room(short, sources_of(short, (size,)), encode)
    assert str(caught.value) == (
        f"rollouts.tasks: none of {size or 1000:,} tasks of 'a' has room in a row: the shortest "
        "prompt has 3 tokens, and with rollouts.max_new_tokens = 50 that is more than "
        "data.sequence_length = 51; raise it to at least 52, or lower rollouts.max_new_tokens "
        "to at most 49"
    )
    for way in ("data.sequence_length=52", "rollouts.max_new_tokens=49"):
        settings = config("data.sequence_length=51", way)
        check_room(settings, sources_of(settings, (size,)), encode)
        assert len(asker(settings, (size,)).draw(5)) == 5


def test_tools_are_named_where_a_prompt_has_them():
    more = ("data.sequence_length=51", "rollouts.agent.environment=python")
    settings = config(*more)
    with pytest.raises(ConfigError, match=r"3 tokens with the tools of rollouts.agent, and with"):
        check_room(settings, sources_of(settings, (3,)), encode)


def test_one_task_that_has_room_is_enough():
    class Long(Tasks):
        def task(self, number):
            many = replace(super().task(number), messages=({"role": "user", "content": "a " * 60},))
            return super().task(number) if number == 6 else many

    settings = config()
    source = SplitTasks.of(settings.rollouts.tasks[0], Long("a", 9), 0.0)
    check_room(settings, [source], encode)
