"""A server of vLLM checks arriving weights before and while it takes them."""

import ast
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from megatron_qwen3.config import load
from megatron_qwen3.convert.mapping import in_order
from megatron_qwen3.posttrain.generators.replies import RequestRefused
from megatron_qwen3.posttrain.rollouts import refit
from megatron_qwen3.posttrain.rollouts.in_server import mq3_refit
from megatron_qwen3.posttrain.rollouts.in_server.mq3_refit import Link, Refit, checksum, places
from megatron_qwen3.posttrain.rollouts.vllm_client import Died

MODELS = {
    "dense": ["model.preset=tiny-dense", "model.num_layers=2"],
    "moe": ["model.preset=tiny-moe", "model.num_layers=2"],
}


def config_of(model):
    """As transformers has it, of the names alone that servers read."""
    return SimpleNamespace(
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        head_dim=model.head_dim,
        intermediate_size=model.ffn_hidden_size,
        num_experts=model.num_experts,
        moe_intermediate_size=model.expert_ffn_hidden_size,
    )


def tensors_of(model):
    random = torch.Generator().manual_seed(0)
    made = {
        weight.part_name(part, index): torch.rand(weight.part_shape(part), generator=random)
        for weight, index in in_order(model)
        for part in range(len(weight.parts))
    }
    return made | {"lm_head.weight": made["model.embed_tokens.weight"].clone()}


def table_of(tensors):
    dtype = lambda x: str(x.dtype).removeprefix("torch.")  # noqa: E731
    return [[name, list(x.shape), dtype(x)] for name, x in tensors.items()]


class Worker(Refit):
    """vLLM's, as far as it is used. taken: weights that reached the model."""

    def __init__(self, kind, rank=0):
        self.model = load([], ["train.steps=1", *MODELS[kind]]).model
        self.rank, self.taken = rank, None
        config = SimpleNamespace(hf_text_config=config_of(self.model))
        self.vllm_config = SimpleNamespace(model_config=config)
        module = SimpleNamespace(quant_method=SimpleNamespace(moe_kernel="packed"))
        self.modules = [SimpleNamespace(), module]
        model = SimpleNamespace(modules=lambda: self.modules)
        self.model_runner = SimpleNamespace(get_model=lambda: model)

    def reload_weights(self, weights_iterator):
        assert self.modules[1].quant_method.moe_kernel is None
        self.taken = {}
        for name, tensor in weights_iterator:
            self.taken[name] = tensor.clone()


@pytest.mark.parametrize("kind", MODELS)
def test_the_tensors_that_a_server_expects_are_those_of_the_conversion_table(kind):
    worker = Worker(kind)
    tensors = tensors_of(worker.model)
    assert mq3_refit.expected(config_of(worker.model)) == {
        name: tuple(x.shape) for name, x in tensors.items()
    }
    assert worker.mq3_check(table_of(tensors)) == {"rank": 0}


def offered(worker, path, tensors, sums=None):
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    sums = sums or [checksum(x) for x in tensors.values()]
    return worker.mq3_from_folder(str(path), table_of(tensors), sums)


def test_a_folder_of_the_models_tensors_reaches_it_with_kernels_to_be_made_anew(tmp_path):
    worker = Worker("moe")
    tensors = tensors_of(worker.model)
    done = offered(worker, tmp_path, tensors)
    assert done["tensors"] == len(tensors) and "error" not in done
    assert worker.taken.keys() == tensors.keys()
    assert all(torch.equal(worker.taken[name], x) for name, x in tensors.items())


LAYER = "model.layers.1."
WRONG = {
    "missing": lambda t: t.pop(LAYER + "self_attn.q_proj.weight"),
    "a missing expert": lambda t: t.pop(LAYER + "mlp.experts.3.down_proj.weight"),
    "a missing head": lambda t: t.pop("lm_head.weight"),
    "a row short": lambda t: t.update(
        {(n := LAYER + "mlp.experts.3.up_proj.weight"): t[n][1:].clone()}
    ),
    "a prefix": lambda t: t.update({"module.x": t.pop("model.norm.weight")}),
}


@pytest.mark.parametrize("fault", WRONG)
def test_other_names_or_shapes_are_refused_and_the_model_stays_untouched(fault, tmp_path):
    worker = Worker("moe")
    tensors = tensors_of(worker.model)
    WRONG[fault](tensors)
    done = offered(worker, tmp_path, tensors)
    assert "is_broken" not in done and worker.taken is None
    assert worker.modules[1].quant_method.moe_kernel == "packed"
    assert any(
        words in done["error"] for words in ("is missing", "is no tensor", "has shape [63, 64]")
    )


def test_a_tensor_that_changed_on_its_way_or_did_not_come_is_told_with_its_name(tmp_path):
    worker = Worker("dense")
    tensors = tensors_of(worker.model)
    sums = [checksum(x) for x in tensors.values()]
    name = LAYER + "mlp.up_proj.weight"
    tensors[name][3, 5] += 1e-7
    done = offered(worker, tmp_path / "changed", tensors, sums)
    assert name in done["error"] and done["is_broken"] and name not in worker.taken
    announced = table_of(tensors)
    tensors.pop(name)
    (tmp_path / "short").mkdir()
    save_file(tensors, tmp_path / "short" / "model.safetensors")
    sums = [checksum(tensors[n]) if n in tensors else 0 for n, *_ in announced]
    done = worker.mq3_from_folder(str(tmp_path / "short"), announced, sums)
    assert done["error"] == f"{name} did not arrive" and done["is_broken"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_checksum_sees_every_bit_every_swap_and_the_length(dtype):
    random = torch.Generator().manual_seed(1)
    size = (1 << 20) + 37  # more words than one block
    x = torch.randint(0, 100, (size,), generator=random).to(dtype)
    assert checksum(x) == checksum(x.clone().view(1, -1))
    for place in (0, 1, 1000, size - 1):
        other = x.clone()
        other.view(torch.uint8)[place * x.itemsize] ^= 1
        assert checksum(other) != checksum(x)
    swapped = x.clone()
    swapped[0], swapped[size - 1] = 101, 102
    back = swapped.clone()
    back[0], back[size - 1] = 102, 101
    assert checksum(swapped) != checksum(back)
    assert -(1 << 63) <= checksum(x) < 1 << 63


def sent(buckets, workers, spoil=None):
    """Each worker's answer after the trainer sent these buckets by gloo."""
    size = 1 + len(workers)
    link = Link("127.0.0.1", 0, 0, size, "gloo", 30)
    tables = [table_of(bucket) for bucket in buckets]
    found = [None] * len(workers)

    def take(number, worker):
        found[number] = worker.mq3_from_group("127.0.0.1", link.port, 1, size, "gloo", 30, tables)

    threads = [threading.Thread(target=take, args=pair) for pair in enumerate(workers)]
    for thread in threads:
        thread.start()
    link.join()
    for bucket, table in zip(buckets, tables, strict=True):
        flat = torch.zeros(places(table)[1], dtype=torch.uint8)
        for name, view in mq3_refit.views(table, flat):
            view.copy_(bucket[name])
        sums = torch.tensor([checksum(x) for x in bucket.values()])
        if spoil in bucket:
            dict(mq3_refit.views(table, flat))[spoil].add_(1)
        link.send(sums)
        link.send(flat)
    for thread in threads:
        thread.join()
    return found


def buckets_of(tensors, count):
    names = list(tensors)
    return [{n: tensors[n] for n in names[k::count]} for k in range(count)]


def test_a_group_brings_all_workers_the_same_bucket_by_bucket():
    workers = [Worker("dense", rank) for rank in range(2)]
    tensors = tensors_of(workers[0].model)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    for done, worker in zip(sent(buckets_of(tensors, 3), workers), workers, strict=True):
        assert done["tensors"] == len(tensors), done
        assert all(torch.equal(worker.taken[name], x) for name, x in tensors.items())


def test_a_worker_that_refuses_or_finds_a_fault_still_hears_the_trainer_out():
    workers = [Worker("dense"), Worker("moe", 1)]
    tensors = tensors_of(workers[0].model)
    name = "model.layers.0.self_attn.k_proj.weight"
    good, refused = sent(buckets_of(tensors, 3), workers)
    assert "error" not in good and "mlp.gate_proj.weight is no tensor" in refused["error"]
    spoilt, _ = sent(buckets_of(tensors, 3), workers, spoil=name)
    assert name in spoilt["error"] and spoilt["is_broken"]


@pytest.mark.parametrize("error", [Died("it broke off"), RequestRefused("status 404")])
def test_a_server_that_does_not_take_its_weights_is_told_of_and_ends_nothing(error):
    call = Future()
    call.set_exception(error)
    assert refit._fault(call) == str(error)


def test_a_link_knows_who_came_and_gives_up_on_one_who_takes_nothing():
    link = Link("127.0.0.1", 0, 0, 3, "gloo", 30)
    others = [Link("127.0.0.1", link.port, rank, 3, "gloo", 30) for rank in (1, 2)]
    threads = [threading.Thread(target=other.join, daemon=True) for other in others]
    threads[0].start()
    for _ in range(20):
        assert not link.all_are_here()
    threads[1].start()
    deadline = time.monotonic() + 30
    while not link.all_are_here():
        assert time.monotonic() < deadline
    link.join()
    began = time.monotonic()
    with pytest.raises(RuntimeError):  # more than any buffer on the way holds
        link.send(torch.zeros(1 << 26, dtype=torch.uint8), seconds=0.2)
    assert time.monotonic() - began < 20


def test_a_message_that_nobody_takes_is_given_up_before_the_run_is_held_for_hung():
    for hang, seconds in ((600, 120), (100, 50), (0, 120)):
        config = load([], ["train.steps=1", *MODELS["dense"], f"guard.hang_seconds={hang}"])
        assert refit.patience(config) == seconds


def test_a_worker_whose_trainer_leaves_before_the_exchange_has_touched_nothing():
    worker, found = Worker("dense"), []
    tables = [table_of(tensors_of(worker.model))]
    link = Link("127.0.0.1", 0, 0, 3, "gloo", 60)
    arguments = ("127.0.0.1", link.port, 1, 3, "gloo", 60, tables)
    thread = threading.Thread(target=lambda: found.append(worker.mq3_from_group(*arguments)))
    thread.start()
    deadline = time.monotonic() + 30
    while not link._store.check(["here 1"]):
        assert time.monotonic() < deadline
    link.close()
    thread.join(50)
    assert list(found[0]) == ["unbegun"] and worker.taken is None


def test_it_needs_nothing_but_torch_and_safetensors():
    tree = ast.parse(Path(mq3_refit.__file__).read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    tops = {name.split(".")[0] for name in found}
    assert tops - sys.stdlib_module_names == {"torch", "safetensors"}
