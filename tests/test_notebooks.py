"The lessons run, the modules are what they export, and they carry nothing that nbdev-clean would remove."
import json, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
lessons = [*sorted((root/'nbs').glob('*.ipynb')), # the front door and the teacher's plan
           *(o for d in ('engine','lessons','evidence','page') for o in sorted((root/'nbs'/d).glob('[0-9]*.ipynb')))]

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

ENGINE_ONLY = {*('engine.'+o for o in ('folders','images','loading','looking','rehearsal','logbook','selecting')), 'page.serve'} # what no user calls

def test_all_has_every_module_that_a_user_calls():
    import blf_explore.all
    from blf_explore.engine.knobs import methods
    text = (root/'blf_explore'/'all.py').read_text()
    for m in filter(None, map(module, lessons)):
        if m in ENGINE_ONLY: continue
        assert f'from blf_explore.{m} import' in text or m in {o.module for o in methods.values()}, m
    for o in methods.values(): assert hasattr(blf_explore.all, o.cls)
    was = """Last Selection eval_mode rng_state set_rng_state rng_untouched buffers_untouched grads_untouched check_share check_whole single_values
        not_compiled SelectiveTraining batch_size per_sample_loss TopLoss Record versions colors get_dls get_model BatchLossFilter select hardest
        SelectiveBackprop RankSelectiveBackprop ImportanceSampling TauSwitch grad_norm grad_norm_bound GradientProbe agreement_curve CoreSet
        RHOLoss holdout_losses InfoBatch LiveDashboard plot_accuracy dashboard""".split() # public in 0.1.0
    assert [o for o in was if not hasattr(blf_explore.all, o)]==[]

def test_of_a_name_that_two_modules_have_all_has_the_older_ones():
    import importlib, blf_explore.all
    seen = {}
    for m in filter(None, map(module, lessons)):
        mod = importlib.import_module(f'blf_explore.{m}')
        for nm in mod.__all__: seen.setdefault(nm, {})[m] = getattr(mod, nm)
    two = {nm: [m for m,o in v.items() if getattr(blf_explore.all, nm, None) is o] for nm,v in seen.items() if len({id(o) for o in v.values()})>1}
    assert two==dict(verdict=['compare'], shipped=['claims'], k_center=['coreset'], weighted_draw=['importance'], Knob=['page.frame'], look_at=[]), \
        'a star import in all.py has covered another name: rename the new one, or say here which is meant'
