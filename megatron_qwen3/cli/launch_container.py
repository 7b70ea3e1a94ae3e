"""Describes the container of a job: the folders that it sees, its runtime, and missing parts.

    given = completed(given, configs)    # --container a whole path, --mounts all that runs touch
    faults(given), notes(given)          # errors that would end the job, and that might

Jobs find all of it in variables (`examples/slurm/environment.sh`), as they do where sbatch is
called by hand; values of QWEN3_CONTAINER, QWEN3_RUNTIME and QWEN3_MOUNTS hold here, too, unless an
option replaces them.
"""

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path

from data_prep import curriculum
from megatron_qwen3 import hub
from megatron_qwen3.config import Config, ConfigError

_MOUNT = re.compile(r"/[^:]*:/[^:]*(:[^:]+)?")
RUNTIMES = ("apptainer", "pyxis")

# Settings that name a file or a folder, and tables whose rows have a path. rollouts.vllm.python is
# none of them: it is looked for in the image.
PATHS = (
    "data.tokenizer",
    "data.curriculum",
    "checkpoint.init_from",
    "sft.teacher.path",
    "rollouts.agent.corpus",
    "rl.kl.reference",
    "rl.judge.template",
    "rl.judge.model",
    "distill.teacher.path",
)
FOLDERS = ("run.dir", "rollouts.vllm.folder")  # which may be made only when the job starts
TABLES = ("data.sources", "sft.sources", "reward.sources", "rollouts.tasks")
_GENERATORS = ("gym:", "own:")  # of tasks, which are no files
_FROM_ENVIRONMENT = ("container", "runtime", "mounts", "setup")


def completed(given: argparse.Namespace, configs: Iterable[Config]) -> argparse.Namespace:
    """The options as a job gets them: the image's whole path, and every folder that it must see.

    ConfigError where a folder has a name that no runtime can mount.
    """
    whole = argparse.Namespace(**vars(given))
    for name in _FROM_ENVIRONMENT:
        if getattr(given, name) == "":
            raise ConfigError(f'--{name} "": it is empty; name one, or leave it out')
        asked = getattr(given, name) or os.environ.get(f"QWEN3_{name.upper()}")
        setattr(whole, name, asked or None)
    if not whole.container:
        for name in ("mounts", "runtime"):
            if getattr(given, name):
                raise ConfigError(
                    f"--{name} {getattr(given, name)} is a container's; name one by --container, "
                    "or leave it out"
                )
    whole.asked = whole.mounts.split(",") if whole.mounts else []
    if whole.container:
        if is_path(whole.container):
            whole.container = os.path.abspath(whole.container)
        seen = [Path.cwd(), *(Path(row.split(":")[1]) for row in whole.asked if ":" in row)]
        own = [f"{folder}:{folder}" for folder in folders(configs, seen)]
        whole.mounts = ",".join([*whole.asked, *own]) or None
    return whole


def is_path(image: str) -> bool:
    """Whether an image is a file or a folder, by its name; all else is found by the runtime."""
    if image.startswith(("/", ".")):
        return True
    return image.endswith((".sif", ".sqsh")) and "://" not in image and "#" not in image


def runtime(given: argparse.Namespace) -> str:
    """The default runtime of the image: apptainer for a .sif file, a folder or docker://…"""
    image = given.container
    if given.runtime:
        return str(given.runtime)
    is_apptainers = image.endswith(".sif") or "://" in image or Path(image).is_dir()
    return "apptainer" if is_apptainers else "pyxis"


def faults(given: argparse.Namespace, looks_at_files: bool) -> Iterator[str]:
    """Why the container that `completed` options ask for cannot run."""
    if not given.container:
        return
    if given.runtime not in (None, *RUNTIMES):
        yield f"QWEN3_RUNTIME = {given.runtime} is not one of {', '.join(RUNTIMES)}"
    if given.venv:
        yield f"--venv {given.venv}: a container has an environment of its own; leave out one"
    if looks_at_files and is_path(given.container) and not Path(given.container).exists():
        yield f"--container {given.container} is not there"
    if not given.container.isprintable():
        yield f"--container {given.container!r} has a character that is no part of a name"
    for row in given.asked:
        if not _MOUNT.fullmatch(row):
            yield f'--mounts "{row}" is not /FOLDER:/FOLDER, as /home/me/hub:/hub or /data:/data:ro'
    for row in given.asked if looks_at_files else ():
        if not Path(source := row.partition(":")[0]).exists():
            yield f"--mounts {row}: {source} is not there"
    if runtime(given) == "pyxis" and shutil.which("srun") and not _has_pyxis():
        yield (
            f"--container {given.container} needs the Pyxis plugin, which this SLURM does not have"
            "; with --runtime apptainer Apptainer runs it"
        )


def notes(given: argparse.Namespace) -> Iterator[str]:
    """Programs that are missing here, although the nodes may have them."""
    if not given.container or runtime(given) != "apptainer" or given.setup:
        return
    if not (shutil.which("apptainer") or shutil.which("singularity")):
        yield "apptainer is not on PATH here: nodes must have it, or --setup load it"


def folders(configs: Iterable[Config], seen: Iterable[Path]) -> list[str]:
    """Folders that runs read or write outside of those that are `seen`, none inside another.

    A relative path may lead out of the checkout by a link, whose end must then be seen as well.
    """
    found = {place for config in configs for place in _places(config)}
    own: list[Path] = []
    known = [Path(os.path.abspath(folder)) for folder in seen]
    for folder in sorted(found):  # a folder comes before those inside it
        if not any(folder.is_relative_to(other) for other in (*known, *own)):
            own.append(folder)
    for name in map(str, (*own, Path.cwd())):
        if ":" in name or "," in name or name == "/":
            raise ConfigError(
                f"{name} cannot be mounted in a container: it is the root, or has : or , in it"
            )
    return [str(folder) for folder in own]


def _places(config: Config) -> set[Path]:
    """The folders that a run reads or writes, by their names and by where links lead."""
    found = [Path(attrgetter(name)(config)) for name in FOLDERS if attrgetter(name)(config)]
    for path in map(Path, _paths(config)):
        found.append(path if path.is_dir() else path.parent)  # a file, or a prefix of files
    if (plan := config.data.curriculum) and Path(plan).is_file():
        stages = curriculum.read(plan).stages
        found += {Path(share.source.folder) for stage in stages for share in stage.shares}
    return {Path(way(folder)) for folder in found for way in (os.path.abspath, os.path.realpath)}


def _paths(config: Config) -> Iterator[str]:
    """The files and folders that settings name for a run to read."""
    yield from filter(None, (attrgetter(name)(config) for name in PATHS))
    copy = hub.place(config.data.tokenizer)
    if hub.is_id(config.data.tokenizer) and copy.is_dir():
        yield str(copy)
    for table in TABLES:
        paths = (row.path for row in attrgetter(table)(config))
        yield from (path for path in paths if not path.startswith(_GENERATORS))


def _has_pyxis() -> bool:
    told = subprocess.run(["srun", "--help"], capture_output=True, text=True, check=False).stdout
    return "--container-image" in told
