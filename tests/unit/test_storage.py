"""Checkpoint folders: whole, kept and found ones; and the file format."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage import folder, manifest, torch_dist
from megatron_qwen3.training.shards import rectangles


def make(run_dir, step, files=("a", "b")):
    """A whole checkpoint of some files."""
    partial = folder.partial(run_dir, step)
    partial.mkdir(parents=True)
    for name in files:
        (partial / name).write_bytes(random.Random(f"{step}{name}").randbytes(1000))
    manifest.write(partial, {name: manifest.seal(partial / name) for name in files})
    return folder.publish(partial)


def steps(run_dir):
    return [folder.step_of(c) for c in folder.checkpoints(run_dir)]


def test_any_cut_of_any_file_is_seen_by_its_size(tmp_path):
    for seed in range(20):
        path = make(tmp_path / str(seed), 1)
        name = random.Random(seed).choice(["a", "b"])
        (path / name).write_bytes((path / name).read_bytes()[: random.Random(seed).randrange(1000)])
        (fault,) = manifest.faults(path)
        assert fault.startswith(f"{name}: ") and "saved with 1,000" in fault


def test_a_flipped_bit_is_seen_at_once_in_a_small_file_and_by_a_full_check_in_any(
    tmp_path, monkeypatch
):
    small = manifest.SMALL_BYTES
    for seed in range(20):
        path = make(tmp_path / str(seed), 1)
        data, place = bytearray((path / "a").read_bytes()), random.Random(seed).randrange(1000)
        data[place] ^= 1 << seed % 8
        (path / "a").write_bytes(data)
        monkeypatch.setattr(manifest, "SMALL_BYTES", 999)
        assert manifest.faults(path) == []
        monkeypatch.setattr(manifest, "SMALL_BYTES", small)
        assert len(manifest.faults(path)) == 1
        monkeypatch.setattr(manifest, "SMALL_BYTES", 999)
        assert manifest.faults(path, share=(0, 1)) == [
            "a: its contents are not those that were saved (checksum)"
        ]


def test_ranks_together_read_every_file_once(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "SMALL_BYTES", 0)
    path, read, seal = make(tmp_path, 1, [str(n) for n in range(10)]), [], manifest.seal
    monkeypatch.setattr(manifest, "seal", lambda file: read.append(file.name) or seal(file))
    for rank in range(3):
        assert manifest.faults(path, share=(rank, 3)) == []
    assert sorted(read) == sorted(str(n) for n in range(10))


@pytest.mark.parametrize("damage", ["missing file", "no manifest", "torn manifest"])
def test_what_is_not_whole_is_not_the_newest(tmp_path, damage):
    good, bad = make(tmp_path, 2), make(tmp_path, 4)
    if damage == "missing file":
        (bad / "a").unlink()
    elif damage == "no manifest":
        (bad / manifest.FILE_NAME).unlink()
    else:
        text = (bad / manifest.FILE_NAME).read_bytes()
        (bad / manifest.FILE_NAME).write_bytes(text[: len(text) // 2])
    assert folder.newest(tmp_path) == good
    assert manifest.main([str(good)]) == 0 and manifest.main([str(good), str(bad)]) == 1


def test_the_last_and_every_nth_are_kept(tmp_path):
    for step in range(2, 15, 2):
        make(tmp_path, step)
        folder.retain(tmp_path, keep=2, keep_every_steps=6)
    assert steps(tmp_path) == [6, 12, 14]


def test_the_only_good_one_is_never_deleted(tmp_path):
    make(tmp_path, 2)
    for step in (4, 6):
        (make(tmp_path, step) / "a").write_bytes(b"")
        folder.retain(tmp_path, keep=1, keep_every_steps=0)
    assert 2 in steps(tmp_path) and folder.newest(tmp_path).name == "step_00000002"
    make(tmp_path, 8)
    folder.retain(tmp_path, keep=2, keep_every_steps=0)
    assert 2 in steps(tmp_path)  # the damaged ones between do not count as kept


def test_a_damaged_one_set_aside_goes_when_a_newer_is_whole(tmp_path):
    aside = folder.set_aside(make(tmp_path, 2))
    assert steps(tmp_path) == [] and (aside / "a").exists()
    make(tmp_path, 4)
    folder.retain(tmp_path, keep=1, keep_every_steps=0)
    assert not aside.exists()


def test_what_a_killed_run_leaves_is_cleaned_and_never_found(tmp_path):
    make(tmp_path, 2)
    (tmp_path / "checkpoints" / "step_00000004.partial").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.old.partial").mkdir()
    assert steps(tmp_path) == [2]
    folder.clean(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]


def test_publishing_the_same_step_again_replaces_it(tmp_path):
    make(tmp_path, 2, ["old"])
    path = make(tmp_path, 2, ["new"])
    assert sorted(p.name for p in path.iterdir()) == [manifest.FILE_NAME, "new"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_find_says_that_all_are_damaged_and_how(tmp_path):
    (make(tmp_path, 2) / "b").unlink()
    with pytest.raises(ConfigError, match="every checkpoint is damaged; step_00000002: b: No such"):
        folder.find(str(tmp_path))


def test_find_takes_no_earlier_step_for_a_damaged_newest_one(tmp_path):
    make(tmp_path, 2)
    (make(tmp_path, 4) / "b").unlink()
    with pytest.raises(
        ConfigError, match=r"newest is damaged, .*02 is whole; step_00000004: b: No"
    ):
        folder.find(str(tmp_path))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_a_range_is_cut_into_few_rectangles_in_order(shape, data):
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    start = data.draw(st.integers(0, whole.numel()))
    stop = data.draw(st.integers(start, whole.numel()))
    pieces = [
        whole[tuple(slice(low, low + n) for low, n in zip(first, size, strict=True))]
        for first, size in rectangles(tuple(shape), start, stop)
    ]
    assert torch.cat([piece.flatten() for piece in pieces] or [whole.flatten()[:0]]).tolist() == (
        list(range(start, stop))
    )
    assert len(pieces) <= 2 * len(shape) - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_each_archive_of_a_chunk_file_is_a_file_of_torch(tmp_path, dtype):
    tensors = [torch.arange(n).reshape(shape).to(dtype) for n, shape in ((6, (2, 3)), (1, (1,)))]
    with torch_dist.ChunkFile(tmp_path / "__0_0.distcp") as file:
        for number, tensor in enumerate(tensors):
            place = torch_dist.ChunkPlace(f"t{number}", tuple(tensor.shape), (0,) * tensor.ndim)
            file.add_tensor(place, tensor)
        file.add_object("o", [1, "x"])
    assert manifest.seal(tmp_path / "__0_0.distcp") == file.seal
    data = (tmp_path / "__0_0.distcp").read_bytes()
    for row, expected in zip(file.rows, [*tensors, [1, "x"]], strict=True):
        (tmp_path / "one").write_bytes(data[row.start : row.start + row.length])
        loaded = torch.load(tmp_path / "one", weights_only=True)
        assert torch.equal(loaded, expected) if row.dtype else loaded == expected


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gone", "gone is a link to nowhere, which is not there"),
        ("gone/run", "gone is a link to nowhere, which is not there"),
        ("loop", "loop is a link to loop, which is not there"),
        ("file/run", "file is not a folder"),
        ("l" * 256, "llllllllllllllllllll… has 256 bytes, a name 255 at most"),
        ("ü" * 128, "üüüüüüüüüüüüüüüüüüüü… has 256 bytes"),
        ("/".join(["d" * 200] * 20), "its path has more than 4000 bytes"),
        ("a\0b", "its name has a null byte"),
        ("used", "used/checkpoints is a link to nowhere"),
    ],
)
def test_a_run_folder_that_cannot_be_is_told_before_anything_is_made(tmp_path, name, told):
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "checkpoints").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"run\.dir, run\.name: .* cannot be written") as raised:
        folder.check_writable(tmp_path / name)
    assert told in str(raised.value) and "\n" not in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_folder_that_can_be_made_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("new/deep/run", "link", "link/run", "n" * 255):
        folder.check_writable(tmp_path / name)
