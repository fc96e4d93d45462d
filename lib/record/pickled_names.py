"""Which objects a pickled file names, found without unpickling it, and how its weights are saved again."""

import pickletools
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the pickled number that torch.save began with before 1.6
LEGACY_PICKLES = 5  # this number, a version, a description of the machine, the value, the keys of its storages
STATE_KEYS = ('state_dict', 'model_state_dict', 'model_state', 'model', 'net', 'network', 'params', 'module', 'weights')
RISKY = re.compile(r'(os|posix|nt|io|_io|sys|subprocess|shutil|socket|urllib|http|tempfile|runpy|importlib|ctypes|'
                   r'pty|code|webbrowser|pickle|multiprocessing|asyncio|commands|timeit|pdb|bdb|cProfile)\.'
                   r'|(builtins\.|__builtin__\.)?(eval|exec|compile|open|__import__|input|breakpoint)$')


class PickledNames(NamedTuple):
    """The classes and functions that a pickle names, in its order; its texts; the highest protocol that it claims."""

    objects: list[str]
    texts: list[str]
    protocol: int

    def obstacle(self, path: Path, error: str, *, by_pickle: bool = False) -> str | None:
        """Return what keeps a file from being read without running code, as a predicate, and what to do; None: nothing.

        Args:
            path: the file.
            error: what `torch.load(weights_only=True)` said, to tell which object it refused.
            by_pickle: it was written by pickle.dump.
        """
        if risky := next(filter(RISKY.match, self.objects), None):
            return f'calls {risky} when it is unpickled: it is made to do harm; delete it'
        load = 'pickle.load' if by_pickle else 'torch.load'
        if any(name.startswith(('torch.nn.modules.', 'torch.fx.', 'torch.nn.parallel.')) for name in self.objects):
            return resave('a whole pickled network, code as well as weights', path, 'network', load,
                          'network.state_dict()')
        refused = re.search(r'GLOBAL (\S+)', error)
        found = f"a pickle with {refused[1]} in it, which only its author's code can read" if refused else \
            'written by pickle, not by torch.save' if by_pickle else \
            f'saved with pickle protocol {self.protocol}, which cannot be read safely' if self.protocol > 2 else \
            'a pickle of objects that cannot be read safely' if 'Can only' in error else None
        key = next((key for key in STATE_KEYS if key in self.texts), None)
        return found and resave(found, path, 'saved', load, f'saved[{key!r}]' if key else 'saved')


def resave(found: str, path: Path, name: str, load: str, weights: str) -> str:
    """Return, as a predicate, what a file is, and the two lines of Python that save its weights by themselves."""
    file, target = str(path), f'{path.stem}_weights.pth'
    opened = {'torch.jit.load': f"torch.jit.load({file!r}, map_location='cpu')",
              'torch.load': f"torch.load({file!r}, map_location='cpu', weights_only=False)",
              'pickle.load': f"pickle.load(open({file!r}, 'rb'))"}[load]
    return (f'is {found}. If you trust it, save its weights by themselves, with two lines of Python, and give those:\n'
            f'import {"pickle, " if load == "pickle.load" else ""}torch; {name} = {opened}\n'
            f'torch.save({weights}, {target!r})')


def pickled_names(path: Path) -> PickledNames:
    """Return the names in a file of torch.save or pickle.dump, as far as it can be followed."""
    objects, texts, protocol = [], [], 0
    with open(path, 'rb') as file:
        legacy = file.read(len(LEGACY)) == LEGACY
    with _stream(path) as stream:
        try:
            for _ in range(LEGACY_PICKLES if legacy else 1):
                for opcode, argument, _ in pickletools.genops(stream):
                    if opcode.name == 'PROTO':
                        protocol = max(protocol, argument)
                    elif opcode.name == 'GLOBAL':
                        objects.append(argument.replace(' ', '.'))
                    elif opcode.name == 'STACK_GLOBAL':
                        objects.append('.'.join(texts[-2:]))
                    elif isinstance(argument, str):
                        texts.append(argument)
        except Exception:  # noqa: S110 - what was found before the damage is enough
            pass
    return PickledNames(objects, texts, protocol)


def _stream(path: Path):
    if not zipfile.is_zipfile(path):
        return open(path, 'rb')
    archive = zipfile.ZipFile(path)
    return archive.open(next(name for name in archive.namelist() if name.endswith('/data.pkl')))
