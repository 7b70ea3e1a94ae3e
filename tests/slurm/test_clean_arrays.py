"""The pipeline that runs in local processes runs as SLURM job arrays, with the same result."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from data_prep.clean.files import read_documents

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]


def _kept(out: Path) -> list[tuple[str, str]]:
    files = sorted((out / "documents").glob("*.jsonl.zst"))
    return [(document.id, document.text) for file in files for document in read_documents(file)]


@pytest.mark.timeout(600)
def test_a_cleaning_in_job_arrays_gives_what_local_processes_give(cluster, tmp_path):
    paragraphs = (ROOT / "tests/slurm/cluster.py").read_text(), (ROOT / "setup.py").read_text()
    with (tmp_path / "in.jsonl").open("w") as file:
        for number in range(40):
            text = f"{number % 30} " + paragraphs[number % 2][20 * (number % 30) :][:1500]
            file.write(json.dumps({"id": str(number), "text": text, "domain": "web"}) + "\n")
    command = [sys.executable, "tools/clean_corpus.py", "run", f"here={tmp_path / 'in.jsonl'}"]
    command += ["--tasks", "3", "--no-filters", "--keep-undetermined"]
    cluster.run(*command, "--out", str(tmp_path / "local"), "--workers", "2", cwd=ROOT)
    where = ["--slurm", "main", "--memory-gb", "1", "--hours", "0.2"]
    said = cluster.run(*command, "--out", str(tmp_path / "slurm"), *where, cwd=ROOT)
    job = said.split("job ")[1].split()[0]
    cluster.wait(job, timeout_seconds=400)
    assert 0 < len(_kept(tmp_path / "local")) < 40
    assert _kept(tmp_path / "slurm") == _kept(tmp_path / "local")
    table = cluster.run(
        sys.executable, "tools/clean_corpus.py", "show", str(tmp_path / "slurm"), cwd=ROOT
    )
    assert "of 40 documents kept" in table
