"""Writes a study as SLURM job arrays: one array per GPU count, one task per point.

    for script in write(Path("runs/scaling"), points, gpus_per_node=8):
        submit(script)

SLURM gives all tasks of an array equally many nodes, so each GPU count has an array of its own. A
task hands its point's settings to examples/slurm/train.sbatch, which starts the ranks. Points that
are done are not in the arrays. An array that waits has its points in itself: SLURM keeps the script
as it was submitted, whatever a later call writes.
"""

import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.studies.local import Point, write_settings

_SCRIPT = """\
#!/usr/bin/env bash
# {count} points of the study in {dir}, each on {gpus} GPUs. From the checkout:
#
#   sbatch {script}
#
#SBATCH --job-name="{name}"
#SBATCH --array=0-{last}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={per_node}
#SBATCH --gpus-per-node={per_node}
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time={minutes}
#SBATCH --output="{folder}/%x-%A_%a.out"
{options}set -euo pipefail
points=(
{points}
)
exec bash "${{QWEN3_CHECKOUT:-$SLURM_SUBMIT_DIR}}/examples/slurm/train.sbatch" \\
  "${{points[SLURM_ARRAY_TASK_ID]}}"
"""


def write(
    folder: Path,
    points: Sequence[Point],
    gpus_per_node: int,
    minutes: int = 60,
    options: Sequence[str] = (),
) -> list[Path]:
    """Write the arrays of all points that are not done into `folder`/slurm; returns the scripts.

    `options` are sbatch's, and win over those that stand in the scripts already. Where GPUs are
    fewer than `gpus_per_node` one node has them all. ConfigError: nodes cannot share a count
    evenly, an option is none, or the folder has a name that no line of a script can hold.
    """
    for option in options:
        if not re.fullmatch(r"--[\w-]+(=[^\n]*)?", option):
            raise ConfigError(f"sbatch = {option!r} is no option of sbatch, --name=value")
    by_gpus: dict[int, list[Point]] = defaultdict(list)
    for point in {point.config.run_dir: point for point in points}.values():
        if not point.is_done:
            by_gpus[point.ranks].append(point)
    if (name := str(folder)) != shown(name):
        raise ConfigError(f"dir = {name!r}: a job script cannot name such a folder; choose another")
    target = folder / "slurm"
    target.mkdir(parents=True, exist_ok=True)
    return [
        _write_array(target, by_gpus[gpus], gpus, gpus_per_node, minutes, options)
        for gpus in sorted(by_gpus)
    ]


def submit(script: Path) -> None:
    """Hand an array to SLURM, which prints its number; ConfigError where it is refused."""
    try:
        subprocess.run(["sbatch", str(script)], check=True)
    except OSError:
        raise ConfigError("sbatch is not on PATH: this machine has no SLURM") from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"sbatch {script}: exit status {error.returncode}") from None


def _write_array(
    target: Path,
    points: list[Point],
    gpus: int,
    gpus_per_node: int,
    minutes: int,
    options: Sequence[str],
) -> Path:
    nodes = -(-gpus // gpus_per_node)
    if gpus % nodes:
        raise ConfigError(
            f"gpus = {gpus} cannot be shared evenly by {nodes} nodes; gpus_per_node = "
            f"{gpus_per_node}"
        )
    script = target / f"array_{gpus}.sbatch"
    content = _SCRIPT.format(
        count=len(points),
        dir=target.parent,
        gpus=gpus,
        script=shlex.quote(str(script)),
        name=f"{target.parent.name}-{gpus}",
        last=len(points) - 1,
        nodes=nodes,
        per_node=gpus // nodes,
        minutes=minutes,
        folder=target,
        points="\n".join(shlex.quote(str(write_settings(point))) for point in points),
        options="".join(f"#SBATCH {option}\n" for option in options),
    )
    write_whole(script, [content.encode()])
    return script
