"""Write constraints.txt anew: the newest releases that setup.py allows, and the image's packages.

    python3.11 containers/renew.py     in the checkout; three minutes

pip resolves in an environment where the image's packages are names and versions without contents,
with the oldest Python that setup.py allows: newer ones, as the image's 3.12, find the same
releases, and tests have one interpreter for all. `make test-containers` then shows whether the
choice works.
"""

import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from containers.pins import is_kept, lines, normal

FOLDER = Path(__file__).resolve().parent
# What nvcr.io/nvidia/pytorch:26.06-py3 has of kept.txt, as people who used it published it.
IMAGE = {
    "torch": "2.13.0a0+8145d630e8.nv26.06",
    "transformer_engine": "2.16.0+4220403e",
    "numpy": "2.1.0",
    "scipy": "1.17.1",
    "triton": "3.7.0",
}
MEGATRON = {"megatron-core": "0.19.2"}  # declares Python 3.12; needs torch and numpy


def extras() -> str:
    """What install.sh asks for besides the project's own requirements, with commas."""
    found = re.search(r"readonly EXTRAS=(\S+)", (FOLDER / "install.sh").read_text())
    assert found, "install.sh says EXTRAS"
    return found[1]


def put(site: Path, name: str, version: str) -> None:
    """A package in a site-packages folder of which pip sees the name and the version."""
    about = site / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def resolve(folder: Path) -> list[str]:
    """name==version of all that pip would install in the image, sorted."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    pip = [python, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "install", "--upgrade", "pip"], check=True)
    # What is there is not told of.
    subprocess.run([*pip, "uninstall", "--yes", "setuptools"], check=True)
    (site,) = (folder / "venv/lib").glob("*/site-packages")
    there = IMAGE | MEGATRON
    for name, version in there.items():
        put(site, name, version)
    rows = [f"{name}=={version}" for name, version in there.items()]
    (folder / "constraints.txt").write_text("\n".join(rows))
    for name in ("setup.py", "pyproject.toml"):
        (folder / name).write_bytes((FOLDER.parent / name).read_bytes())
    command = [python, "-m", "pip", "install", "--dry-run", "--report", folder / "report.json"]
    command += ["--constraint", folder / "constraints.txt", f"{folder}[{extras()}]"]
    subprocess.run(command, check=True)
    chosen = (
        row["metadata"] for row in json.loads((folder / "report.json").read_text())["install"]
    )
    found = MEGATRON | {normal(row["name"]): row["version"] for row in chosen}
    del found["megatron-qwen3"]
    return [f"{name}=={version}" for name, version in sorted(found.items()) if not is_kept(name)]


def main() -> None:
    path = FOLDER / "constraints.txt"
    comments = [row for row in path.read_text().splitlines() if row.startswith("#")]
    with tempfile.TemporaryDirectory() as folder:
        rows = resolve(Path(folder))
    print(f"{len(set(rows) - set(lines(path)))} of {len(rows)} pins are new")
    path.write_text("\n".join([*comments, *rows]) + "\n")


if __name__ == "__main__":
    if sys.version_info[:2] != (3, 11):
        raise SystemExit("setup.py allows Python 3.11: call this with python3.11")
    main()
