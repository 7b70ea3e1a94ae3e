"""Reads the Dockerfile and the Apptainer definition, for tests to compare and to carry out."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "containers"
DOCKERFILE, DEFINITION = FOLDER / "Dockerfile", FOLDER / "megatron_qwen3.def"
INSIDE = "/opt/megatron_qwen3"  # where both put the project


def instructions():
    """(instruction, rest) of each of the Dockerfile's, without comments, in order."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    rows = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(name, " ".join(rest.split())) for name, rest in rows]


def runs():
    """The commands of the Dockerfile's RUN instructions."""
    return [rest for name, rest in instructions() if name == "RUN"]


def sections():
    """The lines of each %section of the Apptainer definition, and of its head under ""."""
    found, name = {"": []}, ""
    for line in DEFINITION.read_text().splitlines():
        line = line.strip()
        if line.startswith("%"):
            name = line[1:]
            found[name] = []
        elif line and not line.startswith("#"):
            found[name].append(line)
    return found


def in_context():
    """The top files and folders that .dockerignore lets into an image."""
    return sorted(
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    )


def copy(source, target):
    """As COPY does what .dockerignore lets it."""
    if source.is_dir():
        left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, target, ignore=left_out, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
