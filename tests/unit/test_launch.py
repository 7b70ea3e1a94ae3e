"""launch.py: mistakes are errors before a job waits, and arguments reach the job unchanged."""

import os
import shlex
import subprocess
from pathlib import Path

import dialog_sets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from data_prep.indexed import IndexedWriter
from megatron_qwen3 import config as settings
from megatron_qwen3 import entry
from megatron_qwen3.cli import launch, launch_sbatch
from megatron_qwen3.config import ConfigError
from megatron_qwen3.convert import hf_config
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.planner import allocation as planner
from megatron_qwen3.planner import hardware
from megatron_qwen3.planner.allocation import Allocation
from megatron_qwen3.settings_rope import RopeConfig

ROOT = Path(__file__).resolve().parents[2]
STAGE = "examples/stages/pretrain_1_general.toml"
H100 = hardware.load("h100")
SBATCH = """#!/bin/bash
if [ "$1" = --test-only ]; then echo "${IMPOSSIBLE:-}" >&2; [ -z "${IMPOSSIBLE:-}" ]; exit; fi
printf '%s\\0' "$@" >> "$RECORD"; printf 'END\\0' >> "$RECORD"
echo "$QWEN3_CONTAINER" >> "$RECORD.container"
[ "$(grep -zc END "$RECORD")" != "${REFUSE:-}" ] || { echo "invalid account" >&2; exit 1; }
echo "10$(grep -zc END "$RECORD")"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder where a pretended sbatch and scancel write down their arguments."""
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("sinfo", "#!/bin/bash\necho 'gpu* 1-00:00:00'; echo 'debug 30:00'"),
        ("scancel", '#!/bin/bash\necho "$@" > "$RECORD.cancelled"\n'),
    ):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.chdir(ROOT)
    return tmp_path


def calls(folder):
    """The argument lists of every call of sbatch."""
    text = (folder / "record").read_text()
    return [call.split("\0")[:-1] for call in text.split("END\0")[:-1]]


def train(*arguments):
    stage = (STAGE, "examples/models/qwen3_8b.toml")
    return launch.main(["train", *stage, "--nodes=4", "--skip-files", *arguments])


def allocation(nodes=4, gpus=8, **changes):
    sizes = {"nvlink_domain": gpus, "gpu": H100, "time_limit_seconds": 86400}
    return Allocation(nodes, gpus, **({"save_seconds": 600} | sizes | changes))


def config(model="qwen3_8b", *changes):
    return settings.load([ROOT / STAGE, ROOT / f"examples/models/{model}.toml"], changes)


def test_numbers_of_nodes_that_are_proposed_do_fit():
    wanted = config("qwen3_235b_a22b", "train.global_batch=96")
    for nodes in range(1, 40):
        found = planner.faults(wanted, allocation(nodes, gpu=None))
        if not found or "fit:" not in found[0]:
            continue
        for near in found[0].partition("fit: ")[2].split(" or "):
            Layout.of(wanted, int(near) * 8)


@pytest.mark.parametrize(
    ("wanted", "asked", "told"),
    [
        (config(), allocation(3), "--nodes that fit: 2 or 4"),
        (config(), allocation(4, gpus=6), "--nodes 4 of 6 GPUs"),
        (config("qwen3_32b"), allocation(4, gpus=4), "(--nvlink-domain)"),
        (config("qwen3_235b_a22b"), allocation(8, save_seconds=2000), "GB of a GPU (H100"),
        (config(), allocation(time_limit_seconds=600), "--save-seconds 600 before its end"),
        (
            config(),
            allocation(time_limit_seconds=120, save_seconds=60),
            "run.stop_early_seconds = 120 before its end the run saves and stops",
        ),
        (config("qwen3_235b_a22b"), allocation(32, save_seconds=60), "valid: 2"),
        (config(), allocation(1), "--time is 24.0 h: a run that dies would lose all of it"),
        (config("qwen3_8b", "checkpoint.every_steps=0"), allocation(), "would lose all of it"),
        (config("qwen3_30b_a3b", "model.expert_ffn_hidden_size=772"), allocation(), "16 bytes"),
    ],
)
def test_what_does_not_fit_is_told(wanted, asked, told):
    found = planner.faults(wanted, asked)
    assert any(told in fault for fault in found), found


def test_what_a_fault_proposes_is_accepted():
    (fault,) = planner.faults(config(), allocation(1))
    steps = fault.rpartition("valid: ")[2].split()[0].replace(",", "")
    assert (
        planner.faults(config("qwen3_8b", f"checkpoint.every_steps={steps}"), allocation(1)) == []
    )
    (fault,) = planner.faults(config("qwen3_235b_a22b"), allocation(32, save_seconds=60))
    seconds = int(fault.rpartition("valid: ")[2].split()[0].replace(",", ""))
    assert planner.faults(config("qwen3_235b_a22b"), allocation(32, save_seconds=seconds)) == []


def rl(*changes):
    tasks = "rollouts.tasks=[{name='sums', path='gym:chain_sum'}]"
    sizes = ["train.steps=4", "data.sequence_length=4096"]
    model = [ROOT / "examples/models/qwen3_8b.toml"]
    return settings.load(model, ["run.mode=rl", "rollouts.rows=8", tasks, *sizes, *changes])


SIXTEEN = ("parallel.tensor=4", "parallel.pipeline=4")  # ranks that a model takes
URLS = "rollouts.vllm.urls=['http://a:1']"


def vllm(*changes):
    return rl("rollouts.engine=vllm", "rollouts.vllm.python=/opt/vllm/bin/python", *changes)


@pytest.mark.parametrize(
    ("wanted", "asked", "told"),
    [
        (config(), {"server_nodes": 1}, 'which run.mode = "pretrain" does not'),
        (rl(), {"server_nodes": 1}, "set rollouts.engine=vllm"),
        (vllm(), {"server_nodes": 4}, "leaves none of --nodes 4"),
        (rl("rollouts.engine=vllm", URLS), {"server_nodes": 1}, "names others"),
        (vllm(), {"server_nodes": 1, "node_servers": 3}, "valid: 1, 2, 4, 8"),
        (vllm(), {}, "would take nine tenths of their memory"),
        (vllm(*SIXTEEN), {"server_nodes": 1}, "GPUs, 1 of them for servers: "),
    ],
)
def test_servers_that_have_no_place_or_no_use_are_told(wanted, asked, told):
    (fault,) = planner.faults(wanted, allocation(**asked))
    assert told in fault


def test_servers_that_have_a_place_are_accepted():
    limited = 'rollouts.vllm.options=["--gpu-memory-utilization=0.2"]'
    assert planner.faults(vllm(), allocation(3, server_nodes=1)) == []
    assert planner.faults(rl("rollouts.engine=vllm", URLS), allocation()) == []
    assert planner.faults(vllm(limited), allocation()) == []
    assert planner.faults(vllm(), allocation(gpu=None)) == []


def test_ranks_are_on_the_nodes_that_servers_leave():
    asked = allocation(5, server_nodes=1)
    assert asked.world_size == 32
    found = planner.faults(vllm(*SIXTEEN), allocation(4, server_nodes=1))  # of 24 ranks
    assert "--nodes that fit: 3 or 5" in found[0]


def test_experts_across_the_network_are_noted_and_allowed():
    wide = config("qwen3_30b_a3b", "parallel.expert=32")
    assert planner.faults(wide, allocation(8)) == []
    assert "over the network" in planner.advice(wide, allocation(8))[0]
    assert planner.advice(wide, allocation(8, nvlink_domain=64)) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("12:00:00", 43200),
        ("2-12", 216000),
        ("1-00:30", 88200),
        ("1-0:0:1", 86401),
        ("unlimited", 0),
    ],
)
def test_times_mean_what_they_mean_to_slurm(text, seconds):
    assert launch_sbatch.parse_time(text) == seconds


@pytest.mark.parametrize("text", ["24h", "", "1:2:3:4", "1-2:3:4:5", "-1", "12:00:00 "])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match="as SLURM writes it"):
        launch_sbatch.parse_time(text)


def test_a_run_is_submitted_with_what_was_asked_for(slurm, capsys):
    more = (
        "--partition=gpu",
        "--gres=gpu:h100:8",
        "--sbatch=--reservation=x y",
        "--container=/i j.sif",
    )
    assert train(f"run.dir={slurm}/100%", *more) == 0
    (words,) = calls(slurm)
    folder = f"{slurm}/100%/pretrain_1_general"
    assert words[-4:] == [
        *("examples/slurm/train.sbatch", STAGE, "examples/models/qwen3_8b.toml"),
        f"run.dir={slurm}/100%",
    ]
    options = set(words[:-4])
    assert {"--nodes=4", "--ntasks-per-node=8", "--gres=gpu:h100:8", "--partition=gpu"} <= options
    assert {"--signal=B:USR1@600", "--time=24:00:00", "--reservation=x y"} <= options
    assert f"--output={folder.replace('%', '%%')}/slurm-%j.out" in options
    assert not any(word.startswith(("--gpus-per-node", "--account")) for word in options)
    assert (slurm / "record.container").read_text() == "/i j.sif\n"
    assert Path(folder).is_dir()
    assert capsys.readouterr().out == f"101  {folder}/slurm-101.out\n"


@examples(deadline=None)  # a busy machine is no fault
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r/"), min_size=1))
def test_no_shell_reads_what_was_typed(name):
    """--show prints a script that gives sbatch the same words as a submission does."""
    run = launch.Submission(
        (STAGE, f"run.name={name}"), config("qwen3_8b", f"run.name={settings.emit(name)}")
    )
    asked = entry.parse(launch._parser(None), ["train", "-", "--nodes=4"])
    words = launch_sbatch.command(run, asked)
    assert shlex.split(shlex.join(words)) == words
    assert words[-1] == f"run.name={name}"


def test_nccls_buffers_are_not_asked_of_jobs_whose_memory_grows(slurm, monkeypatch, capsys):
    asked = f"run.dir={slurm}/runs", "overlap.nccl_buffers=true"
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    assert train(*asked) == 2
    assert "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False" in capsys.readouterr().err
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False")
    assert train(*asked) == 0


def test_what_nodes_without_gpus_lack_is_told_before_a_job_waits_for_them():
    asked = allocation(1, 8, gpu=None)
    (fault,) = planner.faults(config("qwen3_8b", "model.kind=te"), asked)
    assert fault.startswith('model.kind = "te" needs GPUs, and --gres none')
    (fault,) = planner.faults(config("qwen3_8b", "optim.adam=te"), asked)
    assert fault.startswith('optim.adam = "te" is for GPUs, and --gres none')


def test_ranks_that_take_no_gpu_of_their_nodes_are_told_what_they_lack():
    asked = allocation(1, 8, gpu=hardware.load("h100"))
    (fault,) = planner.faults(config("qwen3_8b", "model.kind=te", "run.device=cpu"), asked)
    assert fault.startswith('model.kind = "te" needs GPUs, and run.device = "cpu" takes none')
    (fault,) = planner.faults(config("qwen3_8b", "run.device=cuda"), allocation(1, 8, gpu=None))
    assert fault.startswith('run.device = "cuda" needs GPUs, and --gres none')


def test_buffers_of_tensor_ranks_need_a_chip_that_writes_to_all_of_them(monkeypatch):
    monkeypatch.delenv("UB_SKIPMC", raising=False)
    words = "model.kind=te", "overlap.tensor=true", "checkpoint.every_steps=100"
    asked = config("qwen3_8b", *words)
    assert planner.faults(asked, allocation(1, 8, gpu=hardware.load("h100"))) == []
    older = allocation(1, 8, gpu=hardware.load("a100"))
    (fault,) = planner.faults(asked, older)
    assert fault.startswith("overlap.tensor = true, and A100 (--gpu) has no CUDA multicast")
    assert "export UB_SKIPMC=1" in fault
    monkeypatch.setenv("UB_SKIPMC", "1")
    assert planner.faults(asked, older) == []


def test_experts_that_nothing_is_computed_beside_are_told():
    words = "model.kind=te", "overlap.experts=true", "parallel.tensor=1"
    gpus = allocation(1, 8, gpu=hardware.load("h100"))
    for rows, notes in ((16, 0), (8, 1)):
        asked = config("qwen3_30b_a3b", *words, f"train.global_batch={rows}")
        told = [text for text in planner.advice(asked, gpus) if "one micro-batch a step" in text]
        assert len(told) == notes


def test_a_stage_of_rl_is_submitted_with_its_servers_to_a_script_of_its_own(slurm, capsys):
    (slurm / "rl.toml").write_text(
        '[run]\nmode = "rl"\n[rollouts]\nengine = "vllm"\nrows = 8\nvllm = {python = "p"}\n'
        'tasks = [{name = "sums", path = "gym:chain_sum"}]\n'
        "[train]\nsteps = 40\n[rl]\nupdates = 4\n"
    )
    words = [str(slurm / "rl.toml"), "examples/models/qwen3_8b.toml", f"run.dir={slurm}"]
    words += ["--nodes=3", "--server-nodes=1", "--node-servers=2", "--skip-files"]
    assert launch.main(["train", *words]) == 0
    (call,) = calls(slurm)
    assert "examples/slurm/rl.sbatch" in call and "--nodes=3" in call
    told = capsys.readouterr().err
    assert "2 nodes x 8 GPUs" in told and "2 servers of vLLM on 1 more node" in told
    assert "40 updates, 4 on each of 10 batches of 32 x 8 answers" in told
    assert launch.main(["train", *words, "--show"]) == 0
    shown = capsys.readouterr().out
    assert "QWEN3_SERVER_NODES=1 QWEN3_NODE_SERVERS=2 sbatch" in shown


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["rollouts.tasks=[{name='a', path='/none.jsonl'}]"], "/none.jsonl"),
        (["rl.kl.coefficient=0.1", "rl.kl.reference=/none"], "rl.kl.reference: "),
    ],
)
def test_files_of_rl_are_looked_for(slurm, capsys, changes, told):
    (slurm / "rl.toml").write_text('[run]\nmode = "rl"\n[rollouts]\nrows = 8\n')
    words = [str(slurm / "rl.toml"), "examples/models/qwen3_8b.toml", f"run.dir={slurm}"]
    words += ["train.steps=4", "rollouts.tasks=[{name='a', path='gym:chain_sum'}]", *changes]
    assert launch.main(["train", *words, "--nodes=2", "--show"]) == 2
    assert told in capsys.readouterr().err


def test_a_teacher_that_does_not_fit_the_ranks_is_told(slurm, capsys):
    (slurm / "t").mkdir()
    hf_config.write_config(slurm / "t", config().model, RopeConfig(), 4096, "bfloat16", {})
    source = {"name": "a", "path": dialog_sets.write(slurm / "a", [5] * 40)}
    words = [*dialog_sets.settings(source), "train.steps=1", "sft.objective=both"]
    words += [f"sft.teacher.path={slurm}/t", "sft.teacher.pipeline=3", f"run.dir={slurm}"]
    options = ["--nodes=1", "--gpus-per-node=2", "--gres=none", "--show"]
    assert launch.main(["train", *words, *options]) == 2
    assert "sft.teacher" in capsys.readouterr().err


def test_what_show_prints_submits_the_same_chain(slurm, capsys):
    words = ["chain", "examples/models/qwen3_8b.toml", f"run.dir={slurm}/a '$(touch {slurm}/b)'"]
    words += ["--nodes=8", "--skip-files", "--account=x"]
    assert launch.main(words) == 0
    submitted = calls(slurm)
    (slurm / "record").unlink()
    capsys.readouterr()
    assert launch.main([*words, "--show"]) == 0
    subprocess.run(["bash", "-euc", capsys.readouterr().out], check=True)
    assert [sorted(call) for call in calls(slurm)] == [sorted(call) for call in submitted]
    asked = [w for call in submitted for w in call if w.startswith("--dependency")]
    assert asked == [
        "--dependency=singleton",
        *(f"--dependency=singleton,afterok:{n}" for n in (101, 102)),
    ]
    assert not (slurm / "b").exists()


def test_a_chain_of_which_slurm_refuses_a_part_is_taken_back(slurm, monkeypatch, capsys):
    monkeypatch.setenv("REFUSE", "3")
    words = ["chain", "examples/models/qwen3_8b.toml", f"run.dir={slurm}/runs"]
    assert launch.main([*words, "--nodes=8", "--skip-files"]) == 2
    assert (slurm / "record.cancelled").read_text() == "101 102\n"
    assert "pretrain_3_long_context: invalid account" in capsys.readouterr().err


def test_a_chain_starts_after_another_job(slurm):
    words = ["chain", "examples/models/qwen3_8b.toml", f"run.dir={slurm}/runs", "--after=77"]
    assert launch.main([*words, "--nodes=8", "--skip-files"]) == 0
    asked = [w for call in calls(slurm) for w in call if w.startswith("--dependency")]
    assert asked == [f"--dependency=singleton,afterok:{n}" for n in (77, 101, 102)]


@pytest.mark.parametrize("option", ["--nodes=9", "--dependency=afterok:1", "--signal=USR2@1"])
def test_an_option_that_is_checked_does_not_slip_by(slurm, capsys, option):
    assert train(f"run.dir={slurm}", f"--sbatch={option}") == 2
    assert f"--sbatch={option} is not checked" in capsys.readouterr().err
    assert not (slurm / "record").exists()


def test_what_slurm_would_queue_for_ever_is_not_submitted(slurm, monkeypatch, capsys):
    assert train(f"run.dir={slurm}", "--time=1-00:01") == 2
    assert "--time 1-00:01 exceeds 1-00:00:00, the most of gpu*" in capsys.readouterr().err
    small = ("checkpoint.every_steps=10", "--partition=debug", "--time=40")
    assert train(f"run.dir={slurm}", *small) == 2
    assert "exceeds 30:00, the most of debug" in capsys.readouterr().err
    monkeypatch.setenv("IMPOSSIBLE", "not available")
    assert train(f"run.dir={slurm}") == 2
    assert "SLURM could not start it: not available" in capsys.readouterr().err
    assert not (slurm / "record").exists()


def test_files_that_are_missing_are_told_together(slurm, capsys):
    words = [
        "train",
        STAGE,
        "examples/models/qwen3_8b.toml",
        "--nodes=4",
        "checkpoint.init_from=no",
    ]
    assert launch.main([*words, "--venv=/no", "data.tokenizer=no.json"]) == 2
    told = capsys.readouterr().err
    for part in (
        "web_en.idx does not exist",
        "no.json does not exist",
        '"no" is neither',
        "/no/bin",
    ):
        assert part in told
    assert not (slurm / "record").exists()


def test_a_stage_that_does_not_start_from_the_one_before_is_told(slurm, capsys):
    words = ["chain", "examples/models/qwen3_8b.toml", "--nodes=8", "--skip-files"]
    stages = [
        f"--stage=examples/stages/pretrain_{name}.toml" for name in ("1_general", "3_long_context")
    ]
    assert launch.main([*words, *stages]) == 2
    assert (
        "not the folder of the stage before it, runs/qwen3-8b/pretrain_1_general"
        in capsys.readouterr().err
    )


def test_files_that_are_there_are_enough(slurm, tmp_path):
    with IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.add_document(np.arange(9999) % 100)
    sources = f'data.sources=[{{ name = "a", path = "{tmp_path}/a" }}]'
    own = (
        "data.held_out=0",
        "data.tokenizer=",
        "data.sequence_length=128",
        f"run.dir={tmp_path}/runs",
    )
    words = [STAGE, "examples/models/tiny_moe.toml", sources, *own, "train.tokens=1e9"]
    assert launch.main(["train", *words, "--nodes=1"]) == 0


def test_paths_of_sources_are_relative_to_the_checkout_as_a_run_takes_them(slurm, tmp_path):
    relative = Path(os.path.relpath(tmp_path / "a"))
    with IndexedWriter(relative, np.uint16) as writer:
        writer.add_document(np.arange(9999) % 100)
    sources = f'data.sources=[{{ name = "a", path = "{relative}" }}]'
    own = ("data.held_out=0", "data.tokenizer=", "data.sequence_length=128", "train.tokens=1e9")
    words = [STAGE, "examples/models/tiny_moe.toml", sources, *own, f"run.dir={tmp_path}/runs"]
    assert launch.main(["train", *words, "--nodes=1"]) == 0


def test_it_is_called_in_the_checkout(slurm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(ROOT / STAGE), "model.preset=qwen3-8b", "--nodes=4", "--skip-files"]
    assert launch.main(["train", *words]) == 2
    assert f"call it in {ROOT}" in capsys.readouterr().err


def test_without_a_checkout_nothing_is_submitted(slurm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "ROOT", tmp_path)  # as where the package alone is installed
    words = [STAGE, "model.preset=qwen3-8b", "--nodes=4", "--skip-files"]
    assert launch.main(["train", *words]) == 2
    assert f"train.sbatch of a checkout, and {tmp_path} is none" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_is_told_before_a_job_waits(slurm, capsys):
    (slurm / "runs").symlink_to("nowhere")
    words = ["train", STAGE, "examples/models/qwen3_8b.toml", "--nodes=4"]
    assert launch.main([*words, f"run.dir={slurm}/runs"]) == 2
    assert "runs is a link to nowhere, which is not there" in capsys.readouterr().err


def test_a_stage_of_dialogs_is_submitted_once_its_sets_are_there(slurm, tmp_path, capsys):
    stage, model = "examples/stages/post_1_cold_start.toml", "examples/models/tiny_moe.toml"
    words = ["train", stage, model, "--nodes=1", f"run.dir={tmp_path}/runs", "data.tokenizer="]
    words += ["checkpoint.init_from=", "data.sequence_length=64", "train.steps=3"]
    words += ["train.global_batch=8", "optim.warmup_steps=0"]
    sources = 'sft.sources=[{{name="a", path="{}", epochs={}}}]'
    assert launch.main([*words, sources.format(tmp_path / "none", 1)]) == 2
    assert "none.json" in capsys.readouterr().err
    dialog_sets.write(tmp_path / "a", [64] * 20)
    assert launch.main([*words, sources.format(tmp_path / "a", 1)]) == 2
    assert "the epochs of [[sft.sources]] fill 19 rows" in capsys.readouterr().err
    assert launch.main([*words, sources.format(tmp_path / "a", 2)]) == 0
    (call,) = calls(slurm)
    assert stage in call and sources.format(tmp_path / "a", 2) in call
