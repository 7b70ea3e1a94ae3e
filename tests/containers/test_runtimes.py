"""Commands of jobs really run in the container that a variable names, and see mounted folders.

The runtimes are stood in by a namespace of bubblewrap (`stand_in.sh`), SLURM by nothing:
tests/slurm has whole jobs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import runtimes
from definitions import ROOT

pytestmark = pytest.mark.skipif(bool(runtimes.why_not()), reason=runtimes.why_not())
JOB = """
source "$1/examples/slurm/environment.sh"
commands='echo "$CONTAINER"; pwd; command -v python; cat "$1"'
srun "${STEP[@]}" "${INSIDE[@]}" bash -c "$commands" - "$2"
"""


@pytest.fixture
def job(tmp_path):
    """job(image, file, **variables): what a job prints that reads a file in a container."""
    programs = runtimes.put(tmp_path / "bin", "apptainer", "srun")

    def job(image, file, **variables):
        own = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT)}
        environment = os.environ | own | {"QWEN3_CONTAINER": str(image)} | variables
        words = ["bash", "-c", JOB, "job", ROOT, file]
        return subprocess.run(
            words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
        )

    return job


@pytest.fixture
def text(tmp_path):
    """A file outside of the checkout, in a folder whose name a shell would take apart."""
    folder = tmp_path / "of $(touch broken) 'data'"
    folder.mkdir()
    (folder / "text").write_text("seen\n")
    return folder / "text"


@pytest.mark.parametrize("name", ["an image.sif", "an image.sqsh"])
def test_a_command_runs_in_the_image_and_sees_the_checkout_and_what_is_mounted(
    job, text, tmp_path, name
):
    image = runtimes.image(tmp_path / name)
    done = job(image, text, QWEN3_MOUNTS=f"{text.parent}:{text.parent}")
    assert done.returncode == 0, done.stderr
    python = Path(sys.prefix).resolve() / "bin/python"
    assert done.stdout.splitlines() == [str(image), str(ROOT), str(python), "seen"]
    hidden = job(image, text)
    assert hidden.returncode != 0 and "No such file" in hidden.stderr
    assert not (ROOT / "broken").exists()


def test_an_image_in_the_checkout_can_be_named_from_there(job, text, tmp_path):
    """Pyxis takes a name without a folder for one of a registry."""
    image = runtimes.image(tmp_path / "a.sqsh")
    name = os.path.relpath(image, ROOT)
    done = job(name, ROOT / "setup.py")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).resolve() == image


@pytest.mark.parametrize("name", ["/nowhere/a.sif", "a.sqsh", "./folder"])
def test_an_image_that_is_not_there_ends_the_job_before_its_first_command(job, text, name):
    done = job(name, text)
    assert done.returncode == 2 and "is not there" in done.stderr
    assert done.stdout == ""
