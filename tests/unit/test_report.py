"""The page about a training has the numbers of its runs, and no name in a file can harm it."""

import contextlib
import io
import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from megatron_qwen3.cli import report
from megatron_qwen3.pages.pictures import spread
from megatron_qwen3.pages.training_pictures import _held_out_curves, draw_all, smooth
from megatron_qwen3.training.history import RunHistory

HOSTILE = "<script>alert(1)</script> $x_[/red]\x1b[2J\n\u202e"


def write_run(folder, steps, first_loss, sources=("web",), sparse=False):
    folder.mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1):
        row = {"kind": "train", "step": step, "tokens": step * 1000, "loss": first_loss - step / 50}
        row |= {"grad_norm": 1.0, "lr": 1e-3, "step_seconds": 0.1, "tokens_per_second": 1e4 + step}
        rows.append(row | ({"expert_balance": 1.2} if sparse else {}))
    for i, source in enumerate([*sources, "all"]):
        row = {"kind": "eval", "step": steps, "source": source, "tokens": 100}
        rows.append(row | {"loss": 2.345 + i, "bits_per_byte": 0.987 + i})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.toml").write_text('[run]\nname = "</pre><b>"\n')
    return str(folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of two stages, with the printed lines and the folder of pictures."""
    tmp_path, printed = tmp_path_factory.mktemp("stages"), io.StringIO()
    stages = [
        write_run(tmp_path / "first", 100, 6.0, sources=("web", HOSTILE)),
        write_run(tmp_path / "second [red]", 50, 3.5, sparse=True),
    ]
    out = tmp_path / "page.html"
    with contextlib.redirect_stdout(printed):
        assert report.main([*stages, "--out", str(out)]) == 0
    return out.read_text(), printed.getvalue(), tmp_path / "page"


def test_page_and_terminal_show_the_numbers_of_every_stage(page):
    html, printed, _ = page
    for text in (html, printed):
        for number in ("5.980", "4.010", "3.480", "2.500", "100k", "50.0k", "4.345", "10.1k"):
            assert number in text
    assert "150k" in html  # tokens of both stages
    assert "second [red]" in printed


def test_pictures_stand_in_the_page_and_beside_it(page):
    html, _, folder = page
    names = {path.stem for path in folder.glob("*.png")}
    assert names == {
        "loss", "held_out_loss", "bits_per_byte", "gradient_norm", "learning_rate",
        "tokens_per_second", "expert_balance",
    }  # fmt: skip
    assert html.count("<svg") == len(names)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    for i in range(html.count("<svg")):
        svg = "<svg" + html.split("<svg")[i + 1].split("</svg>")[0] + "</svg>"
        assert "tokens trained on" in "".join(ElementTree.fromstring(svg).itertext())


def test_the_page_needs_no_other_file_and_follows_light_and_dark(page):
    html, _, _ = page
    assert "src=" not in html
    assert "<link" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert "stroke: var(--hue-0)" in html


def test_text_from_files_is_escaped(page):
    html, _, _ = page
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x_" in html
    assert "&lt;/pre&gt;&lt;b&gt;" in html


def test_a_dense_model_without_evaluations_has_fewer_pictures_and_columns(tmp_path, capsys):
    folder = tmp_path / "run"
    write_run(folder, 3, 6.0)
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    assert report.main([str(folder), "--out", str(tmp_path / "r.html")]) == 0
    assert not (tmp_path / "r" / "held_out_loss.png").exists()
    assert not (tmp_path / "r" / "expert_balance.png").exists()
    assert "held-out" not in capsys.readouterr().out
    assert report.main([str(folder), "--out", str(tmp_path / "r.html"), "--json"]) == 0
    (numbers,) = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    last = [row for row in lines if "loss" in row][-1]
    assert (numbers["steps"], numbers["last_loss"]) == (last["step"], last["loss"])
    assert numbers["held_out"] == {}


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path, capsys):
    folder = tmp_path / "run"
    write_run(folder, 3, math.nan)
    assert report.main([str(folder), "--out", str(tmp_path / "r.html"), "--json"]) == 0

    def refused(word):
        raise AssertionError(word)

    (numbers,) = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert numbers["last_loss"] is numbers["mfu"] is None and numbers["steps"] == 3


def test_a_hundred_sources_still_make_a_picture(tmp_path):
    folder = write_run(tmp_path / "run", 3, 6.0, sources=[f"language_{i}" for i in range(100)])
    assert report.main([folder, "--out", str(tmp_path / "r.html")]) == 0
    html = (tmp_path / "r.html").read_text()
    assert "language_57" in html  # in the table, not in the picture
    assert "language_57" not in html.split('class="figures"')[1].split("</section>")[0]


def test_a_folder_without_metrics_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert report.main([str(tmp_path / "empty"), "--out", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'empty'}: no metrics.jsonl" in error
    assert not (tmp_path / "r.html").exists()


def test_a_metric_that_only_some_steps_have_keeps_its_place(tmp_path):
    rows = [{"kind": "train", "step": s, "tokens": s, "loss": 1.0} for s in range(1, 5)]
    rows[2]["reward"] = 0.5
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    column = RunHistory.read(tmp_path).column("reward")
    assert np.isnan(column[[0, 1, 3]]).all()
    assert column[2] == 0.5


def test_held_out_losses_stand_over_the_tokens_of_their_step_when_the_batch_has_changed():
    columns = {"step": np.array([1.0, 2, 3, 4]), "tokens": np.array([100.0, 200, 600, 1000])}
    evaluations = [{"step": n, "source": "web", "loss": 9.0 - n} for n in (2, 4)]
    tokens, losses = _held_out_curves([RunHistory("a", columns, evaluations, "")], "loss")["web"]
    assert (tokens.tolist(), losses.tolist()) == ([200, 1000], [7, 5])


@pytest.mark.parametrize(("init_from", "points"), [("", 5), ("previous", 4)])
def test_no_line_of_held_out_losses_leads_into_a_model_that_is_new(init_from, points):
    columns = {"step": np.array([1.0, 2]), "tokens": np.array([100.0, 200])}
    evaluations = [{"step": n, "source": "web", "loss": 9.0 - n} for n in (1, 2)]
    config = f'[checkpoint]\ninit_from = "{init_from}"\n'
    runs = [RunHistory(name, columns, evaluations, config) for name in "ab"]
    tokens, losses = _held_out_curves(runs, "loss")["web"]
    assert len(tokens) == points and np.isnan(losses).sum() == points - 4
    assert tokens.tolist() == sorted(tokens) and losses[[0, 1, -2, -1]].tolist() == [8, 7, 8, 7]


def test_losses_of_several_kinds_are_named_and_shares_have_an_axis_from_0_to_1(tmp_path):
    stages = [write_run(tmp_path / name, 3, 6.0) for name in ("cold", "reward")]
    settings = ['[sft]\nobjective = "both"\n', '[run]\nmode = "reward"\n']
    runs = [RunHistory.read(folder) for folder in stages]
    runs = [
        RunHistory(r.name, r.columns, r.evaluations, s) for r, s in zip(runs, settings, strict=True)
    ]
    (first, *_) = draw_all(runs)
    assert "stages train different losses: 1 both, 2 bradley_terry" in first.caption
    assert "different" not in draw_all(runs[:1])[0].caption
    runs[1].evaluations[:] = [{"step": 3, "source": "web", "accuracy": 1.0}]
    pictures = {picture.name: picture for picture in draw_all(runs[1:])}
    texts = {t.strip() for t in ElementTree.fromstring(pictures["accuracy"].svg).itertext()}
    assert {"0", "1"} <= {f"{float(t):g}" for t in texts if t.replace(".", "", 1).isdigit()}


def test_smoothing_keeps_straight_lines_and_steep_starts_and_averages_noise():
    line = np.linspace(5.0, 1.0, 200)
    assert smooth(line)[:-4] == pytest.approx(line[:-4])
    assert smooth(np.array([9.0, 1.0, 1.0, 1.0]))[0] == 9.0
    noise = np.random.default_rng(0).normal(size=5000)
    assert smooth(noise)[200:].std() < 0.15
    assert smooth(np.array([1.0, 1.0, np.nan, 1.0])) == pytest.approx(1.0)


def test_labels_keep_their_order_and_their_distance():
    placed = spread([0.1, 0.1, 0.12, 0.98, 0.99, 1.0], 0.05)
    assert placed == sorted(placed)
    assert min(np.diff(placed)) >= 0.05 - 1e-9
    assert max(placed) <= 1.0
