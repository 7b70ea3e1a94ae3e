"""Memory and step time of a job: properties for any constants."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.model.flops import flops_per_token
from megatron_qwen3.planner import activations, architecture, calibration, hardware
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.step import Step
from megatron_qwen3.presets import PRESETS

H100, CONSTANTS = hardware.load("h100"), calibration.load()
SIZES = [name for name in PRESETS if name.startswith("qwen3-")]
LAYOUTS = [
    [],
    ["parallel.tensor=4"],
    ["parallel.pipeline=4"],
    ["parallel.pipeline=4", "parallel.virtual_pipeline=2", "parallel.tensor=2"],
]


def job_of(name, world, *overrides, batch=512, sequence=4096):
    given_settings = [
        f"model.preset={name}",
        "train.steps=1",
        f"train.global_batch={batch}",
        f"data.sequence_length={sequence}",
    ]
    return Job.of(load([], [*given_settings, *overrides]), world)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("sequence", [4096, 32768])
def test_work_is_that_of_model_flops_for_every_size(name, sequence):
    model = load([], [f"model.preset={name}", "train.steps=1"]).model
    assert architecture.of(model).flops_per_token(sequence) == flops_per_token(model, sequence)


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_grows_with_micro_batch_and_with_the_sequence(name, layout):
    def total(micro_batch, sequence):
        one = job_of(name, 32, *layout, f"train.micro_batch={micro_batch}", sequence=sequence)
        return Memory.of(one).total

    assert total(1, 4096) < total(2, 4096) < total(4, 4096)
    assert total(1, 4096) < total(1, 8192) < total(1, 32768)


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen3-30b-a3b"])
def test_recomputation_trades_memory_for_time(name):
    jobs = [job_of(name, 32, f"parallel.recompute={r}") for r in ("none", "selective", "full")]
    kept = [activations.layer_bytes(job, 0) for job in jobs]
    times = [Step.of(job, H100, CONSTANTS).seconds for job in jobs]
    assert kept == sorted(kept, reverse=True) and times == sorted(times)


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_a_step_are_not_negative_and_add_up(name, layout):
    step = Step.of(job_of(name, 32, *layout), H100, CONSTANTS)
    assert min(step.parts.values()) > -1e-9 and min(step.hidden.values()) > -1e-9
    assert sum(step.parts.values()) == pytest.approx(step.seconds)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["qwen3-4b", "qwen3-30b-a3b", "qwen3-32b"]),
    st.sampled_from(LAYOUTS),
    st.sampled_from([16, 64]),
    st.sampled_from(["h100", "b200", "gb200"]),
)
def test_more_gpus_for_more_work_are_never_faster_than_linear(name, layout, world, gpu):
    cluster = hardware.load(gpu)
    one = Step.of(job_of(name, world, *layout, batch=4 * world), cluster, CONSTANTS)
    two = Step.of(job_of(name, 4 * world, *layout, batch=16 * world), cluster, CONSTANTS)
    assert two.tokens_per_second_per_gpu <= one.tokens_per_second_per_gpu * (1 + 1e-9)
    assert one.tflops_per_gpu * 1e12 < cluster.peak_flops("bf16")


def test_a_faster_chip_is_faster_and_low_precision_is_too():
    job = job_of("qwen3-8b", 8)
    seconds = {gpu: Step.of(job, hardware.load(gpu), CONSTANTS).seconds for gpu in hardware.names()}
    assert seconds["b200"] < seconds["h100"] < seconds["a100"]
    assert seconds["h200"] <= seconds["h100"] < seconds["h20"]
    fp8 = dataclasses.replace(job, precision="fp8")
    assert Step.of(fp8, H100, CONSTANTS).seconds < seconds["h100"]


def test_natural_routing_and_a_slow_network_cost_time():
    job = dataclasses.replace(
        job_of("qwen3-30b-a3b", 32, "parallel.expert=16"), force_balanced=True
    )
    even = Step.of(job, H100, CONSTANTS).seconds
    natural = Step.of(dataclasses.replace(job, force_balanced=False), H100, CONSTANTS).seconds
    slow = Step.of(job, dataclasses.replace(H100, network_gb_per_s=5.0), CONSTANTS).seconds
    assert even < natural < 2 * even and slow > even


def test_every_constant_is_set_and_within_reach_of_its_prior():
    for name, row in calibration.CONSTANTS.items():
        ratio = CONSTANTS[name] / row["prior"]
        assert 1 / 3 < ratio < 3, name


@pytest.mark.parametrize("name", hardware.names())
def test_hardware_files_name_the_source_of_what_they_set(name):
    text = (hardware.FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    rates = [
        line for line in text.splitlines() if line.startswith(("memory", "nvlink", "network_"))
    ]
    assert all("#" in line for line in rates)
    assert hardware.load(name).memory_gb > 0


def test_a_cluster_of_ones_own_takes_over_the_rest(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "h100"\nname = "mine"\nnetwork_gb_per_s = 12.5\n', encoding="utf-8")
    cluster = hardware.load(str(mine))
    assert (cluster.network_gb_per_s, cluster.memory_gb) == (12.5, 80.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('base = "h100"\nnvlink_gbs = 3', "nvlink_gbs is not known; did you mean nvlink_gb_per_s?"),
        ('name = "mine"', "missing"),
        ('base = "h100"\nmemory_gb = -1', "memory_gb = -1 is not a number above 0"),
        ('base = "h100"\ngeneration = "volta"', "not one of ampere, hopper, blackwell"),
        ('base = "h1000"', "did you mean h100?"),
        ("base = ", "not valid TOML"),
        ('base = "h100"\ndense_tflops = 989', "dense_tflops = 989 is not a table"),
        ('base = "h100"\ndense_tflops = { bf16 = 989 }', "dense_tflops.fp32 missing"),
        ('base = "h100"\n[dense_tflops]\nint8 = 3', "dense_tflops.int8 is not known"),
        ('base = "h100"\nmemory_gb = inf', "memory_gb = inf is not a number above 0"),
        ('base = "h100"\nnvlink_domain = 8.5', "nvlink_domain = 8.5 is not a whole number"),
        ('base = "h100"\nname = 7', "name = 7 is not a string"),
    ],
)
def test_a_wrong_cluster_is_told_why(tmp_path, text, says):
    mine = tmp_path / "mine.toml"
    mine.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        hardware.load(str(mine))
    assert says in str(caught.value)


def test_a_base_stands_where_the_file_that_names_it_sees_it(tmp_path):
    (tmp_path / "ours.toml").write_text('base = "h100"\nmemory_gb = 94', encoding="utf-8")
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "ours.toml"\nname = "mine"', encoding="utf-8")
    assert hardware.load(str(mine)).memory_gb == 94


@pytest.mark.parametrize("base", ["mine.toml", "../{folder}/mine.toml", "{folder}/mine.toml"])
def test_a_cluster_that_is_based_on_itself_is_told(tmp_path, base):
    mine = tmp_path / "mine.toml"
    base = base.format(folder=tmp_path if base[0] == "{" else tmp_path.name)
    mine.write_text(f'base = "{base}"\nname = "mine"', encoding="utf-8")
    with pytest.raises(ConfigError, match="based on itself"):
        hardware.load(str(mine))
