"""The two definitions of an image: alike, pinned, and without fault by the linters."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from definitions import DOCKERFILE, FOLDER, ROOT, in_context, instructions, sections
from packaging.requirements import Requirement
from setuptools.dist import Distribution

from containers import pins
from containers.pins import is_kept, normal, pinned
from containers.renew import extras

PROGRAMS = Path(sys.executable).parent
PINS = pinned(FOLDER / "constraints.txt")


def requirements():
    """The packages that setup.py asks for in an image."""
    from distutils.core import run_setup  # setuptools', which came before

    asked = run_setup(str(ROOT / "setup.py"), stop_after="init")
    assert isinstance(asked, Distribution)
    lists = [asked.install_requires, *(asked.extras_require[name] for name in extras().split(","))]
    return [Requirement(row) for rows in lists for row in rows]


def test_hadolint_finds_nothing():
    done = subprocess.run([PROGRAMS / "hadolint", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["containers/install.sh", "tests/containers/stand_in.sh"])
def test_bash_and_shellcheck_find_nothing(name):
    subprocess.run(["bash", "-n", ROOT / name], check=True)
    done = subprocess.run([PROGRAMS / "shellcheck", ROOT / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_lines_of_the_apptainer_definition_are_sound_as_shell():
    for name in ("environment", "post", "runscript"):
        text = "#!/bin/sh\n" + "\n".join(sections()[name]) + "\n"
        words = [PROGRAMS / "shellcheck", "--exclude=SC1091", "-"]
        done = subprocess.run(words, input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_both_definitions_make_the_same_of_the_same_image():
    steps, definition = instructions(), sections()
    (base,) = (rest for name, rest in steps if name == "FROM")
    assert definition[""] == ["Bootstrap: docker", f"From: {base}"]
    assert re.fullmatch(r"nvcr\.io/nvidia/pytorch:\d\d\.\d\d-py3", base)
    runs = [rest for name, rest in steps if name == "RUN"]
    assert runs == [line for line in definition["post"] if not line.startswith("export ")]
    shared = dict(steps[1:2])["ENV"].split()
    assert [f"export {word}" for word in shared] == definition["environment"]
    assert definition["environment"] == definition["post"][: len(shared)]
    assert [rest for name, rest in steps if name == "ENTRYPOINT"] == ['["mq3"]']
    assert definition["runscript"] == ['exec mq3 "$@"']


def test_both_definitions_copy_the_same():
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"  # but what is named
    copied = [line.split() for line in sections()["files"]]
    assert sorted(source for source, _ in copied) == in_context()
    assert all(target == f"/opt/megatron_qwen3/{source}" for source, target in copied)
    assert ("COPY", ". /opt/megatron_qwen3") in instructions()
    assert all((ROOT / source).exists() for source, _ in copied)


def test_nobody_is_root_without_a_word():
    users = [rest for name, rest in instructions() if name == "USER"]
    assert users and users[-1].partition(":")[0] not in ("0", "root")


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_everything_that_setup_py_asks_for_is_kept_or_pinned(requirement):
    if is_kept(requirement.name):
        assert normal(requirement.name) not in PINS
    else:
        pin = PINS[normal(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement}, pinned to {pin}"


def test_pins_are_whole_versions_of_what_is_not_the_images():
    for row in pins.lines(FOLDER / "constraints.txt"):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", row), row
        assert not is_kept(row.partition("==")[0]), row
    assert PINS["megatron-core"] == "0.19.2"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """packages(name, version, …): all that this Python finds from now on."""

    def packages(**named):
        for old in tmp_path.glob("*/METADATA"):
            old.unlink()
            old.parent.rmdir()
        for name, version in named.items():
            about = tmp_path / f"{name}-{version}.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")

    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return packages


IMAGE = {
    "torch": "2.13.0a0+8145d630e8.nv26.06",
    "transformer_engine": "2.16.0+4220403e",
    "apex": "0.1",
    "nvidia_dali_cuda130": "2.1.0",
    "rich": "1",
}


def test_what_is_kept_stays_at_the_images_version_and_the_rest_as_pinned(packages, tmp_path):
    packages(**IMAGE)
    written = pins.write(FOLDER / "constraints.txt").splitlines()
    assert "torch==2.13.0a0+8145d630e8.nv26.06" in written
    assert "transformer-engine==2.16.0+4220403e" in written
    assert f"rich=={PINS['rich']}" in written and "rich==1" not in written
    (tmp_path / "constraints").write_text("\n".join(written))
    pins.check(tmp_path / "constraints")


def test_an_image_without_what_it_must_have_is_refused(packages):
    packages(**{name: version for name, version in IMAGE.items() if name != "apex"})
    with pytest.raises(SystemExit, match="the image lacks apex"):
        pins.write(FOLDER / "constraints.txt")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"torch": "2.14.0"}, r"torch was 2\.13\.0a0\+8145d630e8\.nv26\.06 and is 2\.14\.0"),
        ({"triton": "3.9"}, "triton was absent and is 3.9"),
    ],
)
def test_a_changed_package_of_the_image_fails_the_build(packages, tmp_path, change, told):
    packages(**IMAGE)
    (tmp_path / "constraints").write_text(pins.write(FOLDER / "constraints.txt"))
    packages(**IMAGE | change)
    with pytest.raises(SystemExit, match=told):
        pins.check(tmp_path / "constraints")
