"""YAML files: plain values, no key twice or turned into something else, and bounded before anything is built."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from lib.record.files import MAX_DEPTH, MAX_DIGITS, read_text

MAX_YAML = 1 << 20  # bytes of a file
MAX_NODES = 100_000  # of a document once its aliases are written out


class _Loader(yaml.SafeLoader):
    """Take every key of a mapping as the text that stands there: `0`, `0.10`, `on` and `1:30` are names, too."""

    def construct_mapping(self, node, deep=False):
        self.flatten_mapping(node)  # <<: *defaults
        keys = [key.value if isinstance(key, yaml.ScalarNode) else None for key, _ in node.value]
        if wrong := [key.start_mark.line + 1 for key, _ in node.value if not isinstance(key, yaml.ScalarNode)]:
            raise ValueError(f'the key in line {wrong[0]} is no text')
        return dict(zip(keys, (self.construct_object(value, deep=True) for _, value in node.value), strict=True))

    def construct_yaml_int(self, node):
        if len(node.value) > MAX_DIGITS:
            raise ValueError(f'{node.value[:20]}... is too large a number')
        return super().construct_yaml_int(node)


def _construct_map(loader, node):
    return loader.construct_mapping(node)


_Loader.add_constructor('tag:yaml.org,2002:map', _construct_map)
_Loader.add_constructor('tag:yaml.org,2002:int', _Loader.construct_yaml_int)


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text, made of plain values; keys are texts.

    Raises:
        ValueError: no YAML, a key that stands twice, nested too deeply, or too large once its aliases are written
            out; `source` is named.
    """
    loader = None
    try:
        if len(text) > MAX_YAML:
            raise ValueError(f'it has {len(text)} characters, expected at most {MAX_YAML}')
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, 0)
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError(f'{source} is no valid YAML: it is nested too deeply') from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"{source} is no valid YAML: {' '.join(str(error).split())[:300]}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _measure(node: yaml.Node, known: dict[Hashable, int | None], depth: int) -> int:
    """Return how many nodes there are below and with this one, each alias counted where it stands."""
    if depth > MAX_DEPTH:
        raise RecursionError
    if id(node) not in known:
        known[id(node)] = None  # still open: meeting it again means a cycle
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            _refuse_twins(node)
            children = [part for pair in children for part in pair]
        known[id(node)] = 1 + sum(_measure(child, known, depth + 1) for child in children)
    size = known[id(node)]
    if size is None:
        raise ValueError('an alias stands inside of what it is the alias of')
    if size > MAX_NODES:
        raise ValueError(f'it has more than {MAX_NODES} values')
    return size


def _refuse_twins(node):
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != '<<']
    if len(set(keys)) != len(keys):
        raise ValueError(f'the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice')


def read_yaml(path: str | Path, what: str = 'YAML file') -> Any:
    """Return the value of a YAML file, made of plain values; None of an empty one. Keys are texts.

    Raises:
        ValueError: see `parse_yaml`.
    """
    return parse_yaml(read_text(path, what), f'{what} {path}')
