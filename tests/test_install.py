"What `pip install .` installs, and what it does not."
import configparser, email, json, os, re, shutil, subprocess, sys, zipfile
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
ini = configparser.ConfigParser(delimiters=['='])
ini.read(root/'settings.ini')
ini = ini['DEFAULT']

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The package's wheel, built from a copy (a build leaves files beside its sources)."
    d = tmp_path_factory.mktemp('wheel')
    shutil.copytree(root/'blf_explore', d/'src'/'blf_explore', ignore=shutil.ignore_patterns('__pycache__', '.*'))
    for o in ('settings.ini','setup.py','pyproject.toml','README.md','LICENSE','NOTICE'): shutil.copy(root/o, d/'src')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', d, d/'src'], check=True)
    res, = d.glob('*.whl')
    return zipfile.ZipFile(res)

@pytest.fixture(scope='module')
def metadata(wheel):
    name, = [o for o in wheel.namelist() if o.endswith('.dist-info/METADATA')]
    return email.message_from_bytes(wheel.read(name))

@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    "Run code with the wheel in the place of the repository, in a folder with nothing in it."
    d,cwd = tmp_path_factory.mktemp('site'),tmp_path_factory.mktemp('empty')
    wheel.extractall(d)
    def run(code, *argv): return subprocess.run([sys.executable, '-c', code, *argv], cwd=cwd, env=os.environ|{'PYTHONPATH': str(d)},
                                                capture_output=True, text=True)
    assert run('import blf_explore; print(blf_explore.__file__)').stdout.strip()==str(d/'blf_explore'/'__init__.py')
    return run

def test_wheel_holds_every_file_of_the_package(wheel):
    want = {str(o.relative_to(root)) for o in (root/'blf_explore').rglob('*') if o.suffix in ('.py','.js','.css','.html','.png','.json','.xz','.npz')
            and not any(p.startswith('.') for p in o.relative_to(root).parts)}
    assert {'blf_explore/page/page.html','blf_explore/page/serve.js','blf_explore/engine/fashion_small.xz'} <= want
    assert want=={o for o in wheel.namelist() if '.dist-info/' not in o}

def test_wheel_says_whose_images_it_holds(wheel):
    name, = [o for o in wheel.namelist() if o.split('/')[-1]=='NOTICE']
    text = wheel.read(name).decode()
    for o in ('fashion_small.xz', 'Zalando', 'MIT License', 'Permission is hereby granted, free of charge', '12,000', '4,000'): assert o in text

def test_metadata_is_that_of_settings_ini(metadata):
    assert metadata['Name']==ini['lib_name'] and metadata['Summary']==ini['description']
    assert metadata['Requires-Python']==f">={ini['min_python']}" and metadata['License']==ini['license']
    assert metadata['Version']==re.search('"(.+)"', (root/'blf_explore/__init__.py').read_text().split('__version__')[1])[1]==ini['version']

def test_the_library_alone_brings_no_server_and_no_tools(metadata):
    reqs = metadata.get_all('Requires-Dist')
    names = {re.match(r'[\w.-]+', o)[0].lower() for o in reqs if 'extra ==' not in o}
    assert names=={'fastai','plotly','anywidget'}
    extra = lambda e: {re.match(r'[\w.-]+', o)[0].lower() for o in reqs if f'extra == "{e}"' in o}
    assert extra('dashboard')=={'tornado'}
    assert extra('dashboard') < extra('dev') and {'nbdev','pytest','playwright','jupyterlab'} < extra('dev')

def test_importing_the_package_is_light(python):
    res = python("import sys, blf_explore; sys.exit(bool({'torch','numpy','plotly'} & set(sys.modules)))")
    assert res.returncode==0, res.stderr

def test_console_scripts_work(python):
    res = python("from importlib.metadata import distribution; import json; "
                 "print(json.dumps({o.name: callable(o.load()) for o in distribution('blf_explore').entry_points}))")
    assert json.loads(res.stdout or '{}')=={'blf-dashboard': True, 'blf-compare': True, 'blf-claims': True}, res.stderr
    res = python('from blf_explore.page.cli import dashboard; dashboard()', '--help')
    assert res.returncode==0 and '--loss-perc' in res.stdout, res.stderr

def test_links_name_the_repository_of_settings_ini():
    repo = f"{ini['user']}/{ini['repo']}"
    for o in (root/'README.md', *sorted((root/'nbs').rglob('*.ipynb'))):
        for m in re.findall(r'(?:colab\.research\.google\.com/github/|github\.com/)(blf[\w-]*/[\w-]+)(?:/blob/\w+/([\w/.]+))?', o.read_text()):
            assert m[0]==repo, f'{o.name}: {m[0]}'
            assert not m[1] or (root/m[1]).exists(), f'{o.name}: {m[1]}'
