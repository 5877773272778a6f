"""What was tried to break the book's tools, and how long its chapters take, as a page of the book.

    python -m booktools.tested_page     write book/tested.md from robustness.json and times.json

`make robustness` and `make times` do it too. Every number of the page is from those two files in
data/results.
"""

import json

from booktools import chapters
from learnopt import atomic, provenance

HEAD = """\
<!-- Written by `make robustness` and `make times` from data/results. Do not edit. -->

# What was tried

[Batch runs](batch.md) and [How to run](how_to_run.md) promise that nothing is lost, half written or
half read. `make robustness` tries to break that: it kills, damages files and fills disks, and ends
with an error at the first promise that does not hold. These are the counts of its last full run;
every `make test` does the same with small counts.

{origin}
"""
KILLS = """\
## Kills, full disks, read-only folders

| promise | tried | outcome |
|---|---|---|
| A batch that was killed, given again, loses and repeats no finished run, and ends with the \
records of one that was not killed. | {kills} batches killed (SIGKILL) at random moments, \
every other one with all its processes at once; {kept} finished runs and {cut} under way at \
these moments | {compared} records equal in all but \
their provenance |
| A reader of a record that is being written sees all of it or nothing. | \
{read:,} readings meanwhile | each whole |
| A long run goes on from its checkpoint bit for bit. | {long} kills of a meta-training, {after} \
of them after its first checkpoint | {runs} runs with the same digest, one of them not killed |
| A full disk gives a clear error and changes no file. | {full} writings under a limit of 0, 1 or \
100 bytes; {small} on a full tmpfs | {full_said}; {small_said} |
| So does a folder that cannot be written. | {read_only} writings | {read_only_said} |

*Stopped* is a command that ends with exit code 2 and one message.
"""
FILES = """\
## Damaged files, tricks in names

Bytes are cut off, cut out, replaced or put in; fields are dropped, renamed, doubled or given values
of other types, NaN, infinity, huge numbers, wrong shapes, or objects that execute code when they
are unpickled. Checksums are made to fit, so that what lies behind them is tried too. A loader must
take a file whole, since not every change is damage, or refuse it with its own error, which names
the file, the field where there is one, and what to do. It must not open a file for writing, start a
process, or execute what it read: an audit hook of Python watches that.

| input | tried | loaded whole | refused |
|---|---:|---:|---|
"""
TESTS = """\
## Which test shows what

"""
PROMISES = {
    "Killed batches go on, with what was finished kept":
        "test_batch.py::test_a_killed_batch_goes_on_and_nothing_is_lost_or_repeated",
    "The same after kills at random moments":
        "test_robustness.py::test_a_batch_that_is_killed_loses_and_repeats_nothing",
    "Long runs go on bit for bit":
        "test_robustness.py::test_a_long_run_that_is_killed_goes_on_bit_for_bit",
    "Damaged files are refused or loaded whole": "test_robustness.py::"
        "test_a_damaged_file_is_loaded_whole_or_refused_with_file_field_and_remedy",
    "No file executes code":
        "test_robustness.py::test_a_file_that_would_execute_code_is_not_executed",
    "No name leads out of its folder":
        "test_robustness.py::test_no_name_leads_out_of_its_folder",
    "Full disks and read-only folders lose nothing":
        "test_robustness.py::test_a_full_disk_and_a_read_only_folder_lose_nothing",
    "The dry run says what would run and why, and writes nothing":
        "test_batch.py::test_a_dry_run_lists_the_runs_with_reasons_and_writes_nothing",
    "A run waits for the one that it needs":
        "test_batch_apart.py::test_a_run_starts_after_the_one_that_it_needs_and_with_its_file",
    "Edits age exactly what used the code, and better sentences nothing":
        "test_content.py::test_an_edit_to_the_library_ages_exactly_what_used_it",
    "`make ledger` says which records are stale":
        "test_content.py::test_the_ledger_says_which_records_are_stale_and_why",
    "Two workers that share only a folder do every run once":
        "test_batch_apart.py::test_two_workers_that_share_only_a_folder_do_every_run_once",
    "The Slurm profile asks for GPUs where a run uses one (dry run)":
        "test_batch_apart.py::test_the_slurm_profile_asks_for_gpus_where_a_run_uses_one",
    "The same seed gives the same record, twice and under one and two jobs": "test_batch_apart.py::"
        "test_the_same_seed_gives_the_same_record_twice_and_under_one_and_two_jobs",
    "Other precisions and devices lead only so far away":
        "test_devices.py::test_another_place_gives_the_same_numbers_within_its_precision",
    "Colab's installation keeps its PyTorch":
        "test_colab.py::test_a_fresh_machine_gets_the_library_and_its_records_and_keeps_its_torch",
}  # fmt: skip
TIMES = """\
## How long the chapters take

Seconds of processor time on one thread, with the start of the kernel and the imports. Below, what
each was measured on.

| chapter | smoke | quick |
|---|---:|---:|
"""


def render(tried: dict, times: dict, names: list) -> str:
    """The text of book/tested.md. names: of the chapters."""
    counts = tried["counts"]
    parts = [HEAD.format(origin=f"This run: {provenance.line(tried['provenance'])}.")]
    parts += [_kills(counts), FILES + _files(counts)]
    parts.append(TESTS + "".join(f"{what}\n: `{test}`\n\n" for what, test in PROMISES.items()))
    return "\n".join([*parts, TIMES + _times(times, names)])


def write(root=None) -> None:
    """Write book/tested.md of a checkout."""
    root = root or provenance.checkout()
    text = render(*read(root))
    atomic.write({root / "book" / "tested.md": text.encode()})


def read(root):
    """What the page is made of."""
    results = root / "data" / "results"
    files = [json.loads((results / f"{name}.json").read_text()) for name in ("robustness", "times")]
    return *files, [path.stem for path in chapters.find(root / "notebooks")]


def _kills(counts):
    batches, long = counts["batches"], counts["long runs"]
    faults = {"full": "full disk", "small": "full tmpfs", "read_only": "read-only folder"}
    numbers = {name: sum(counts[what].values()) for name, what in faults.items()}
    said = {f"{name}_said": _outcomes(counts[what]) for name, what in faults.items()}
    return KILLS.format(
        kills=batches["kills"], compared=batches["records compared"],
        kept=batches["finished runs kept"], cut=batches["runs cut short"],
        read=batches["records read meanwhile"], long=long["kills"],
        after=long["kills after a checkpoint"], runs=long["runs compared"], **numbers, **said,
    )  # fmt: skip


def _files(counts):
    rows = []
    for what, found in counts.items():
        if what.startswith("mutated ") or what == "names":
            loaded = sum(found.get(name, 0) for name in ("loaded", "allowed"))
            rest = {k: n for k, n in found.items() if k not in ("loaded", "allowed")}
            name = what.removeprefix("mutated ")
            rows.append(f"| {name} | {sum(found.values())} | {loaded} | {_outcomes(rest)} |\n")
    return "".join(rows)


def _outcomes(found):
    return ", ".join(f"{number} {name}" for name, number in sorted(found.items()))


def _times(times, names):
    lines = []
    for name in names:
        found = [times.get(preset, {}).get(name) for preset in ("smoke", "quick")]
        cells = [
            f"{entry['processor_seconds']:.0f}" if entry else "not measured" for entry in found
        ]
        lines.append(f"| [{name}](../notebooks/{name}.ipynb) | {' | '.join(cells)} |")
    for preset, rows in times.items():
        missing = set(names) - rows.keys()
        total = sum(rows[name]["processor_seconds"] for name in rows.keys() & set(names))
        what = "the whole book" if not missing else f"all but {len(missing)} chapters"
        lines += ["", f"{preset.capitalize()}, {what}: {total / 60:.0f} minutes. {_machines(rows)}"]
    return "\n".join(lines) + "\n"


def _machines(rows):
    """Every machine and commit that a row was measured on."""
    found = {
        f"{row['device_name']}, torch {row['versions']['torch']}, commit "
        f"{(row['commit'] or 'unknown')[:7]}, {row['date'][:10]}"
        for row in rows.values()
    }
    return f"Measured on {'; '.join(sorted(found))}."


if __name__ == "__main__":
    write()
