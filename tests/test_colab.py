"""What Colab does with a chapter, as far as it can be done without Colab."""

import os
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
URL = "https://github.com/optimizers-that-learn/optimizers-that-learn"
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PATIENCE_SECONDS = 600  # the machine may be busy
SITE = Path(sysconfig.get_path("purelib"))


def installation(chapter):
    """The source of the chapter's one cell that installs the library."""
    cells = nbformat.read(chapter, as_version=4).cells
    (found,) = [cell.source for cell in cells if "pip" in cell.source and cell.cell_type == "code"]
    return found


def commands(source, monkeypatch, colab, installed):
    """What the cell runs on a machine that is Colab or not and has the library or not."""
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed or None)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(source, {})
    return ran


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_installation_cell_installs_the_library_alone_and_only_in_a_fresh_colab(
    chapter, monkeypatch
):
    source = installation(chapter)
    command, *others = commands(source, monkeypatch, colab=True, installed=False)
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert "--no-deps" in command  # so torch, numpy and the rest stay what Colab has
    assert [part for part in command if "://" in part] == [f"git+{URL}@v0.1.0"]
    for other in others:  # what Colab lacks; pip leaves alone what is there and new enough
        assert not any(part.startswith(("torch", "-U", "--upgrade", "--force")) for part in other)
    assert commands(source, monkeypatch, colab=True, installed=True) == []
    assert commands(source, monkeypatch, colab=False, installed=False) == []


def preinstalled(folder):
    """Links to what this Python has, without the project itself, as Colab has its packages."""
    folder.mkdir()
    for path in SITE.iterdir():
        ours = path.name.startswith(("optimizers_that_learn", "__editable__", "learnopt"))
        if not ours and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


def published(folder):
    """A repository with the files of this checkout in one commit, tagged as the release.

    Not a shallow clone: pip clones with a filter, and from a shallow repository git 2.39 then
    starts a fetch within every fetch, without end.
    """
    subprocess.run(["git", "clone", "-q", "--depth", "1", ROOT.as_uri(), folder], check=True)
    shutil.rmtree(folder / ".git")
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for step in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"], ["tag", "v0.1.0"]):
        subprocess.run(["git", "-C", folder, *who, *step], check=True, timeout=PATIENCE_SECONDS)
    return folder


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_a_fresh_machine_gets_the_library_and_its_records_and_keeps_its_torch(tmp_path):
    """The real cell, with the real pip and git: only the address leads to this checkout."""
    copy = published(tmp_path / "copy")
    colab = tmp_path / "colab"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", colab], check=True)
    python = colab / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"} | {
        "PYTHONPATH": str(preinstalled(tmp_path / "preinstalled")),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes: it needs no network here
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{copy.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": URL,
    }
    stub = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
    cell = tmp_path / "cell.py"
    cell.write_text(stub + installation(CHAPTERS[2]))
    after = (
        "import torch, learnopt; from learnopt import lstm_optimizer, records;"
        "print(torch.__file__); print(learnopt.__file__);"
        "print(len(records.find('03_lstm_learns_to_optimize')));"
        "print(sum(leaf.numel() for leaf in lstm_optimizer.load('mnist').phi.values()))"
    )

    subprocess.run(
        [python, cell], env=environment, cwd=tmp_path, check=True, timeout=PATIENCE_SECONDS
    )
    said = subprocess.run(
        [python, "-c", after], env=environment, cwd=tmp_path, check=True,
        capture_output=True, text=True,
    )  # fmt: skip

    torch_file, learnopt_file, n_records, n_weights = said.stdout.split()
    assert torch_file.startswith(str(tmp_path / "preinstalled"))
    assert learnopt_file.startswith(str(colab))
    new = [path.name for path in colab.glob("lib/python*/site-packages/*")]
    assert not any(name.startswith(("torch", "numpy", "scipy")) for name in new)
    assert int(n_records) > 0
    assert int(n_weights) == 5301  # a trained optimizer comes with the installed library
