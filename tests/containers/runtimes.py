"""Stand-ins for Apptainer and for srun with Pyxis, which `stand_in.sh` is, and images for them."""

import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("stand_in.sh")


def why_not() -> str:
    """Why no namespace can be made here; "" where one can."""
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed"
    words = ["bwrap", "--ro-bind", "/", "/", "--tmpfs", "/tmp", "true"]
    done = subprocess.run(words, capture_output=True, text=True)
    return f"bubblewrap cannot make a namespace: {done.stderr.strip()}" if done.returncode else ""


def put(folder: Path, *names: str) -> Path:
    """A folder for PATH with the stand-ins of these names."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).symlink_to(SCRIPT)
    return folder


def image(path: Path) -> Path:
    """An image that has the Python that runs the tests, and nothing else."""
    python = Path(sys.prefix).resolve()
    folders = {str(python), str(Path(sys.base_prefix).resolve())}
    path.write_text("\n".join([f"{python}/bin:/usr/bin:/bin", *sorted(folders)]) + "\n")
    return path
