"""YAML that says what it means: no key twice, no objects, no number or letter out of this world.

values = strict_yaml.load(path, max_bytes=100_000)
"""

import reprlib
from pathlib import Path

import yaml

# what PyYAML raises, beside its own errors, for texts like "!!int ''" or a thousand open brackets
BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
MAX_INT = 10**1000  # longer ones cannot always be printed in a message


class Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (PyYAML takes the last) and the unprintable."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{reprlib.repr(key)} is set twice")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        value = super().construct_yaml_int(node)
        if abs(value) >= MAX_INT:
            raise yaml.YAMLError(
                f"line {node.start_mark.line + 1}: a number of more than 1000 digits"
            )
        return value

    def construct_yaml_str(self, node):
        value = super().construct_yaml_str(node)
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: half a letter, as in UTF-16")
        return value


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
Loader.add_constructor("tag:yaml.org,2002:str", Loader.construct_yaml_str)


def load(path, max_bytes):
    """What the file holds. Raises ValueError with a message that names the file and what to do."""
    path = Path(path)
    try:
        if path.stat().st_size > max_bytes:
            raise ValueError(f"{path}: larger than {max_bytes} bytes; restore it with git")
        text = path.read_text("utf-8")
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); restore it with git"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error}); restore it with git") from None
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, *BROKEN) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path}: is no YAML: {reason}; correct it, or restore it with git"
        ) from None
