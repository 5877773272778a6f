"""Sphinx extension: docstrings written as plain text, shown as they read in the source.

The library's docstrings are paragraphs, `names in backticks`, and indented or ruled blocks. Read as
reStructuredText, an |absolute value| or a 2 * 3 would be markup; here they are escaped, and blocks
are kept as they stand.
"""

import re
from itertools import groupby

CODE = re.compile(r"``?[^`\n]+?``?")
SPECIAL = re.compile(r"([\\*|`]|_(?=\W|$))")


def to_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText that renders to the same words."""
    result = []
    for kind, group in groupby(lines, key=_kind):
        if kind == "blank":
            result.append("")
        elif kind == "block":
            result += ["", "::", "", *("    " + line for line in group), ""]
        else:
            result += ["", *(_escape(line) for line in group), ""]
    return result


def _kind(line: str) -> str:
    if not line.strip():
        return "blank"
    return "block" if line.startswith(("    ", "|")) else "text"


def _escape(line: str) -> str:
    parts, end = [], 0
    for match in CODE.finditer(line):
        parts += [SPECIAL.sub(r"\\\1", line[end : match.start()]), f"``{match[0].strip('`')}``"]
        end = match.end()
    return "".join(parts) + SPECIAL.sub(r"\\\1", line[end:])


def rewrite(app, what, name, obj, options, lines):
    lines[:] = to_rst(lines)


def skip_fields(app, what, name, obj, skip, options):
    """Leave out the fields of a NamedTuple: they say only 'Alias for field number 0'."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-skip-member", skip_fields)
    return {"version": "1", "parallel_read_safe": True}
