"""What a user asks for in place of a range of bits: candidates and pins, for all layers or for those of a name."""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from lib.simulator.cost import MAX_BIT, UNTOUCHED
from lib.simulator.layer_bits import LayerBits

Asked = str | Sequence[str | int] | Mapping[str, str | int | Sequence[int]]
WILD = '*?['


def texts_of(asked: Asked) -> list[str]:
    """Return what was asked for as texts, `2,4,8` or `NAME=4,8`: from such texts, numbers, or {name: numbers}."""
    if isinstance(asked, str):
        return [asked]
    if isinstance(asked, Mapping):
        return [f'{name}={_text(bits)}' for name, bits in asked.items()]
    asked = list(asked or ())
    return [_text(asked)] if asked and all(isinstance(bits, int) for bits in asked) else asked


def _text(bits) -> str:
    return str(bits) if isinstance(bits, (str, int)) else ','.join(map(str, bits))


def candidates_of(text: str, pairs: bool) -> tuple[str | None, LayerBits]:
    """Return (pattern or None for all layers, bits) of `[PATTERN=]4,8`, of pairs also of `4,8/8`: weights/activations.

    Raises:
        ValueError: the text is something else, or the flow has no activation bits.
    """
    pattern, equals, bits = text.rpartition('=')
    weights, slash, inputs = bits.partition('/')
    try:
        if slash and not pairs or equals and not pattern:
            raise ValueError('no activation bits are searched here' if slash else 'no name before the =')
        weights = _numbers(weights)
        return pattern or None, LayerBits(weights, _numbers(inputs) if slash else weights if pairs else (UNTOUCHED,))
    except ValueError as error:
        raise ValueError(f'candidates {text!r:.80}: {error}; expected bits in 1..{MAX_BIT} such as 2,4,8 or '
                         f"'*.qkv=4,8'" + ', for pairs also weights/activations such as 4,8/8' * pairs) from None


def pin_of(text: str, pairs: bool) -> tuple[str, LayerBits]:
    """Return (pattern, bits) of `PATTERN=W`, of pairs `PATTERN=W,A`; A is -1 where the input is left alone.

    Raises:
        ValueError: the text is something else.
    """
    pattern, _, bits = text.rpartition('=')
    try:
        numbers = _numbers(bits)
        if not pattern or len(numbers) != 1 + pairs:
            raise ValueError(f'{len(numbers)} numbers' if pattern else 'no name')
        return pattern, LayerBits.of(numbers if pairs else numbers[0])
    except ValueError as error:
        form = f'NAME=W,A with bits in 1..{MAX_BIT}, A of {UNTOUCHED} leaves the input alone' if pairs else \
            f'NAME=W with weight bits in 1..{MAX_BIT}'
        raise ValueError(f'pin {text!r:.80}: {error}; expected {form}') from None


def _numbers(text) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(','))
    except ValueError:
        raise ValueError(f'{text!r:.40} are no whole numbers separated by commas') from None


def usual_bits(candidates: Sequence[str], pairs: bool) -> LayerBits | None:
    """Return the bits of layers that are not named: the last candidates for all layers; None: there are none."""
    given = [bits for pattern, bits in (candidates_of(text, pairs) for text in candidates) if pattern is None]
    return given[-1] if given else None


def own_bits(names: Sequence[str], ends: Mapping[int, LayerBits], *, candidates: Sequence[str] = (),
             pins: Sequence[str] = (), pairs: bool) -> dict[int, LayerBits]:
    """Return {layer index: bits} of the layers that are named, and of the `ends` of the network.

    Of several texts that name a layer the last one holds, and a pin before candidates. A pin holds at the ends, too;
    candidates only with the full name of the layer.

    Args:
        names: of the layers.
        ends: bits of the first and the last layer where nothing else is asked for.
        candidates, pins: texts as `candidates_of` and `pin_of` take them.

    Raises:
        ValueError: a name or pattern that no layer has; the message has similar names.
    """
    own = dict(ends)
    for pattern, bits in (candidates_of(text, pairs) for text in candidates):
        if pattern is None:
            continue
        named = matching(f'candidates {pattern}={bits}', pattern, names)
        if any(mark in pattern for mark in WILD) and not (named := [layer for layer in named if layer not in ends]):
            raise ValueError(f'candidates {pattern}={bits}: the first and the last layer have bits of their own, and '
                             'nothing else is named so: give the full name of one, or pin it')
        own |= dict.fromkeys(named, bits)
    for pattern, bits in (pin_of(text, pairs) for text in pins):
        own |= dict.fromkeys(matching(f'pin {pattern}={",".join(map(str, _entry(bits, pairs)))}', pattern, names), bits)
    return own


def _entry(bits, pairs):
    (entry,) = bits.entries()
    return entry if pairs else entry[:1]


def matching(what: str, pattern: str, names: Collection[str]) -> list[int]:
    """Return the indices of the layers that a name or a pattern (`*`, `?`, `[...]`) names.

    Raises:
        ValueError: it names none; `what` begins the message.
    """
    found = [index for index, name in enumerate(names) if name == pattern] or \
        [index for index, name in enumerate(names) if fnmatchcase(name, pattern)]
    if found:
        return found
    near = _similar(pattern.translate(dict.fromkeys(map(ord, WILD + ']'))).strip('.'), names)[:3]
    raise ValueError(f'{what}: no layer of the strategy has this name; '
                     + (f'similar ones are {", ".join(near)}' if near else f'it has {", ".join(list(names)[:6])}'
                        + ' ...' * (len(names) > 6)))


def _similar(text, names) -> list[str]:
    """Return the names that are, or have a part that is, like a text."""
    parts = {name: (name, *name.split('.')) for name in names}
    near = get_close_matches(text, {part for each in parts.values() for part in each}, n=3)
    return sorted((name for name in names if set(parts[name]) & set(near)), key=lambda name: name not in near)
