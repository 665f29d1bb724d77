"""The house stays as it is drawn: no real errors, functions and modules small enough to read, imports from below only.

What breaks a rule today is listed with the date on which it was let in; what is listed and keeps the rule again fails, too, so that
the lists can only shrink."""
import ast, builtins, dis, importlib, importlib.util, json, shutil, subprocess, sys, types
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
package = root/'blf_explore'

# floors from below, each in the order in which its modules may know of each other; the lessons' and the evidence's is that of their notebooks
ENGINE = ['knobs','record','rows','losses','timing','folders','images','small','data','loading','traces','looking','rehearsal','logbook','fitting',
          'selecting','epochs','filtering']
PAGE = ['plots','frame','figures','whatif','sessions','widgets','serve','cli','report','commands','evidence']

LONG_FUNCTIONS = {} # above 40 lines
LONG_MODULES = {} # of the engine, above 300 lines: those of the exported file without its docstring
IMPORTS = {} # (module, what it imports): since when, and why

def exports(nb):
    "The module that a notebook exports."
    lines = (l for c in json.loads(nb.read_text('utf-8'))['cells'] for l in c['source'])
    return next((l.split()[-1] for l in lines if l.startswith('#| default_exp')), None)

lessons = [m for d in ('lessons','evidence') for nb in sorted((root/'nbs'/d).glob('[0-9]*.ipynb')) if (m := exports(nb))]
order = [*(f'engine.{o}' for o in ENGINE), *lessons, *(f'page.{o}' for o in PAGE)]

def files():
    "{module: its file}, without what nbdev writes and packages that are empty."
    return {'.'.join(o.relative_to(package).with_suffix('').parts): o for o in sorted(package.rglob('*.py'))
            if o.name not in ('__init__.py','_modidx.py','all.py') and not any(p.startswith('.') for p in o.relative_to(package).parts)}

def too_many(found, allowed, what):
    "`found` (name: words) against an allow-list."
    new = [f'{k}: {v}' for k,v in found.items() if k not in allowed]
    assert not new, f'{what}: {"; ".join(new)}'
    kept = [str(k) for k in allowed if k not in found]
    assert not kept, f'keeps the rule again, take it off the list: {", ".join(kept)}'

def test_no_real_errors():
    "Undefined names, unused imports and variables, a complexity above 15: the rules are in pyproject.toml."
    res = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise', 'blf_explore', 'tests', 'benchmarks'],
                         cwd=root, capture_output=True, text=True)
    assert res.returncode==0, res.stdout+res.stderr

def globals_of(code):
    "Names that functions look up in their module or in the builtins."
    for o in dis.get_instructions(code):
        if o.opname=='LOAD_GLOBAL': yield o.argval
    for o in code.co_consts:
        if isinstance(o, types.CodeType): yield from globals_of(o)

def undefined(file, module):
    code = compile(file.read_text('utf-8'), str(file), 'exec')
    return sorted({o for o in globals_of(code) if o not in vars(module) and not hasattr(builtins, o)})

@pytest.mark.parametrize('name', files())
def test_names_that_come_through_star_imports_exist(name):
    "ruff cannot see behind `from fastai.basics import *`."
    assert undefined(files()[name], importlib.import_module(f'blf_explore.{name}'))==[]

@pytest.mark.parametrize('file', [*sorted((root/'tests').glob('*.py')), *sorted((root/'tests'/'beside').glob('*.py'))], ids=lambda o: o.stem)
def test_names_in_tests_exist(file):
    spec = importlib.util.spec_from_file_location(f'tidy_{file.stem}', file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try: spec.loader.exec_module(module)
    finally: sys.path.remove(str(file.parent))
    assert undefined(file, module)==[]

def functions(tree, prefix):
    for o in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(o, (ast.FunctionDef,ast.AsyncFunctionDef,ast.ClassDef)): name = f'{prefix}.{o.name}'
        if isinstance(o, (ast.FunctionDef,ast.AsyncFunctionDef)): yield name,o.end_lineno-o.lineno+1
        yield from functions(o, name)

def test_no_function_above_40_lines():
    found = {k: n for name,f in files().items() for k,n in functions(ast.parse(f.read_text('utf-8')), name) if n>40}
    too_many(found, LONG_FUNCTIONS, 'functions above 40 lines')

def test_no_module_of_the_engine_above_300_lines():
    def lines(f):
        src = f.read_text('utf-8')
        first = next(iter(ast.parse(src).body), None)
        doc = first.end_lineno if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else 0
        return len(src.splitlines())-doc
    found = {k: n for k,f in files().items() if k.startswith('engine.') and (n := lines(f))>300}
    too_many(found, LONG_MODULES, 'engine modules above 300 lines')

def imported(name, file):
    "Modules of the package that `file` imports, wherever in it."
    for o in ast.walk(ast.parse(file.read_text('utf-8'))):
        if isinstance(o, ast.Import): full = [a.name for a in o.names]
        elif isinstance(o, ast.ImportFrom):
            base = ['blf_explore', *name.split('.')][:-o.level] if o.level else []
            base = '.'.join([*base, *([o.module] if o.module else [])])
            full = [base, *(f'{base}.{a.name}' for a in o.names)] # `from blf_explore.engine import record`
        else: continue
        for m in full:
            m = m.removeprefix('blf_explore.') if m.startswith('blf_explore.') else None
            if m and (m in files() or m=='all'): yield m

def test_every_module_has_its_place():
    assert sorted(set(files())-set(order))==[], 'a new module: name it in the order of its floor, in ENGINE or PAGE above'

def test_imports_come_from_below():
    found = {(k, m): f'{k} imports {m}, which comes later' for k,f in files().items() if k in order for m in imported(k, f)
             if m=='all' or m in order and order.index(m)>=order.index(k)}
    too_many(found, IMPORTS, 'imports that do not come from below')

@pytest.mark.skipif(not shutil.which('node'), reason='no node here; test_widgets.py loads it in the browser')
@pytest.mark.parametrize('name', ['live','serve','room'])
def test_the_page_is_an_es_module(name, tmp_path):
    shutil.copy(package/'page'/f'{name}.js', tmp_path/'page.mjs')
    res = subprocess.run(['node', '--check', tmp_path/'page.mjs'], capture_output=True, text=True)
    assert res.returncode==0, res.stderr
