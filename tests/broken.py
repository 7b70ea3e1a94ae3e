"""The runs that chaos.py breaks: small ones, on ranks of their own, and their ends.

    launch = Launch(arguments, ranks, log)      # real processes; launch.signal(rank), .wait()
    differences(saved_state(checkpoint), memory_of(folder))    # of weights and moments, to the bit

A mutant is a product that loses work. chaos.py must find out; test_chaos.py has it try.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import dialog_sets
import numpy as np
import power
import torch
import torch.distributed as dist
from ranks import forkserver
from torch.distributed import checkpoint as dcp

from data_prep import tokenizer
from data_prep.indexed import IndexedWriter
from megatron_qwen3.posttrain.rollouts import record as records

STEPS, VOCABULARY, LENGTH, BATCH = 16, 512, 32, 4
MOMENT_SECONDS = 0.1  # that each part of a batch of rollouts takes longer where it is to be met
_LAST_WORDS_SECONDS = 15  # that the other ranks have when one has ended with an error


class Launch:
    """The ranks of a run, started.

    journal, memory: folders for power.py's record, and for the state at the end (`memory_of`).
    change: the difference from the product, a mutant or one of `_OTHERWISE`.
    """

    def __init__(self, arguments, ranks, log, journal=None, memory=None, change=""):
        self.store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self.processes = [
            forkserver.Process(
                target=_rank,
                args=(rank, ranks, self.store.port, arguments, log, journal, memory, change),
            )
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def is_alive(self):
        """Whether all are."""
        return all(process.is_alive() for process in self.processes)

    def signal(self, rank, number=signal.SIGKILL):
        if self.processes[rank].is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, number)

    def wait(self, seconds=180.0):
        """The exit statuses; a rank that outlives another one's death by long is killed."""
        deadline = time.monotonic() + seconds
        while any(p.is_alive() for p in self.processes) and time.monotonic() < deadline:
            if any(p.exitcode for p in self.processes):  # as a launcher does
                deadline = min(deadline, time.monotonic() + _LAST_WORDS_SECONDS)
            time.sleep(0.02)
        for process in self.processes:
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]


def _rank(rank, ranks, port, arguments, log, journal, memory, change):
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)  # what was said before a kill was said
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    from megatron_qwen3 import train

    torch.set_num_threads(1)
    if journal:
        _record(_setting(arguments, "run.dir"), journal)
    if memory:
        _keep_memory(memory, rank)
    if change:
        (MUTANTS | _OTHERWISE)[change]()
    sys.exit(train.main(arguments))


def _setting(arguments, name):
    return next(Path(word.partition("=")[2]) for word in arguments if word.startswith(f"{name}="))


def _record(folder, journal):
    """Syncs, and messages about checkpoints, in the order of time."""
    from megatron_qwen3.training.metrics import RunLog

    add, note = power.record(folder, journal), RunLog.note

    def noting(self, text):
        if self.is_writer:
            add(said=text)
        note(self, text)

    RunLog.note = noting


def _keep_memory(folder, rank):
    """Before the run takes its groups of ranks apart, write down the engine's state."""
    from megatron_qwen3.parallel import runtime
    from megatron_qwen3.training import engine, shards

    engines, begin, stop = [], engine.Engine.__init__, runtime.stop

    def beginning(self, *args, **named):
        begin(self, *args, **named)
        engines.append(self)

    def stopping():
        parts = shards.owned(engines[-1])
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(
            [(tuple(part.place), part.tensor.clone()) for part in parts], folder / f"{rank}.pt"
        )
        stop()

    engine.Engine.__init__, runtime.stop = beginning, stopping


def memory_of(folder):
    """{name: whole tensor} of the weights and moments that all ranks held at the end."""
    whole, filled = {}, {}
    for path in sorted(folder.glob("*.pt")):
        for place, tensor in torch.load(path):
            key, shape, offsets = place
            if key not in whole:
                whole[key] = tensor.new_empty(shape)
                filled[key] = torch.zeros(shape, dtype=torch.bool)
            cut = tuple(slice(o, o + n) for o, n in zip(offsets, tensor.shape, strict=True))
            whole[key][cut], filled[key][cut] = tensor, True
    assert whole and all(mask.all() for mask in filled.values()), "not all was in memory"
    return whole


def saved_state(checkpoint):
    """{name: whole tensor} of a checkpoint, by torch's own reader."""
    reader = dcp.FileSystemReader(str(checkpoint))
    entries = reader.read_metadata().state_dict_metadata.items()
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries
        if isinstance(entry, dcp.metadata.TensorStorageMetadata)
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def differences(state, other):
    """Names of tensors that are not the same to the bit, at most three of them; "" for none."""
    names = {name for name in state.keys() | other.keys() if not _equal(name, state, other)}
    return ", ".join(sorted(names)[:3])


def _equal(name, state, other):
    if name not in state or name not in other or state[name].dtype != other[name].dtype:
        return False
    one, two = (x[name].contiguous().flatten().view(torch.uint8) for x in (state, other))
    return torch.equal(one, two)


def _zero_last_weights():
    """The last checkpoint of a run, from which nothing goes on, has weights of zero."""
    from megatron_qwen3.storage.torch_dist import ChunkFile

    begin, add = ChunkFile.__init__, ChunkFile.add_tensor

    def beginning(self, path):
        self.is_last = f"step_{STEPS:08d}" in path.parent.name
        begin(self, path)

    def adding(self, place, tensor):
        is_weight = not place.key.startswith("optimizer.")
        add(self, place, torch.zeros_like(tensor) if self.is_last and is_weight else tensor)

    ChunkFile.__init__, ChunkFile.add_tensor = beginning, adding


def _change_moments():
    """A run that goes on has moments that are wrong in the fourth digit."""
    from megatron_qwen3.training import checkpoint, optim

    load = checkpoint.load

    def loading(engine, path):
        progress = load(engine, path)
        for state in optim.owned_states(engine.optimizer):
            state.tensors["exp_avg"].mul_(1.0001)
            state.tensors["exp_avg_sq"].mul_(1.0001)
        return progress

    checkpoint.load = loading


def _lose_patience():
    """A run that finds another one in its folder waits for its end no longer than a test may."""
    from megatron_qwen3 import train

    train._PATIENCE_SECONDS = 3.0


def _hang():
    """In step 3 rank 1 never comes to the collectives that the others wait in."""
    from megatron_qwen3.training import engine

    train_step, done = engine.Engine.train_step, []

    def hanging(self, *args):
        done.append(None)
        if len(done) == 3 and os.environ["RANK"] == "1":
            time.sleep(100)
        return train_step(self, *args)

    engine.Engine.train_step = hanging


def _tell_moments():
    """The first rank says when it begins to sample, to reward, and to write a record; each takes a
    moment longer, so that it can be met."""
    from megatron_qwen3.posttrain.rewards.rewards import Rewards
    from megatron_qwen3.posttrain.rollouts.own import OwnEngine
    from megatron_qwen3.posttrain.rollouts.record import RolloutRecord

    moments = (("rollout", OwnEngine, "sample"), ("reward", Rewards, "score"))
    for name, kind, method in (*moments, ("record", RolloutRecord, "write")):
        setattr(kind, method, _telling(name, getattr(kind, method)))
    written = records.whole_folder

    @contextlib.contextmanager
    def slowly(folder):
        with written(folder) as partial:
            yield partial
            time.sleep(MOMENT_SECONDS)  # all of it is there, under another name

    records.whole_folder = slowly


def _telling(name, method):
    def telling(self, *args, **named):
        if os.environ["RANK"] == "0":
            print(f"moment: {name}", flush=True)
        time.sleep(MOMENT_SECONDS / 2)
        found = method(self, *args, **named)
        time.sleep(MOMENT_SECONDS / 2)
        return found

    return telling


_OTHERWISE = {"telling": _tell_moments, "impatient": _lose_patience, "hanging": _hang}
MUTANTS = {"weights zeroed": _zero_last_weights, "moments x 1.0001": _change_moments}


def corpus(path):
    """Token files of two sources; the settings of a run that trains on them."""
    numbers = np.random.default_rng(0)
    for name in ("a", "b"):
        with IndexedWriter(path / name, np.uint16) as writer:
            for _ in range(40):
                writer.add_document(numbers.integers(0, VOCABULARY, 200))
    sources = ", ".join(f'{{name = "{name}", path = "{path / name}"}}' for name in ("a", "b"))
    return [
        "model.preset=tiny-moe",
        "model.num_layers=2",
        f"model.vocab_size={VOCABULARY}",
        "train.precision=fp32",
        f"train.steps={STEPS}",
        f"train.global_batch={BATCH}",
        f"data.sequence_length={LENGTH}",
        "data.held_out=0.0",
        f"data.sources=[{sources}]",
        "checkpoint.every_steps=2",
        "optim.schedule=constant",
        "log.tensorboard=false",
        "run.device=cpu",
    ]


def dialogs(path):
    """Two tokenized dialog sets; the settings of a run of mode sft that trains on them."""
    lengths = np.random.default_rng(0).integers(2, LENGTH + 2, (2, 40))
    for seed, name in enumerate(("a", "b")):
        dialog_sets.write(path / name, lengths[seed].tolist(), seed)
    sources = [{"name": name, "path": f"{path}/{name}"} for name in ("a", "b")]
    return [
        *dialog_sets.settings(*sources, length=LENGTH, batch=BATCH),
        f"train.steps={STEPS}",
        "sft.held_out=0.0",
        "checkpoint.every_steps=2",
    ]


def pairs(path):
    """A tokenized set of pairs; the settings of a run of mode reward that trains on it."""
    lengths = np.random.default_rng(0).integers(2, LENGTH // 2, 80).tolist()
    source = {"name": "pairs", "path": dialog_sets.write_pairs(path / "pairs", lengths)}
    return [
        *dialog_sets.settings(source, length=LENGTH, batch=BATCH, mode="reward"),
        f"train.steps={STEPS}",
        "reward.held_out=0.0",
        "reward.centering=0.01",
        "checkpoint.every_steps=2",
    ]


def tasks(path):
    """Tasks that a model with random weights solves by chance; the settings of a run of mode rl."""
    tokenizer.train(["a b c abc ab say a question user assistant"] * 9, 300, path / "tokenizer")
    with (path / "tasks.jsonl").open("w") as file:
        for number in range(24):
            verifier = {"kind": "ifeval/keywords:letter_frequency", "letter": "a"}
            verifier |= {"let_frequency": 1, "let_relation": "at least"}
            asked = [{"role": "user", "content": f"a b c {number}"}]
            line = {"id": f"t{number}", "messages": asked, "verifier": verifier}
            file.write(json.dumps(line) + "\n")
    return [
        "run.mode=rl",
        "model.preset=tiny-moe",
        "model.num_layers=2",
        "model.vocab_size=384",
        "train.precision=fp32",
        f"train.steps={STEPS}",
        "data.sequence_length=64",
        f"data.tokenizer={path}/tokenizer",
        f'rollouts.tasks=[{{name="letters", path="{path}/tasks.jsonl"}}]',
        "rollouts.prompts=4",
        "rollouts.samples=4",
        "rollouts.max_new_tokens=12",
        "rollouts.rows=8",
        "rollouts.held_out=0.0",
        "rl.updates=2",
        "rl.truncated=scored",
        "rl.verify_workers=1",
        "checkpoint.every_steps=2",
        "optim.schedule=constant",
        "optim.lr=1e-3",
        "log.tensorboard=false",
        "run.device=cpu",
    ]


def students(path):
    """Tasks, the half of which nobody can judge, and a teacher; the settings of a run of mode
    distill."""
    import tiny

    given = tasks(path)
    file, teacher = path / "tasks.jsonl", path / "teacher"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[::2]:
        del line["verifier"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny.save(teacher)
    given = [x for x in given if not x.startswith(("rl.", "run.mode", "data.tokenizer"))]
    ours = ["run.mode=distill", "model.vocab_size=320", f"data.tokenizer={teacher}"]
    ours.append(f"distill.teacher.path={teacher}")
    return [*given, *ours, "distill.updates=2"]


MODES = {"pretrain": corpus, "sft": dialogs, "reward": pairs, "rl": tasks, "distill": students}


def losses(run_dir):
    """[(step, loss)] as the run wrote them down."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = map(json.loads, lines)
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def terminated(arguments, at_refit):
    """Like a run of which one rank gets SIGTERM before a batch, or an evaluation, is sampled."""
    from megatron_qwen3 import train
    from megatron_qwen3.posttrain.rollouts.own import OwnEngine

    refit, done = OwnEngine.refit, []

    def stopping(self, version):
        refit(self, version)
        done.append(None)
        if len(done) == at_refit and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    OwnEngine.refit = stopping
    return train.main(arguments)
