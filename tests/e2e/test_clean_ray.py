"""The pipeline that runs in local processes runs on Ray, with the same result."""

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("datatrove")
pytest.importorskip("ray", reason="python -m pip install ray")

import ray

from data_prep.clean import plan, stages
from data_prep.clean.files import read_documents
from data_prep.clean.settings import CleaningInput, CleanSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WORDS = ("river", "hill", "water", "mill", "meadow", "winter", "farmer", "village", "bridge")


def _result(settings: CleanSettings) -> list[tuple[str, str]]:
    return [
        (document.id, document.metadata.get("kept", ""))
        for folder in ("documents", "duplicates")
        for path in sorted(settings.folder(folder).iterdir())
        for document in read_documents(path)
    ]


def test_a_cleaning_on_ray_gives_what_local_processes_give(tmp_path: Path) -> None:
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=200)) for _ in range(30)]
    rows = [{"id": str(k), "text": texts[k % 30] + " end" * (k // 30)} for k in range(70)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    inputs = (CleaningInput("here", str(tmp_path / "in.jsonl")),)
    found = []
    for name in ("local", "ray"):
        out = str(tmp_path / name)
        settings = CleanSettings(inputs, out, tasks=3, steps=("domain", "normalize"))
        files = plan.find_files(settings)
        plan.begin(settings, files)
        if name == "local":
            stages.run_local(settings, plan.input_bytes(files), 2)
        else:
            try:
                stages.run_ray(settings, plan.input_bytes(files), {"": 0.1})
            finally:
                ray.shutdown()
        found.append(_result(settings))
    assert found[0] == found[1]
    assert len(found[0]) == 70 and sum(bool(kept) for _, kept in found[0]) == 40
