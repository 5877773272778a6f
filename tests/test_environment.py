"""What is written in more than one place agrees: pins, version, addresses, lists of pages."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import test_floors
import yaml

import learnopt

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
PIP = next(entry["pip"] for entry in CONDA if isinstance(entry, dict))
URL = "https://github.com/optimizers-that-learn/optimizers-that-learn"


def name(requirement):
    return re.split(r"[<>=!~\[ ]", requirement, maxsplit=1)[0].lower()


def test_conda_installs_the_pins_of_the_package_and_the_book():
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["book"]
    assert [line for line in PIP if name(line) in {name(w) for w in wanted}] == wanted


def test_conda_adds_nothing_but_jupyterlab_and_the_project_itself():
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["book"]
    assert [line for line in PIP if line not in wanted] == ["jupyterlab>=4", "-e ."]


def test_conda_takes_a_python_that_the_package_allows():
    python = next(str(entry) for entry in CONDA if str(entry).startswith("python="))
    at_least = PROJECT["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= tuple(
        map(int, at_least.split("."))
    )


def test_torch_is_never_pinned_so_that_colab_keeps_its_own():
    pins = [line for line in PROJECT["dependencies"] if name(line).startswith("torch")]
    assert len(pins) == 2
    assert all(">=" in pin for pin in pins)


def test_an_extra_pins_what_another_extra_pins_alike():
    extras = PROJECT["optional-dependencies"]
    pins = {(name(line), line) for lines in extras.values() for line in lines}
    assert len({package for package, _ in pins}) == len(pins)


def test_the_citation_names_the_version_of_the_library():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == learnopt.__version__
    assert citation["repository-code"] == URL
    assert citation["license"] == PROJECT["license"]


def test_the_book_and_the_package_name_one_repository():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["repository"]["url"] == URL == PROJECT["urls"]["Source"]
    assert config["html"]["baseurl"] == PROJECT["urls"]["Book"]


def test_a_chapter_installs_the_present_version_in_colab():
    chapters = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    for chapter in chapters:
        tags = re.findall(r"optimizers-that-learn(?:\.git)?@([\w.]+)", chapter.read_text())
        assert set(tags) <= {f"v{learnopt.__version__}"}, chapter.name
        assert "torch==" not in chapter.read_text(), chapter.name


def test_every_page_in_the_table_of_contents_exists_and_every_chapter_is_in_it():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    missing = [
        p for p in listed if not any((ROOT / f"{p}{s}").is_file() for s in (".md", ".ipynb"))
    ]
    assert missing == []
    assert len(set(listed)) == len(listed)
    pages = [*(ROOT / "notebooks").glob("[0-9]*.ipynb"), *(ROOT / "book").glob("*.md")]
    stems = {str(page.relative_to(ROOT).with_suffix("")) for page in pages}
    assert stems - set(listed) == set()


def test_the_first_page_links_every_chapter():
    intro = (ROOT / "book" / "intro.md").read_text()
    chapters = {path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert set(re.findall(r"\(\.\./notebooks/(\w+\.ipynb)\)", intro)) == chapters


def test_the_reference_shows_every_module_of_the_library():
    shown = re.findall(r"automodule:: learnopt\.(\w+)", (ROOT / "book" / "api.md").read_text())
    modules = {path.stem for path in (ROOT / "lib" / "learnopt").glob("*.py")} - {"__init__"}
    assert sorted(shown) == sorted(modules)


def test_the_reference_shows_each_module_on_its_floor():
    page = (ROOT / "book" / "api.md").read_text()
    headings = re.findall(r"^##+ (?:Floor (\d+)|(\w+)$)", page, re.M)
    floor, shown = None, {}
    for number, module in headings:
        floor = int(number) if number else floor
        shown |= {module: floor} if module else {}
    assert shown == test_floors.FLOOR


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^  ([a-z]+) ", said.stdout, re.M)
    assert sorted(listed) == sorted(phony)


def test_git_ignores_no_file_of_the_library_or_the_data():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    kept = ["lib/learnopt/new.py", "lib/booktools/new.py", "data/results/03_x/a.npz", "data/a.yaml"]
    dropped = ["data/cache/mnist.npz", "_build/html/index.html", ".venv/bin/python", "runs/a.ipynb"]
    said = subprocess.run(
        ["git", "check-ignore", "--no-index", *kept, *dropped],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout.split() == dropped


def test_no_file_of_the_repository_is_larger_than_a_megabyte():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    said = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / path for path in said.stdout.split("\0") if path]
    assert len(files) > 20
    assert [f.name for f in files if f.is_file() and f.stat().st_size > 1_000_000] == []
