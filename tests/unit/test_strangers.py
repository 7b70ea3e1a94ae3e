"""Checkpoints of strangers: none runs code, and each that lies is refused in one line."""

import ast
import contextlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import zstandard
from megatron.core import dist_checkpointing
from ranks import run_ranks
from strangers import ATTACKS, added, objects_of, saved, table_of, two_faced
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_qwen3 import train
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.convert.dcp import Checkpoint
from megatron_qwen3.generate import __main__ as generate
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.storage import boxes, folder, pickles
from megatron_qwen3.storage.table import StoredChunk
from megatron_qwen3.training import checkpoint, saver
from megatron_qwen3.training.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from megatron_qwen3.cli import convert_checkpoint, launch  # noqa: E402  (no package)

TINY = ["model.preset=tiny-moe", "model.num_layers=2", "model.vocab_size=64"]
SIZES = ["train.steps=4", "train.global_batch=2", "data.sequence_length=32", "run.device=cpu"]


def settings(run_dir):
    return load([], [*TINY, *SIZES, f"run.dir={run_dir.parent}", f"run.name={run_dir.name}"])


def save_once(config):
    return saver.save(Engine(config, start(config)), config, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a checkpoint, as the trainer writes it."""
    path = tmp_path_factory.mktemp("runs") / "run"
    run_ranks(save_once, 1, settings(path))
    return path


@pytest.fixture
def theirs(run, tmp_path):
    """A copy of the checkpoint, which a test may change."""
    shutil.copytree(run, tmp_path / "run")
    (found,) = folder.checkpoints(tmp_path / "run")
    return found


def commands(path):
    """Every command that reads a checkpoint before it has ranks, as (main, arguments)."""
    stage = [*TINY, *SIZES, f"checkpoint.init_from={path}", f"run.dir={path.parent}/new"]
    return {
        "verify": (convert_checkpoint.main, ["verify", str(path), str(path)]),
        "inspect": (convert_checkpoint.main, ["inspect", str(path)]),
        "to-hf": (convert_checkpoint.main, ["to-hf", str(path), str(path.parent / "out")]),
        "generate": (generate.main, [str(path), "--prompt", "x"]),
        "generate from a run": (generate.main, [str(path.parents[1]), "--prompt", "x"]),
        "init_from": (train.main, stage),
    }


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "in a weight"])
def test_no_command_runs_a_strangers_code_and_each_says_so_in_one_line(
    theirs, tmp_path, capsys, attack
):
    mark = tmp_path / "ran"
    ATTACKS[attack](theirs, mark)
    for name, (main, arguments) in commands(theirs).items():
        status = main(arguments)
        told = capsys.readouterr().err
        assert status == 2 and not mark.exists(), name
        assert told.startswith("error: ") and told.count("\n") == 1, f"{name}: {told}"
        assert any(word in told for word in (".metadata", ".distcp", "common.pt")), told


@pytest.mark.parametrize("attack", ["decoded later", "other bases"])
def test_no_job_is_queued_that_would_start_from_it(theirs, tmp_path, capsys, attack):
    ATTACKS[attack](theirs, tmp_path / "ran")
    stage = [*TINY, *SIZES, f"checkpoint.init_from={theirs}", f"run.dir={tmp_path}/new"]
    assert launch.main(["train", *stage, "--nodes=1", "--show"]) == 2
    told = capsys.readouterr()
    assert any(".metadata: " in line for line in told.err.splitlines()), told.err
    assert not told.out and not (tmp_path / "ran").exists()


def load_all(run_dir, bad):
    """The errors of a resume and of a new stage for each checkpoint."""
    config = settings(run_dir)
    engine = Engine(config, start(config))
    told = []
    for path in bad:
        for read in (checkpoint.load, checkpoint.load_weights):
            with pytest.raises(ConfigError) as error:
                read(engine, path)
            told.append(str(error.value))
    checkpoint.load(engine, folder.checkpoints(run_dir)[0])
    return told


def test_neither_a_resume_nor_a_new_stage_runs_a_strangers_code(run, tmp_path):
    mark, bad = tmp_path / "ran", []
    for name, attack in ATTACKS.items():
        bad.append(tmp_path / name)
        shutil.copytree(folder.checkpoints(run)[0], bad[-1])
        attack(bad[-1], mark)
    (told,) = run_ranks(load_all, 1, run, bad)
    assert len(told) == 2 * len(ATTACKS) and not mark.exists()
    assert all("\n" not in line for line in told)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["decoded later", "other bases"])
def test_commands_of_their_own_processes_refuse_it_alike(theirs, tmp_path, attack):
    ATTACKS[attack](theirs, tmp_path / "ran")
    tools = {convert_checkpoint.main: ["tools/convert_checkpoint.py"]}
    modules = {generate.main: "megatron_qwen3.generate", train.main: "megatron_qwen3.train"}
    resumed = (train.main, [*TINY, *SIZES, "run.name=run", f"run.dir={tmp_path}"])
    for name, (main, arguments) in (commands(theirs) | {"resume": resumed}).items():
        program = tools.get(main) or ["-m", modules[main]]
        done = subprocess.run(
            [sys.executable, *program, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and not (tmp_path / "ran").exists(), (name, done.stderr)
        assert done.stderr.splitlines()[-1].startswith("error: "), (name, done.stderr)


def test_an_object_of_two_faces_is_harmless_to_one_reader_and_not_to_the_other(
    tmp_path, monkeypatch
):
    mark = tmp_path / "ran"
    raw = two_faced(mark)
    assert torch.load(io.BytesIO(raw), weights_only=True) == [None]
    reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    decoded = reader.read()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(decoded), weights_only=False)  # of this process, even so
    assert not mark.exists()
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    torch.load(io.BytesIO(decoded), weights_only=False)
    assert mark.exists()


def load_by_megatron(run_dir, bad):
    """The effect of megatron-core's own loader on them, were it called."""
    del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
    config = settings(run_dir)
    template = Engine(config, start(config)).model.weights()
    with contextlib.suppress(BaseException):  # it ran by then
        dist_checkpointing.load(template, str(bad))


@pytest.mark.parametrize("attack", ["decoded later", "other bases"])
def test_megatron_core_would_have_run_it(run, theirs, tmp_path, attack):
    ATTACKS[attack](theirs, tmp_path / "ran")
    run_ranks(load_by_megatron, 1, run, theirs)
    assert (tmp_path / "ran").exists()


def loaded_twice(run_dir):
    """Weights that we load are those that megatron-core loads."""
    config = settings(run_dir)
    (path,) = folder.checkpoints(run_dir)
    ours, theirs = Engine(config, start(config)), []
    checkpoint.load_weights(ours, path)
    theirs = dist_checkpointing.load(Engine(config, ours.layout).model.weights(), str(path))
    named = dict(ours.model.chunks[0].named_parameters())
    return [name for name in named if not torch.equal(named[name], theirs["chunk0"][name])]


def test_megatron_core_reads_our_checkpoints_to_the_same_weights(run):
    assert run_ranks(loaded_twice, 1, run) == [[]]


def first_weight(metadata, name="linear_fc2"):
    return next(
        (i, p)
        for i, p in metadata.storage_data.items()
        if name in i.fqn and not i.fqn.startswith("optimizer")
    )


def move_out(metadata, path):
    first_weight(metadata)[1].offset = 1 << 40


def move_before(metadata, path):
    first_weight(metadata)[1].offset = -1


def lengthen(metadata, path):
    first_weight(metadata)[1].length += 10_000_000


def shorten(metadata, path):
    first_weight(metadata)[1].length = 10


def share(metadata, path):
    places = list(metadata.storage_data.values())
    places[1].offset, places[1].length = places[0].offset, places[0].length


def encode(metadata, path):
    first_weight(metadata)[1].transform_descriptors = ("stream.zstd/1",)


def entry(metadata):
    return metadata.state_dict_metadata[first_weight(metadata)[0].fqn]


def other_type(metadata, path):
    entry(metadata).properties.dtype = torch.int32


def other_shape(metadata, path):
    chunk = entry(metadata).chunks[0]
    chunk.sizes = torch.Size(reversed(chunk.sizes))


def huge(metadata, path):
    entry(metadata).size = torch.Size([1 << 50, *entry(metadata).size[1:]])


def twice(metadata, path):
    index, place = first_weight(metadata)
    chunk = entry(metadata).chunks[0]
    moved = torch.Size([*chunk.offsets[:-1], chunk.offsets[-1] + 1])
    copy = path / "__98_0.distcp"
    shutil.copy(path / place.relative_path, copy)
    entry(metadata).chunks.append(type(chunk)(moved, chunk.sizes))
    metadata.storage_data[MetadataIndex(index.fqn, moved)] = type(place)(
        copy.name, place.offset, place.length
    )


def partly(metadata, path):
    entry(metadata).chunks.pop()


def nameless(metadata, path):
    metadata.state_dict_metadata[7] = entry(metadata)


def above(metadata, path):
    first_weight(metadata)[1].relative_path = "../" + path.name + "/__0_0.distcp"


def absolute(metadata, path):
    first_weight(metadata)[1].relative_path = "/etc/hostname"


def gone(metadata, path):
    first_weight(metadata)[1].relative_path = "__7_0.distcp"


def no_name(metadata, path):
    first_weight(metadata)[1].relative_path = ""


def a_folder(metadata, path):
    (path / "__7_0.distcp").mkdir()
    gone(metadata, path)


def a_pipe(metadata, path):
    os.mkfifo(path / "__7_0.distcp")
    gone(metadata, path)


def a_device(metadata, path):
    (path / "__7_0.distcp").symlink_to("/dev/zero")
    gone(metadata, path)


def a_link(metadata, path):
    (path.parent / "private").write_bytes((path / "__0_0.distcp").read_bytes())
    (path / "__7_0.distcp").symlink_to("../private")
    gone(metadata, path)


LIES = [
    *(move_out, move_before, lengthen, shorten, share, encode, other_type, other_shape, huge),
    *(twice, partly, nameless, above, absolute, gone, no_name, a_folder, a_pipe, a_device, a_link),
]


def endless_state(metadata, path):
    """An extra state of four bytes that becomes four million million."""
    place = added(path, saved([{"scale": torch.zeros(1).expand(1 << 40)}]))
    metadata.storage_data[objects_of(metadata)[0]] = place


def deep_state(metadata, path):
    data = io.BytesIO(saved([{"scale": 1.0}])).getvalue()
    deep = b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(buffer, "w") as other:
        for part in archive.infolist():
            name = part.filename
            other.writestr(name, deep if name.endswith("data.pkl") else archive.read(part))
    metadata.storage_data[objects_of(metadata)[0]] = added(path, buffer.getvalue())


def write_lie(path, lie):
    metadata = table_of(path)
    lie(metadata, path)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("lie", LIES)
def test_a_table_that_lies_is_refused_by_file(theirs, tmp_path, lie):
    write_lie(theirs, lie)
    with pytest.raises(ConfigError) as error:
        for chunk in [c for s in Checkpoint(theirs).tensors.values() for c in s.chunks]:
            _ = chunk.data_start
    assert all(line.startswith(str(theirs.parent)) for line in str(error.value).splitlines())


def load_lies(run_dir, bad):
    config = settings(run_dir)
    engine = Engine(config, start(config))
    for path in bad:
        with pytest.raises(ConfigError):
            checkpoint.load(engine, path)


def test_a_table_that_lies_is_refused_by_a_resume(run, tmp_path):
    bad = []
    for lie in [*LIES, endless_state, deep_state]:
        bad.append(tmp_path / lie.__name__ / "step_00000002")
        shutil.copytree(folder.checkpoints(run)[0], bad[-1])
        write_lie(bad[-1], lie)
    run_ranks(load_lies, 1, run, bad)


@pytest.mark.parametrize("how", ["compressed", "prefixed", "twice", "big-endian", "truncated"])
def test_an_archive_that_two_readers_may_read_differently_is_refused(tmp_path, how):
    path = tmp_path / "archive"
    path.write_bytes(saved([None]))
    assert pickles.Archive(path, 0, path.stat().st_size).value == [None]
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    if how == "big-endian":
        parts["archive/byteorder"] = b"big"
    kind = zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in parts.items():
            archive.writestr(name, content * (1000 if how == "compressed" else 1))
        if how == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("archive/data.pkl", pickle.dumps([1]))
    if how == "prefixed":
        path.write_bytes(b"x" + path.read_bytes())
    length = path.stat().st_size - (how == "truncated")
    with pytest.raises((ValueError, zipfile.BadZipFile)):
        pickles.Archive(path, 0, length)


@pytest.mark.parametrize(
    "data",
    [
        b"ctorch\nSize\nN}X\x05\x00\x00\x00stateK\x01s\x86b.",  # BUILD on the class
        b"ctorch\nSize\n)\x81X\x04\x00\x00\x00argsK\x01s.",  # an item of an instance
        b"ctorch\nSize\n)\x81K\x01a.",  # append
        b"cbuiltins\neval\n.",
        b"ctorch\nload\n.",
        b"\x80\x04\x8c\x05torch\x8c\x0dSize.__init__\x93.",
        b"cposix\nsystem\n.",
        b"Vx\nP1\n.",
        b"ctorch\nSize\n)}X\x01\x00\x00\x00aK\x01s\x92.",
    ],
)
def test_a_pickle_cannot_reach_behind_the_stand_ins(data):
    before = {name: dict(vars(kind)) for name, kind in pickles._KINDS.items()}
    with pytest.raises(Exception):  # noqa: B017  (of every kind, says its docstring)
        pickles.read(data)
    assert {name: dict(vars(kind)) for name, kind in pickles._KINDS.items()} == before


@pytest.mark.parametrize(
    ("tensor", "is_right"),
    [
        (torch.arange(12.0).view(3, 4), True),
        (torch.arange(40.0)[:12].view(3, 4), True),  # with the rest of its storage behind it
        (torch.arange(40.0)[8:20].view(3, 4), True),
        (torch.arange(12.0).view(4, 3).T, False),
        (torch.arange(24.0).view(3, 8)[:, :4], False),
        (torch.arange(12.0).view(3, 4).double(), False),
        (torch.arange(12.0).view(4, 3), False),
        (torch.zeros(1).expand(3, 4), False),
    ],
)
def test_a_chunk_is_found_where_torch_put_its_data(tmp_path, tensor, is_right):
    path = tmp_path / "file"
    path.write_bytes(b"before" + saved(tensor))
    chunk = StoredChunk(path, 6, path.stat().st_size - 6, (0, 0), (3, 4), "float32")
    if not is_right:
        with pytest.raises(ConfigError, match="holds another tensor"):
            _ = chunk.data_start
        return
    found = torch.frombuffer(path.read_bytes(), dtype=torch.uint8)[chunk.data_start :][:48]
    assert torch.equal(found.clone().view(torch.float32).view(3, 4), tensor)


def test_strides_of_axes_with_one_element_say_nothing(tmp_path):
    tensor = torch.arange(100.0).view(10, 10)[3:4, :4]  # (1, 4), strides (10, 1)
    (tmp_path / "file").write_bytes(saved(tensor))
    size = (tmp_path / "file").stat().st_size
    assert StoredChunk(tmp_path / "file", 0, size, (0, 0), (1, 4), "float32").data_start > 0


def called(tree):
    """(dotted name, names of keywords) of every call in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


# Places that unpickle or run code which is our own, or within the sandbox.
_OURS = (
    "first.py: pickle.loads",  # an error that this rank has pickled the moment before
    "code.py: exec",  # a function of our own table of tasks
    "calls.py: exec",  # a model's program, in its sandbox
    "calls.py: exec",  # its tests, in another
)


def test_no_module_unpickles_what_it_did_not_write():
    files = [
        f for top in ("megatron_qwen3", "data_prep", "tools") for f in (ROOT / top).rglob("*.py")
    ]
    found = []
    for file in files:
        for name, keywords in called(ast.parse(file.read_text())):
            if name == "torch.load":
                is_safe = keywords.get("weights_only") == "True"
            elif name == "np.load":
                is_safe = keywords.get("allow_pickle") == "False"
            else:
                loads = ("pickle.load", "pickle.loads", "dist_checkpointing.load", "yaml.load")
                is_safe = name not in (*loads, "eval", "exec", "joblib.load", "dill.loads")
            found += [] if is_safe else [f"{file.name}: {name}"]
    assert len(files) > 100 and sorted(found) == sorted(_OURS)


def test_boxes_that_overlap_are_found_whatever_their_order():
    grid = [((i, 2 * j), (1, 2)) for i in range(30) for j in range(30)]
    assert boxes.apart(grid) and boxes.apart(grid[::-1])
    pinwheel = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1))]
    assert boxes.apart([*pinwheel, ((1, 1), (1, 1))])
    assert not boxes.apart([*pinwheel, ((1, 1), (1, 2))])
    assert not boxes.apart([*grid, ((7, 7), (2, 2))])
    assert boxes.apart([*grid, ((7, 7), (0, 2))])  # an empty one meets nothing
    assert boxes.meeting(((0, 0), (3, 3)), ((2, 1), (5, 1))) == ((2, 1), (1, 1))
    assert not boxes.apart([((n, n), (2, 2)) for n in range(20_000)])  # without comparing all pairs
