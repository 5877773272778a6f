"""Small chapters for the tests of the book's tools."""

import nbformat

BADGE = (
    "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/optimizers-that-learn/optimizers-that-learn"
    "/blob/v0.1.0/notebooks/{name}.ipynb)"
)
COST = "quick: 5 s on 2 CPU cores; paper: 1 min on 2 CPU cores"
PARAMETERS = """\
seed: int = 0  # every random draw follows from it
n_seeds: int = 2  # paper: 5
device: str = "cpu"
preset: str = "quick"
lr: float = 0.1
n_steps: int = 3  # steps; paper: 100"""
BOOTSTRAP = """\
try:
    import math
except ModuleNotFoundError:
    %pip install math"""
CLOSING = """\
## What was and was not reproduced
Nothing was.
## Exercises
1. (easy) Change the seed.
## References
- Nobody (2026)."""


def write(folder, name, *code, parameters=PARAMETERS):
    """A notebook that holds a parameters cell and one cell for each of `code`; return its path."""
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in code]
    return save(folder, name, cells)


def write_whole(folder, name, *code):
    """A chapter in the full form, with its presets, not yet executed; return its path."""
    title = f"{BADGE.format(name=name)}\n\n# {name[:2]}. A title\n\n{COST}"
    cells = [
        nbformat.v4.new_markdown_cell(title),
        nbformat.v4.new_code_cell(BOOTSTRAP, metadata={"tags": ["remove-cell"]}),
        nbformat.v4.new_code_cell("import math"),
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        *[nbformat.v4.new_code_cell(source) for source in code],
        nbformat.v4.new_code_cell("assert math.pi > 3", metadata={"tags": ["check"]}),
        nbformat.v4.new_markdown_cell(CLOSING),
    ]
    for preset, n_steps in (("smoke", 1), ("paper", 100)):
        write_preset(folder, name, preset, f"preset: {preset}\nn_steps: {n_steps}\n")
    return save(folder, name, cells)


def write_preset(folder, name, preset, text):
    path = folder / "presets" / f"{name}.{preset}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def save(folder, name, cells):
    folder.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path
