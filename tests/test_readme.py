"""README.md and README.zh-CN.md say the same; what pages name and link to is there."""

import ast
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK, CODE, LINK = re.compile(r'^```\n(.*?)^```', re.M | re.S), re.compile('`([^`]*)`'), re.compile(r'\]\(([^)]*)\)')
NUMBER = re.compile(r'(?<![\w`])\d+(?:[.,]\d+)*')


PAGES = sorted(str(path.relative_to(ROOT)) for pattern in ('*.md', 'docs/*.md', 'data/*.md', 'lib/**/*.md')
               for path in ROOT.glob(pattern))


def facts(section):
    """Return what a translation keeps: {kind: how often each is there}."""
    words = BLOCK.sub('', section)
    commands = [line.split(' #')[0].strip() for block in BLOCK.findall(section) for line in block.splitlines()]
    found = {'command': [line for line in commands if line and line[0] != '#'], 'name': CODE.findall(words),
             'link': [link for link in LINK.findall(words) if not link.startswith('README')],
             'number': NUMBER.findall(LINK.sub('', CODE.sub('', words))), 'row': re.findall(r'^\|', words, re.M),
             'point': re.findall(r'^\* ', words, re.M)}
    return {kind: Counter(items) for kind, items in found.items()}


def sections(name):
    return re.split(r'^## ', (ROOT / name).read_text(encoding='utf-8'), flags=re.M)


SECTIONS = sections('README.md')


@pytest.mark.parametrize('index', range(len(SECTIONS)), ids=[text.split('\n')[0] for text in SECTIONS])
def test_both_readmes_say_the_same(index):
    assert facts(sections('README.zh-CN.md')[index]) == facts(SECTIONS[index])


def test_both_readmes_have_the_same_sections():
    assert len(sections('README.zh-CN.md')) == len(SECTIONS)


def test_every_measured_number_is_on_the_page_of_results():
    """Those with a decimal point, outside commands and code; settings of the experiments are there, too."""
    pages = ''.join((ROOT / 'docs' / name).read_text(encoding='utf-8') for name in ('results.md', 'benchmarks.md'))
    words = LINK.sub('', CODE.sub('', BLOCK.sub('', '## '.join(SECTIONS))))
    numbers = re.findall(r'(?<![\w.])\d+\.\d+(?![\w.])', re.sub(r'Python \d\.\d+', '', words))
    held = set(re.findall(r'(?<![\w.])\d+\.\d+(?![\w.]\d)', pages))
    assert len(numbers) > 20 and set(numbers) <= held


@pytest.mark.parametrize('page', PAGES)
def test_every_file_of_the_code_that_a_page_names_is_there(page):
    text = (ROOT / page).read_text(encoding='utf-8')
    named = set(re.findall(r'\b(?:lib|scripts|models|benchmarks|examples|tests|run)/[\w./]*\.(?:py|sh|yaml)\b', text))
    assert sorted(name for name in named if not (ROOT / name).is_file() and 'my_' not in name) == []


ARCHITECTURE = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')


def test_every_name_that_the_pages_on_the_code_give_with_its_file_is_defined_there():
    pages = ARCHITECTURE + (ROOT / 'docs' / 'python.md').read_text(encoding='utf-8')
    named = re.findall(r'`((?:lib|scripts)/[\w/]+\.py): ([\w.]+)`', pages)
    assert len(named) > 30
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding='utf-8'))
        for part in name.split('.'):
            (tree,) = [node for node in tree.body if getattr(node, 'name', None) == part or isinstance(node, ast.Assign)
                       and part in [target.id for target in node.targets if isinstance(target, ast.Name)]]


WALKS = ARCHITECTURE.split('## Three walks\n\n')[1].split('\n\n## ')[0].split('\n\n')


@pytest.mark.parametrize('walk', WALKS, ids=[walk[2:18] for walk in WALKS])
def test_a_walk_through_the_code_enters_each_room_once(walk):
    rooms = [room for room, _ in groupby(re.findall(r'`(lib/\w+|scripts)/', walk))]
    assert len(WALKS) == 3 and len(rooms) > 2 and len(set(rooms)) == len(rooms)


@pytest.mark.parametrize('page', PAGES)
def test_links_between_pages_lead_somewhere(page):
    for link in LINK.findall((ROOT / page).read_text(encoding='utf-8')):
        target, _, anchor = link.partition('#')
        if re.match(r'\w+:', link):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def anchors(path):
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r'^```.*?^```', '', path.read_text(encoding='utf-8'), flags=re.M | re.S)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in re.findall(r'^#+ (.*)', text, re.M)}


def test_epochs_of_the_qat_table_are_those_of_its_script():
    script = (ROOT / 'run' / 'qat' / 'run_results.sh').read_text(encoding='utf-8')
    default = {name: re.search(fr'"\$\{{{name}:=(\d+)\}}"', script)[1] for name in ('EPOCHS', 'MOBILENET_EPOCHS')}
    results = (ROOT / 'docs' / 'results.md').read_text(encoding='utf-8')
    table = results.split('| network | bits | epochs |')[1].split('\n\n')[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table]
    assert len(rows) == 16 and {len(row) for row in rows} == {9}
    assert all(row[2] == default['MOBILENET_EPOCHS' if row[0] == 'MobileNetV2' else 'EPOCHS'] for row in rows)
