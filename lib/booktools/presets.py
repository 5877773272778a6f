"""Presets: the sizes at which a chapter runs, as files that override its parameters cell.

`quick` is the parameters cell itself. `presets/NN_name.<preset>.yaml` is a papermill `-f` file, a
flat mapping; it says its own name (`preset: paper`), so that papermill alone can use it. Papermill
takes any key of any type; here both must be those of the parameters cell, or it is an `InputError`.
"""

import reprlib
from pathlib import Path

import yaml

from booktools import chapters, strict_yaml
from booktools.chapters import InputError

QUICK = "quick"
MAX_FILE_BYTES = 100_000
BOOLS = {"true": True, "false": False}


def file(notebook, preset):
    return Path(notebook).parent / "presets" / f"{Path(notebook).stem}.{preset}.yaml"


def names(notebook):
    """The presets of a chapter: quick, and those that have a file."""
    notebook = Path(notebook)
    found = (notebook.parent / "presets").glob(f"{notebook.stem}.*.yaml")
    return [QUICK, *sorted(p.name[len(notebook.stem) + 1 : -5] for p in found)]


def read(path):
    """The mapping in a preset file. Raises InputError."""
    try:
        values = strict_yaml.load(path, MAX_FILE_BYTES)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping, lines like 'n_steps: 100'")
    return values


def problems(source, values, parameters):
    """Every way in which `values` do not fit the parameters; `source` is named in each line."""
    found = []
    for name, value in values.items():
        if name not in parameters:
            allowed = ", ".join(parameters)
            found.append(f"{source}: unknown parameter {reprlib.repr(name)}; allowed: {allowed}")
            continue
        problem = chapters.misfit(parameters[name].kind, value)
        if problem:
            found.append(f"{source}: {name} {problem}{_hint(parameters[name].kind, value)}")
    return found


def _hint(kind, value):
    items = value if isinstance(value, list) else [value]
    strings = [item for item in items if isinstance(item, str)]
    if not any(_is_number(item) for item in strings):
        return ""
    return "; YAML reads 1e-3 as a string, write 1.0e-3" if "float" in kind else "; write digits"


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def load(notebook, preset, parameters):
    """The values by which a preset differs from the parameters cell. Raises InputError."""
    if preset not in names(notebook):
        known = ", ".join(names(notebook))
        raise InputError(f"{notebook}: has no preset {reprlib.repr(preset)}; it has: {known}")
    if preset == QUICK:
        return {}
    path = file(notebook, preset)
    values = read(path)
    found = problems(path, values, parameters)
    if values.get("preset") != preset:
        found.append(f"{path}: must hold the line 'preset: {preset}'")
    if found:
        raise InputError("\n".join(found))
    return values


def parse(name, text, parameters):
    """The value of `-p name text`, read as the kind that the parameters cell gives the name."""
    if name not in parameters:
        raise InputError("\n".join(problems("-p", {name: text}, parameters)))
    kind = parameters[name].kind
    try:
        value = _value(kind, text)
    except (yaml.YAMLError, *strict_yaml.BROKEN):
        value = text
    found = problems("-p", {name: value}, parameters)
    if found:
        raise InputError("\n".join(found))
    return value


def _value(kind, text):
    if kind == "bool":
        return BOOLS[text.lower()]
    if kind.startswith("list["):
        return yaml.load(text, strict_yaml.Loader)
    return chapters.SCALARS[kind](text)
