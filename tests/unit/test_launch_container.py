"""Containers of jobs: all folders of a run are mounted, and missing parts are errors before."""

import argparse
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from data_prep import curriculum
from data_prep.stretches import ShardFile
from megatron_qwen3 import config as settings
from megatron_qwen3.cli import launch, launch_container
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.fields import settings_of, tables_of

ROOT = Path(__file__).resolve().parents[2]
STAGE = ("examples/stages/pretrain_1_general.toml", "examples/models/qwen3_8b.toml")
IMAGES = [
    "a.sif",
    "a.sqsh",
    "/images/a#b.sqsh",
    "docker://nvcr.io/nvidia/pytorch:26.06-py3",
    "nvcr.io#nvidia/pytorch:26.06-py3",
    "registry#a.sqsh",
    "ubuntu",
]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """As a user in the checkout who has set no variable."""
    monkeypatch.chdir(ROOT)
    for name in ("CONTAINER", "RUNTIME", "MOUNTS", "SETUP"):
        monkeypatch.delenv(f"QWEN3_{name}", raising=False)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(name=text): a PATH with bash, coreutils' cat, and these programs alone."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("bash", "cat"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))

    def programs(**texts):
        for name, text in texts.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o755)

    return programs


def given(container="/i.sif", **options):
    nothing = dict.fromkeys(("runtime", "mounts", "setup", "venv"))
    return argparse.Namespace(container=container, **nothing | options)


def config(*changes):
    return settings.load([], ["model.preset=tiny-dense", "train.steps=1", *changes])


def sources(*paths):
    rows = ", ".join(f'{{name="{n}", path="{path}"}}' for n, path in enumerate(paths))
    return f"data.sources=[{rows}]"


def test_every_setting_that_names_a_path_is_known():
    """By its help or its name; one that is added has to be put into a list, or out of it here."""
    known = {*launch_container.PATHS, *launch_container.FOLDERS, *launch_container.TABLES}
    no_paths = {"rollouts.vllm.python", "run.name", "model.preset"}
    words = ("folder", "file", "path", "checkpoint")
    for table, kind in {"": Config, **tables_of(Config)}.items():
        for name, row in settings_of(kind, f"{table}." if table else "").items():
            is_text = row.kind is str or "Config" in str(row.kind)
            names_one = any(word in row.rule["help"] for word in words)
            if is_text and names_one and not row.rule.get("choices"):
                assert name in known | no_paths, f"{name}: {row.rule['help']}"


def test_folders_of_a_run_are_mounted_and_none_twice(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "tokenizer.json").write_text("{}")
    one = config(
        f"run.dir={tmp_path}/runs",
        f"checkpoint.init_from={tmp_path}/model",
        sources(tmp_path / "data/a", tmp_path / "data/b", tmp_path / "data/deep/c", "data/inside"),
    )
    other = config(f"run.dir={tmp_path}/runs", f"data.tokenizer={tmp_path}/more/t.json")
    found = launch_container.folders([one, other], [ROOT])
    assert found == [f"{tmp_path}/{name}" for name in ("data", "model", "more", "runs")]


def test_a_tokenizer_of_the_hub_is_mounted_with_what_its_links_lead_to(tmp_path, monkeypatch):
    place = tmp_path / "models--Some--Model"
    (place / "snapshots" / "aaa").mkdir(parents=True)
    (place / "snapshots" / "aaa" / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    one = config(f"run.dir={ROOT}/runs", "data.tokenizer=Some/Model")
    assert launch_container.folders([one], [ROOT]) == [str(place)]


def test_what_a_mount_of_the_user_holds_is_not_mounted_again(tmp_path):
    asked = given(mounts=f"/elsewhere:{tmp_path}/data,/x:/y:ro")
    one = config(f"run.dir={tmp_path}/runs", sources(tmp_path / "data/a"))
    whole = launch_container.completed(asked, [one])
    assert whole.mounts == f"/elsewhere:{tmp_path}/data,/x:/y:ro,{tmp_path}/runs:{tmp_path}/runs"


def test_a_link_out_of_the_checkout_is_followed(tmp_path, monkeypatch):
    (tmp_path / "checkout").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "checkout/data").symlink_to(tmp_path / "scratch")
    monkeypatch.chdir(tmp_path / "checkout")
    found = launch_container.folders([config(sources("data/a"))], [Path.cwd()])
    assert found == [str(tmp_path / "scratch")]


def test_shards_of_a_curriculum_are_mounted(tmp_path):
    source = curriculum.Source("a", str(tmp_path / "shards"), (ShardFile("x", 99),))
    stage = curriculum.Stage("one", 8, 1.0, (curriculum.StageShare(source, 64, 0),))
    (tmp_path / "plans").mkdir()
    path = tmp_path / "plans/curriculum.json"
    curriculum.write(curriculum.Curriculum(1, {}, 64, (stage,)), path)
    one = config(f"data.curriculum={path}", "data.stage=one")
    found = launch_container.folders([one], [ROOT])
    assert {f"{tmp_path}/plans", f"{tmp_path}/shards"} <= set(found)


@pytest.mark.parametrize("name", ["a:b", "a,b"])
def test_a_folder_that_no_runtime_can_mount_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be mounted in a container"):
        launch_container.completed(given(), [config(f"run.dir={tmp_path}/{name}")])


def test_tasks_that_are_made_are_no_files():
    tasks = 'rollouts.tasks=[{name="a", path="gym:chain_sum"}]'
    assert launch_container.folders([config("run.mode=rl", tasks, "rollouts.rows=8")], [ROOT]) == []


@pytest.mark.parametrize("image", IMAGES)
def test_jobs_choose_the_same_runtime(image, tmp_path, programs):
    """environment.sh, which has the last word, and the launcher."""
    programs(srun="echo --container-image", apptainer="", singularity="")
    script = f"""
    cd {shlex.quote(str(tmp_path))}; : > a.sif; : > a.sqsh
    source {ROOT}/examples/slurm/environment.sh; cat <<< "$QWEN3_RUNTIME"
    """
    own = {"QWEN3_CONTAINER": image, "QWEN3_CHECKOUT": str(tmp_path)}
    done = subprocess.run(
        ["/bin/bash", "-c", script], env=os.environ | own, capture_output=True, text=True
    )
    if image.startswith("/images"):
        assert done.returncode == 2 and "is not there" in done.stderr
    else:
        assert done.stdout.split() == [launch_container.runtime(given(image))]


@pytest.mark.parametrize("image", ["none.sif", "./none.sqsh", "/none"])
def test_an_image_that_is_not_there_is_told(image, programs):
    whole = launch_container.completed(given(image), [config()])
    assert [*launch_container.faults(whole, looks_at_files=True)] == [
        f"--container {os.path.abspath(image)} is not there"
    ]
    assert [*launch_container.faults(whole, looks_at_files=False)] == []


def test_an_image_of_a_registry_is_not_looked_for(programs):
    for image in IMAGES[3:]:
        whole = launch_container.completed(given(image), [config()])
        assert whole.container == image
        assert [*launch_container.faults(whole, looks_at_files=True)] == []


def test_slurm_without_pyxis_is_told_and_named(programs):
    programs(srun="echo nothing of containers")
    (fault,) = launch_container.faults(given("ubuntu", asked=[]), looks_at_files=True)
    assert "needs the Pyxis plugin" in fault
    programs(srun="echo '  --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH'")
    assert [*launch_container.faults(given("ubuntu", asked=[]), looks_at_files=True)] == []


def test_apptainer_that_only_nodes_may_have_is_noted(programs):
    (note,) = launch_container.notes(given())
    assert "apptainer is not on PATH here" in note
    assert [*launch_container.notes(given(setup="modules.sh"))] == []
    assert [*launch_container.notes(given("ubuntu"))] == []
    programs(singularity="")
    assert [*launch_container.notes(given())] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"venv": "/v"}, "--venv /v: a container has an environment of its own"),
        ({"mounts": "/nowhere/x:/x"}, "--mounts /nowhere/x:/x: /nowhere/x is not there"),
    ],
)
def test_options_that_do_not_go_with_a_container_are_told(programs, options, told):
    whole = launch_container.completed(given("docker://a", **options), [config()])
    assert any(told in fault for fault in launch_container.faults(whole, looks_at_files=True))


@pytest.mark.parametrize("row", ["data", "/data", "/a b", "data:/data", "/a:b", "/a:/b:", ""])
def test_a_mount_is_two_whole_paths_whether_files_are_seen_or_not(programs, row):
    whole = launch_container.completed(given("docker://a", mounts=f"/x:/y,{row}"), [config()])
    assert [*launch_container.faults(whole, looks_at_files=False)] == [
        f'--mounts "{row}" is not /FOLDER:/FOLDER, as /home/me/hub:/hub or /data:/data:ro'
    ]


def test_an_empty_option_is_no_container_left_out():
    """Nor is a variable of the shell that nobody has set."""
    for name in ("container", "mounts", "setup"):
        with pytest.raises(ConfigError, match=f'--{name} "": it is empty'):
            launch_container.completed(given(**{name: ""}), [config()])


@pytest.mark.parametrize("option", [{"mounts": "/x:/y"}, {"runtime": "pyxis"}])
def test_what_is_of_a_container_is_not_passed_over_without_one(option):
    with pytest.raises(ConfigError, match="is a container's; name one by --container"):
        launch_container.completed(given(None, **option), [config()])


def test_an_image_with_a_line_in_its_name_is_refused(programs):
    whole = launch_container.completed(given("/i\n.sif"), [config()])
    (fault,) = launch_container.faults(whole, looks_at_files=False)
    assert fault == "--container '/i\\n.sif' has a character that is no part of a name"


def test_what_variables_say_is_checked_like_options(monkeypatch, programs):
    monkeypatch.setenv("QWEN3_CONTAINER", "/none.sif")
    monkeypatch.setenv("QWEN3_RUNTIME", "docker")
    whole = launch_container.completed(given(None), [config()])
    found = [*launch_container.faults(whole, looks_at_files=True)]
    assert any("/none.sif is not there" in fault for fault in found)
    assert any("QWEN3_RUNTIME = docker is not one of apptainer, pyxis" in f for f in found)


def test_the_command_that_is_shown_has_image_and_mounts(tmp_path, capsys, programs):
    (tmp_path / "an image.sif").write_text("")
    words = ["train", *STAGE, "--nodes=4", "--skip-files", "--show", f"run.dir={tmp_path}/a b"]
    assert launch.main([*words, f"--container={tmp_path}/an image.sif"]) == 0
    told = capsys.readouterr()
    (line,) = [line for line in told.out.splitlines() if "sbatch" in line]
    variables = shlex.split(line.removeprefix("job1=$("))
    assert f"QWEN3_CONTAINER={tmp_path}/an image.sif" in variables
    assert f"QWEN3_MOUNTS={tmp_path}/a b:{tmp_path}/a b" in variables
    assert "note: apptainer is not on PATH here" in told.err


def test_a_wrong_container_is_told_with_all_else_that_is_wrong(tmp_path, capsys, programs):
    words = ["train", *STAGE, "--nodes=3", f"--container={tmp_path}/none.sif", "--show"]
    assert launch.main(words) == 2
    told = capsys.readouterr().err
    assert "none.sif is not there" in told and "--nodes that fit: 2 or 4" in told
