"The lessons run, the modules are what they export, and they carry nothing that nbdev-clean would remove."
import json, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
lessons = [o for d in ('engine','lessons','page') for o in sorted((root/'nbs'/d).glob('[0-9]*.ipynb'))]

def nbdev(cmd, *args, cwd):
    "Run one of the commands that nbdev installed beside this Python."
    return subprocess.run([Path(sys.executable).parent/f'nbdev-{cmd}', *args], cwd=cwd, capture_output=True, text=True)

@pytest.fixture
def copy(tmp_path):
    "The notebooks and modules, to be changed."
    for o in ('nbs','blf_explore'): shutil.copytree(root/o, tmp_path/o, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    shutil.copy(root/'pyproject.toml', tmp_path)
    return tmp_path

@pytest.mark.lesson
@pytest.mark.parametrize('nb', lessons, ids=lambda o: o.stem)
def test_lesson_runs(nb):
    res = nbdev('test', str(nb), cwd=root)
    assert res.returncode==0, res.stdout+res.stderr

def test_modules_are_what_the_notebooks_export(copy):
    res = nbdev('export', cwd=copy)
    assert res.returncode==0, res.stdout+res.stderr
    for o in (root/'blf_explore').rglob('*.py'):
        assert (copy/o.relative_to(root)).read_text()==o.read_text(), f'{o.name} and its notebook differ: run nbdev-export'

def test_notebooks_are_clean(copy):
    res = nbdev('clean', cwd=copy)
    assert res.returncode==0, res.stdout+res.stderr
    for o in lessons:
        a,b = (json.loads((d/o.relative_to(root)).read_text()) for d in (root,copy))
        assert a==b, f'{o.name} carries metadata: run nbdev-clean'

def module(nb):
    "The module that a notebook exports; None: it exports nothing, and is only run and checked for cleanliness."
    lines = [l for c in json.loads(nb.read_text())['cells'] for l in c['source']]
    return next((l.split()[-1] for l in lines if l.startswith('#| default_exp')), None)

def test_all_imports_every_module():
    lines = (root/'blf_explore'/'all.py').read_text().splitlines()
    modules = [m for o in lessons if (m := module(o))]
    assert [f'from blf_explore.{m} import *' for m in modules]==[l for l in lines if l.startswith('from')]
