"""Recorded runs: one run is one small JSON file plus its curves in an `.npz` beside it.

    path = records.save("03_lstm_learns_to_optimize", "paper-seed0", parameters={...},
                        metrics={...}, curves={...}, seed=0, device="cpu", seconds=61.2,
                        preset="paper")
    record = records.load(path)                                    # one Record
    runs = records.find("03_lstm_learns_to_optimize", "paper-*")   # a sorted list of them

The JSON is strict: a metric that is not finite (divergence is a result) is stored as one of the
strings "nan", "inf", "-inf", and `load` turns it back into a float. Curves are float32: above
3.4e38 they become inf. The curves are moved into place first and the JSON, which holds their
SHA-256, last: a reader sees a whole record or none. Every failure is a `RecordError` that names
the file, the field and what to do.
"""

import hashlib
import json
import math
import numbers
import os
import re
from pathlib import Path
from reprlib import repr as short
from typing import NamedTuple

import numpy as np
import torch

from learnopt import atomic, provenance
from learnopt import curves as curve_files

FORMAT = 1
MAX_FILE_BYTES = 1_000_000  # each of the two files: records are committed
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
TEXT, NUMBER, WHOLE = (str,), (int, float), (int,)
FIELDS = {
    "format": WHOLE, "chapter": TEXT, "name": TEXT, "preset": TEXT, "parameters": (dict,),
    "metrics": (dict,), "curves.sha256": TEXT, "curves.names": (list,), "provenance.seed": WHOLE,
    "provenance.device": TEXT, "provenance.device_name": TEXT, "provenance.n_threads": WHOLE,
    "provenance.platform": TEXT, "provenance.seconds": NUMBER, "provenance.date": TEXT,
    "provenance.commit": (str, type(None)), "provenance.versions": (dict,),
}  # fmt: skip
OPTIONAL = {"provenance.content": (dict,)}  # older records, and those of no batch, lack it
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
PATTERN = re.compile(r"[A-Za-z0-9_.+*?\[\]!-]{1,100}")
RESTORE = "restore it with git, or delete it and run again"


class RecordError(ValueError):
    """A record that cannot be written, or cannot be trusted."""


class Record(NamedTuple):
    chapter: str
    name: str
    preset: str  # "smoke", "quick", "paper", ...
    parameters: dict  # what the run was told
    metrics: dict  # name -> int or float; nan and inf are legal
    curves: dict  # name -> float32 array
    provenance: dict  # seed, device, seconds, commit, versions, ... (see provenance.py)


def results_root():
    """The folder of records: $LEARNOPT_RESULTS, else the checkout's, else the packaged copy.

    The variable should hold a whole path: a relative one counts from the working folder. Raises
    RecordError where there is no folder.
    """
    if os.environ.get("LEARNOPT_RESULTS"):
        return Path(os.environ["LEARNOPT_RESULTS"])
    if provenance.checkout():
        return provenance.checkout() / "data" / "results"
    packaged = Path(__file__).parent / "results"
    if packaged.is_dir():
        return packaged
    raise RecordError(
        "no folder of recorded runs: this is no checkout of the book and the installed package "
        "holds none; set the environment variable LEARNOPT_RESULTS to a folder"
    )


def save(
    chapter, name, *, parameters, metrics, curves, seed, device, seconds, preset, root=None
):  # fmt: skip
    """Write one run to `<root>/<chapter>/<name>.json` and `.npz`; return the path of the JSON.

    parameters: JSON values, finite. metrics: name -> number. curves: name -> numbers of any shape
    (list, array or tensor). seconds: wall-clock time of the run. A record of the same name is
    replaced. Raises RecordError.
    """
    path = _path(root, chapter, name)
    try:
        packed = curve_files.pack(curves)
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None
    record = {
        "format": FORMAT,
        "chapter": chapter,
        "name": name,
        "preset": preset,
        "parameters": parameters,
        "metrics": {key: _encode(path, key, value) for key, value in metrics.items()},
        "curves": {"sha256": hashlib.sha256(packed).hexdigest(), "names": sorted(curves)},
        "provenance": provenance.describe(seed=seed, device=device, seconds=seconds),
    }
    try:
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise RecordError(f"{path}: parameters must be finite JSON values: {error}") from None
    _check(path, json.loads(text))
    _write(path, text.encode(), packed)
    return path


def load(path):
    """Read one record and verify its fields, types and checksum. Raises RecordError."""
    path = Path(path)
    try:
        raw = json.loads(_read(path), parse_constant=_refuse, parse_float=_finite)
        json.dumps(raw, ensure_ascii=False).encode()  # half letters, as of UTF-16, cannot be shown
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{path}: not the JSON of a record ({error}); {RESTORE}") from None
    _check(path, raw)
    packed = _read(path.with_suffix(".npz"))
    if hashlib.sha256(packed).hexdigest() != raw["curves"]["sha256"]:
        raise RecordError(f"{path}: field 'curves.sha256' does not fit the .npz file; {RESTORE}")
    raw["metrics"] = {key: NOT_FINITE.get(value, value) for key, value in raw["metrics"].items()}
    try:
        raw["curves"] = curve_files.unpack(packed, raw["curves"]["names"])
    except ValueError as error:
        raise RecordError(f"{path.with_suffix('.npz')}: {error}; {RESTORE}") from None
    return Record(**{field: raw[field] for field in Record._fields})


def paths(chapter, pattern="*", root=None):
    """The JSON files of the records that match, sorted by name, 'seed2' before 'seed10'.

    Raises RecordError for a chapter or a pattern that is no name, and where no folder is found.
    """
    if not (isinstance(pattern, str) and PATTERN.fullmatch(pattern)):
        raise RecordError(
            f"{short(pattern)} is no pattern of record names: like 'paper-*', no slash"
        )
    folder = _path(root, chapter, "any").parent
    found = [path for path in folder.glob(f"{pattern}.json") if not path.name.startswith(".")]
    return sorted(found, key=lambda path: re.sub(r"\d+", lambda n: n[0].zfill(9), path.stem))


def find(chapter, pattern="*", root=None):
    """The records of a chapter whose name matches `pattern` ('paper-*'), sorted by name.

    Raises RecordError, as ``paths`` and ``load`` do.
    """
    return [load(path) for path in paths(chapter, pattern, root)]


def _path(root, chapter, name):
    for field, value in (("chapter", chapter), ("name", name)):
        if not (isinstance(value, str) and FILE_NAME.fullmatch(value)):
            raise RecordError(
                f"{field} {short(value)} is not allowed: 1 to 100 letters, digits and _ . + -, "
                "the first a letter or a digit"
            )
    return Path(root or results_root()) / chapter / f"{name}.json"


def _encode(path, key, value):
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise RecordError(f"{path}: metric {key!r} is {value!r:.80}; a metric is one number")
    if isinstance(value, numbers.Integral):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _write(path, text, packed):
    for suffix, content in ((".json", text), (".npz", packed)):
        if len(content) > MAX_FILE_BYTES:
            raise RecordError(
                f"{path}: its {suffix} file would hold {len(content)} bytes, more than "
                f"{MAX_FILE_BYTES}; store fewer points or fewer curves"
            )
    try:
        atomic.write({path.with_suffix(".npz"): packed, path: text})
    except OSError as error:
        raise RecordError(
            f"{path}: cannot be written ({error.strerror or error}); free disk space or set "
            "LEARNOPT_RESULTS to a folder that can be written"
        ) from None


def _read(path):
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RecordError(f"{path}: larger than {MAX_FILE_BYTES} bytes; {RESTORE}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{path}: cannot be read ({error}); {RESTORE}") from None


def _check(path, raw):
    """Refuse a record with a field that is missing, foreign, or of the wrong type."""
    found = _flatten(path, raw)
    for field in sorted(FIELDS.keys() ^ (found.keys() - OPTIONAL.keys())):
        problem = "is missing" if field in FIELDS else "is not known"
        raise RecordError(f"{path}: field {field!r} {problem}; {RESTORE}")
    for field, types in (FIELDS | OPTIONAL).items():
        if field in found and type(found[field]) not in types:
            wanted = " or ".join(kind.__name__ for kind in types)
            raise RecordError(f"{path}: field {field!r} must be {wanted}; {RESTORE}")
    if raw["format"] != FORMAT:
        raise RecordError(f"{path}: field 'format' must be {FORMAT}; update learnopt")
    if type(raw["provenance"]["versions"].get("torch")) is not str:
        raise RecordError(f"{path}: field 'provenance.versions' must name torch's; {RESTORE}")
    if (raw["chapter"], raw["name"]) != (path.parent.name, path.stem):
        raise RecordError(f"{path}: fields 'chapter' and 'name' do not fit the file; {RESTORE}")
    for key, value in raw["metrics"].items():
        if not curve_files.NAME.fullmatch(key):
            raise RecordError(f"{path}: metric {key!r} must be letters, digits and _ only")
        huge = type(value) is int and abs(value) >= 2**63
        named = type(value) is str and value in NOT_FINITE
        if huge or not (named or type(value) in NUMBER):
            raise RecordError(f"{path}: field 'metrics.{key}' must be a number; {RESTORE}")


def _flatten(path, raw):
    """The fields of a record under dotted names: 'curves' and 'provenance' are opened."""
    if not isinstance(raw, dict):
        raise RecordError(f"{path}: a record is a JSON object; {RESTORE}")
    flat = {}
    for key, value in raw.items():
        if key in ("curves", "provenance") and isinstance(value, dict):
            flat |= {f"{key}.{part}": inner for part, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _finite(text):
    return float(text) if math.isfinite(float(text)) else _refuse(text)


def _refuse(text):
    raise ValueError(f"{text} is not JSON; a metric that is not finite is a string")
