"""The pipeline that runs in local processes runs as SLURM job arrays, with the same result."""

import json
import subprocess
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
    cluster.run(*command, "--out", str(tmp_path / "local"), "--workers", "2", cwd=ROOT, timeout=300)
    where = ["--slurm", "main", "--memory-gb", "1", "groups=2", "--hours", "0.2"]
    said = cluster.run(*command, "--out", str(tmp_path / "slurm"), *where, cwd=ROOT, timeout=300)
    job = said.split("job ")[1].split()[0]
    again = [*command, "--out", str(tmp_path / "slurm"), *where]
    second = subprocess.run(
        again, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=300
    )
    assert second.returncode == 2, second.stdout
    assert "of this cleaning are queued or at work; wait" in second.stderr
    cluster.wait(job, timeout_seconds=400)
    assert "queued" not in cluster.run(*again, cwd=ROOT, timeout=300)
    assert 0 < len(_kept(tmp_path / "local")) < 40
    assert _kept(tmp_path / "slurm") == _kept(tmp_path / "local")
    table = cluster.run(
        sys.executable, "tools/clean_corpus.py", "show", str(tmp_path / "slurm"), cwd=ROOT
    )
    assert "of 40 documents kept" in table
