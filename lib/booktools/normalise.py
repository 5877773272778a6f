"""Notebooks as they are committed: outputs kept, everything that changes from run to run dropped.

Running a chapter again with the same results gives the same bytes, so a diff shows results only.
"""

import base64
import re
import struct
from itertools import groupby

import nbformat

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}
CELL_METADATA = {"tags", "mystnb"}
WIDGET = "application/vnd.jupyter.widget-view+json"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt", b"tIME"}  # version of matplotlib, date


def normalise(notebook):
    """A new notebook in its committed form. Cell ids are kept; a second call changes nothing."""
    cells, count = [], 0
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            continue
        fields = {"id": cell.id, "metadata": _metadata(cell.metadata)}
        if "attachments" in cell:
            fields["attachments"] = cell.attachments
        if cell.cell_type == "code":
            has_run = cell.execution_count is not None
            count += has_run
            number = count if has_run else None
            fields |= {"execution_count": number, "outputs": _outputs(cell.outputs, number)}
        make = getattr(nbformat.v4, f"new_{cell.cell_type}_cell")
        cells.append(make(cell.source.rstrip("\n"), **fields))
    metadata = {"kernelspec": KERNELSPEC, "language_info": LANGUAGE}
    result = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    result.nbformat_minor = 5
    return result


def text(notebook):
    """The bytes of the file, as a string."""
    return nbformat.writes(notebook) + "\n"


def _metadata(metadata):
    return {key: value for key, value in metadata.items() if key in CELL_METADATA and value}


def _outputs(outputs, number):
    """Outputs without live widgets (they need a kernel), streams merged, images stripped."""
    kept = [nbformat.from_dict(o) for o in outputs if WIDGET not in o.get("data", {})]
    result = []
    for is_stream, group in groupby(kept, key=lambda output: output.output_type == "stream"):
        outputs = list(group)
        result += _streams(outputs) if is_stream else outputs
    for output in result:
        output.pop("transient", None)
        if output.output_type == "execute_result":
            output.execution_count = number
        if "data" in output:
            output.data = {kind: _data(kind, value) for kind, value in output.data.items()}
    return result


def _streams(outputs):
    """One stream of each name, stdout first: how they are cut and mixed depends on timing."""
    texts = {"stdout": "", "stderr": ""}
    for output in outputs:
        texts[output.name] += output.text
    shown = {name: _overwritten(text) for name, text in texts.items()}
    return [nbformat.v4.new_output("stream", name=n, text=t) for n, t in shown.items() if t]


def _overwritten(text):
    """What a terminal shows in the end: a carriage return starts the line again."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(_last_state(line) if "\r" in line else line for line in lines)


def _last_state(line):
    return line.rstrip("\r").rpartition("\r")[2].rstrip()


def _data(kind, value):
    if kind == "image/png":
        return base64.b64encode(strip_png(base64.b64decode(value))).decode()
    if kind == "text/plain":
        return re.sub(r" at 0x[0-9a-f]+", "", value)  # <Line2D at 0x7f...>
    return value


def strip_png(data):
    """The same picture without the chunks that name programs and dates."""
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError("an image/png output holds no PNG")
    kept, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        chunk = data[position : position + length + 12]  # length, name, content, checksum
        if chunk[4:8] not in PNG_TEXT_CHUNKS:
            kept.append(chunk)
        position += length + 12
    return b"".join(kept)
