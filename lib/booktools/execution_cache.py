"""The book's execution cache, made to notice when something other than a notebook changes.

jupyter-cache keys a stored execution on the notebook alone, so an edit to the library would leave
old outputs on the page. ``refresh`` empties the cache when a fingerprint of everything else that a
chapter reads has moved; ``warm`` executes what is missing, one chapter a core.

    python -m booktools.execution_cache [--timeout SECONDS]
"""

import argparse
import hashlib
import logging
import shutil
import sys
from pathlib import Path

import yaml

CACHE = Path("_build/.jupyter_cache")
INPUTS = ("pyproject.toml", "lib", "data")  # what a chapter reads besides itself
IGNORED = {"__pycache__", "cache"}  # data/cache holds downloads, checked by their own checksums


def fingerprint(root: Path) -> str:
    """A hash over the names and contents of every input file under the repository root."""
    digest = hashlib.sha256()
    for name in INPUTS:
        path = root / name
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            relative = file.relative_to(root)
            if not IGNORED.intersection(relative.parts) and ".egg-info" not in str(relative):
                digest.update(relative.as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def refresh(root: Path) -> bool:
    """Empty the cache if its inputs have changed since it was filled; returns whether they had."""
    key_file, now = root / CACHE.parent / "execution_key", fingerprint(root)
    if key_file.is_file() and key_file.read_text() == now:
        return False
    if (root / CACHE).exists():
        shutil.rmtree(root / CACHE)
    key_file.parent.mkdir(parents=True, exist_ok=True)
    key_file.write_text(now)
    return True


def chapters(root: Path) -> list[Path]:
    """The notebooks in the table of contents, in reading order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    files = [root / f"{page['file']}.ipynb" for part in toc["parts"] for page in part["chapters"]]
    return [file for file in files if file.is_file()]


def warm(root: Path, timeout_seconds: int) -> list[str]:
    """Execute the chapters with no stored execution; returns the paths of those that failed."""
    from jupyter_cache import get_cache
    from jupyter_cache.executors import load_executor

    cache = get_cache(str(root / CACHE))
    for record in cache.list_project_records():  # among them chapters since renamed or removed
        cache.remove_nb_from_project(record.pk)
    for notebook in chapters(root):
        cache.add_nb_to_project(str(notebook))
    executor = load_executor("local-parallel", cache, logger=logging.getLogger("execution_cache"))
    result = executor.run_and_cache(timeout=timeout_seconds)
    failed = result.excepted + result.errored
    for uri in failed:
        print(f"\n{Path(uri).name} failed:\n{cache.get_project_record(uri).traceback}")
    print(f"chapters executed now: {len(result.succeeded)}, failed: {len(failed)}", flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one cell may take")
    arguments = parser.parse_args()
    root = Path.cwd()
    if not (root / "_toc.yml").is_file():
        sys.exit(f"{root} holds no _toc.yml: run this from the root of the repository.")
    if refresh(root):
        print("library, data or pins changed: every chapter is executed again")
    sys.exit(1 if warm(root, arguments.timeout) else 0)


if __name__ == "__main__":
    main()
