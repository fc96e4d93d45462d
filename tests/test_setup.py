"""run/setup.sh: a file is only kept if it is whole and the one that was meant."""

import hashlib
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[1] / 'run' / 'setup.sh'
CONTENT = b'weights of somebody'
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def fetch(tmp_path):
    """`fetch(url, file, digits)`: what the function of that name in setup.sh says, and whether it succeeded."""
    text = SETUP.read_text(encoding='utf-8')
    function = text[text.index('fetch() {'):text.index('\n}\n') + 3]
    (tmp_path / 'there.pth').write_bytes(CONTENT)

    def run(url, *arguments):
        script = f'failed=0\n{function}\nfetch "$@"; exit $failed'
        done = subprocess.run(['bash', '-euc', script, 'fetch', url, *arguments], cwd=tmp_path, capture_output=True,
                              text=True, check=False)
        return done.returncode, done.stdout + done.stderr
    return run


@pytest.mark.parametrize(('digits', 'words'), [('', 'its authors name none'), (DIGEST[:8], 'as expected')])
def test_a_file_comes_with_its_digest_and_follows_no_link(fetch, tmp_path, digits, words):
    (tmp_path / 'pretrained').mkdir()
    (tmp_path / 'pretrained' / 'a.pth.part').symlink_to(tmp_path / 'victim')
    code, said = fetch((tmp_path / 'there.pth').as_uri(), 'pretrained/a.pth', digits)
    assert code == 0 and DIGEST in said and words in said, said
    assert (tmp_path / 'pretrained' / 'a.pth').read_bytes() == CONTENT and not (tmp_path / 'victim').exists()
    assert 'have pretrained/a.pth' in fetch('file:///nowhere', 'pretrained/a.pth', digits)[1]


@pytest.mark.parametrize(('name', 'digits', 'words'), [('there.pth', 'f3be529c', 'expected f3be529c'),
                                                       ('nowhere.pth', '', 'could not be fetched')])
def test_another_file_than_that_of_the_authors_is_not_kept(fetch, tmp_path, name, digits, words):
    code, said = fetch((tmp_path / name).as_uri(), 'pretrained/a.pth', digits)
    assert code == 1 and words in said and 'put it at pretrained/a.pth' in said, said
    assert not list((tmp_path / 'pretrained').iterdir())
