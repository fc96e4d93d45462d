"""How the bit lists of the DoReFa/PACT networks are read: which layers and which activations an entry stands for."""

from typing import NamedTuple


class BitEntry(NamedTuple):
    """Entry i of `layer_wbit` and of `layer_abit`.

    `layers` are the names of the layers whose weights get `layer_wbit[i]`; `activations` the names of the Identities
    whose tensors get `layer_abit[i]`. `implied` is the pair (weight bits, activation bits) of an entry that a shorter
    list leaves out.
    """

    name: str
    layers: tuple[str, ...]
    activations: tuple[str, ...]
    implied: tuple[int, int] | None = None
