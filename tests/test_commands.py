"`blf-compare`: bad input, what it leaves, Ctrl-C and going on."
import inspect, itertools, json, os, re, subprocess, sys
import pytest
import blf_explore.compare as compare_module
from blf_explore.all import Comparison, compare, compare_command, compare_options, compare_parser, readable
from blf_explore.engine.knobs import methods
from browser import stop
from waits import wait_until

command = "import sys; from blf_explore.page.commands import compare_command; sys.exit(compare_command())" # as the installed script has it
small = ['HNM:sample_perc=.25', '--data', 'digits', '--model', 'mlp', '--budget', '.08', '--seeds', '2', '--shares', '.5', '--refine', '0']

bad = [(['BFL'], ["method='BFL'", 'BLF', 'InfoBatch', 'all']), (['HNM:sample_perc=2'], ['sample_perc=2']), (['HNM:.5'], ["'HNM:.5'", 'METHOD:setting=value']),
       (['SB:stale=1.5'], ['stale=1.5']), (['--seeds', '0'], ['seeds=0']), (['--seeds', '1.5'], ['seeds=1.5']), (['--epochs', 'many'], ["epochs='many'"]),
       (['--epochs', '2', '--budget', '3'], ['epochs=2', 'budget=3']), (['--budget', '-1'], ['budget=-1']), (['--clock', 'sun'], ["clock='sun'", 'wall']),
       (['--model', 'vgg'], ["model='vgg'", 'convnet']), (['--shares', '.5', '2'], ['shares=2']), (['--shares', '0'], ['shares=0']), (['--workers', '0'], ['workers=0']),
       (['--label-noise', '2'], ['label_noise=2']), (['--bs', '1'], ['bs=1']), (['--lr', 'nan'], ['lr=nan']), (['--refine', '-1'], ['refine=-1']),
       (['--path', 'not-here'], ['path=', 'not-here']), (['--speed', '3'], ['--speed', '--help']), (['--epochs'], ['--epochs'])]

@pytest.mark.parametrize('options, names', bad, ids=lambda o: ' '.join(o))
def test_bad_input_is_one_sentence(options, names, capsys):
    assert compare_command(options)==2
    said = capsys.readouterr()
    line, = said.err.splitlines()
    assert said.out=='' and line.startswith('blf-compare: ') and all(o in line for o in names), line

def test_bad_input_and_help_need_no_torch(tmp_path):
    code = "import sys; from blf_explore.page.commands import *\ntry: c = compare_command()\nexcept SystemExit as e: c = e.code\nprint({'torch','fastai','sklearn'} & set(sys.modules)); sys.exit(c)"
    for options,rc in ((['BFL'], 2), (['--help'], 0)):
        res = subprocess.run([sys.executable, '-c', code, *options], cwd=tmp_path, capture_output=True, text=True)
        assert (res.returncode, res.stdout.splitlines()[-1])==(rc, 'set()')
    assert all(m in res.stdout for m in methods if m!='plain') and not list(tmp_path.iterdir())

@pytest.mark.parametrize('options, names', [(['--data', 'mnist'], "'mnist'"), (['HNM:speed=3'], 'speed=3'), (['BLF:loss_perc=0'], 'loss_perc=0')])
def test_what_only_the_training_knows_is_one_sentence_too(options, names, capsys, tmp_path):
    assert compare_command([*options, '--model', 'mlp', '--folder', str(tmp_path/'new')])==2
    line, = capsys.readouterr().err.splitlines()
    assert names in line and not (tmp_path/'new').exists()

def test_options_become_arguments(tmp_path):
    args,folder,workers = compare_options(['HNM:sample_perc=.25,queue=true', '--label-noise', '.1', 'all', '--redundancy', '.5', '--path', str(tmp_path), '--workers', '2'])
    assert args['methods']=={'HNM:sample_perc=.25,queue=true': ('HNM', dict(sample_perc=.25, queue=True)), **{k: (k, {}) for k in methods if k!='plain'}}
    assert args['data']==dict(name='digits', path=str(tmp_path), label_noise=.1, redundancy=.5) and workers==2
    assert re.fullmatch('blf-compare-digits-[0-9a-f]{6}', folder)
    again = [compare_options(o)[1] for o in ([], [], ['--seeds', '4'])]
    assert again[0]==again[1]!=again[2], 'the same command finds its folder, another one does not'

def test_what_comes_out_and_that_it_goes_on(tmp_path, capsys, monkeypatch):
    argv,n = [*small, '--folder', str(tmp_path/'out')],itertools.count()
    run_one = compare_module.run_one
    def interrupted(job):
        if next(n)==3: raise KeyboardInterrupt
        return run_one(job)
    monkeypatch.setattr(compare_module, 'run_one', interrupted)
    assert compare_command(argv)==130
    said = capsys.readouterr().err
    assert 'goes on where it stopped: blf-compare HNM:sample_perc=.25' in said and 'What is done so far' in said
    assert 'unfinished' in re.search('<body class="([^"]*)"', (tmp_path/'out'/'report.html').read_text('utf-8'))[1]
    assert compare_command(argv)==0
    said = capsys.readouterr()
    assert next(n)==4+5, 'eight runs, three of them were done'
    assert sum('(read)' in o for o in said.err.splitlines())==3
    c = Comparison.load(tmp_path/'out'/'comparison.json')
    assert len(c.rows)==8 and c.info['command'].split()[:2]==['blf-compare', small[0]]
    assert readable(c.table()) in said.out and str(tmp_path/'out'/'report.html') in said.out
    assert 'unfinished' not in re.search('<body class="([^"]*)"', (tmp_path/'out'/'report.html').read_text('utf-8'))[1]

def test_another_comparison_does_not_overwrite_a_folder(tmp_path, capsys):
    folder = ['--folder', str(tmp_path/'out')]
    assert compare_command([*small, *folder])==0
    before = (tmp_path/'out'/'comparison.json').read_text()
    assert compare_command([*small, '--lr', '.1', *folder])==2
    assert 'other lr' in capsys.readouterr().err.splitlines()[-1] and (tmp_path/'out'/'comparison.json').read_text()==before

@pytest.mark.slow
def test_workers_and_ctrl_c(tmp_path):
    out = tmp_path/'out'
    proc = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', command, *small, '--workers', '2', '--folder', str(out)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: proc.poll() is not None or list(out.glob('runs/*.npz')), what='the first run')
    rc = stop(proc)
    assert rc in (130, 0) and 'Traceback' not in proc.stderr.read() # 0: the machine was quick, all was done
    assert json.loads((out/'comparison.json').read_text())['info']['workers']==2 or rc==130
    assert compare_command([*small, '--folder', str(out)])==0 # goes on, here in one process
    assert len(Comparison.load(out/'comparison.json').rows)==8 and sorted(os.listdir(out))==['comparison.json','report.html','runs']

def test_the_command_and_the_function_begin_alike():
    theirs = {k: p.default for k,p in inspect.signature(compare).parameters.items()}
    ours = vars(compare_parser().parse_args([]))
    both = sorted(ours.keys()&theirs.keys()-{'methods','folder'})
    assert both==['bs','budget','clock','data','epochs','lr','model','refine','seeds','shares']
    for k in both: assert (list(theirs[k]) if k=='shares' else theirs[k])==ours[k], k
