"`blf-dashboard`: bad input, ports, the page it serves and the process behind the page."
import os, re, socket, subprocess, sys
from pathlib import Path
import psutil, pytest
from browser import appears, chromium, serving, stop, until
from waits import gone, wait_until

command = "import sys; from blf_explore.page.cli import dashboard; sys.exit(dashboard())"

@pytest.mark.parametrize('options, names', [
    (['--loss-perc', '1.5'],                        ['loss_perc=1.5']),
    (['--loss_perc', '-.1'],                        ['loss_perc=-0.1']),
    (['--loss-perc', 'most'],                       ["loss_perc='most'"]),
    (['--loss-perc', '0'],                          ['loss_perc=0', 'sample_perc=0']),
    (['--sample-perc', 'nan'],                      ['sample_perc=nan']),
    (['--method', 'BFL'],                           ["method='BFL'", 'BLF', 'InfoBatch']),
    (['--method', 'none'],                          ["method='none'"]),
    (['--other', 'RHO'], ["other='RHO'", 'RHO-LOSS', 'none']),
    (['--beta', '2'],                               ['beta=2', 'BLF', 'loss_perc, sample_perc']),
    (['--method', 'SB', '--stale', '1.5'],          ['stale=1.5', 'whole']),
    (['--other-loss-perc', '.5'],                   ['other_loss_perc=0.5', 'plain']),
    (['--other', 'HNM', '--other-sample-perc', '0'], ['other_sample_perc=0', 'from 0.01 to 1']),
    (['--label-noise', '2'],                        ['label_noise=2']),
    (['--redundancy', '1'],                         ['redundancy=1', '0.999']),
    (['--name', 'mnist'],                           ["name='mnist'", 'digits', 'cifar10']),
    (['--network', 'vgg'],                          ["network='vgg'", 'convnet', 'mlp']),
    (['--epochs', '1.5'],                           ['epochs=1.5']),
    (['--bs', '0'],                                 ['bs=0']),
    (['--name', 'folder'],                          ['path']),
    (['--name', 'folder', '--path', 'not-here'],    ['path=', 'not-here']),
    (['--port', '0'],                               ['port=0', '65535']),
    (['--port', '70000'],                           ['port=70000', '65535']),
    (['--port', 'http'],                            ["port='http'"]),
    (['--class', '--own', '-1'],                    ['own=-1', '0 to 1000']),
    (['--own', '0'],                                ['own=0', '--class']),
    (['--own', 'all'],                              ["own='all'"]),
    (['--allow-host', 'http://hub/'],               ["allow_host='http://hub/'", 'hub.school.example']),
    (['--epochs'],                                  ['--epochs']),
    (['--speed', '3'],                              ['--speed', '--help']),
    (['--what-if', 'not-here.npz'],                 ['--what-if', "path='not-here.npz' is not a file"]),
    (['--what-if', __file__],                       ['--what-if', 'is not a whole blf_explore record']),
], ids=lambda o: ' '.join(o))
def test_bad_input_gets_one_sentence_at_once(options, names, tmp_path):
    code = "import sys; from blf_explore.page.cli import dashboard; c = dashboard(); print({'torch','fastai','plotly','tornado'} & set(sys.modules)); sys.exit(c)"
    res = subprocess.run([sys.executable, '-c', code, *options], cwd=tmp_path, capture_output=True, text=True)
    assert res.returncode==2, res.stderr
    assert res.stdout=='set()\n', 'nothing is printed, nothing heavy imported'
    line, = res.stderr.splitlines()
    assert line.startswith('blf-dashboard: ') and all(o in line for o in names), line

def test_the_what_if_is_a_page_of_its_own(tmp_path):
    from blf_explore.page.whatif import what_if_figure
    from blf_explore.whatif import load_what_if
    own = load_what_if().save(tmp_path/'run.npz')
    for options in (['--what-if'], ['--what-if', str(own)]):
        res = subprocess.run([sys.executable, '-c', command, '--no-browser', *options], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {'TMPDIR': str(tmp_path)})
        assert res.returncode==0 and not res.stderr, res.stderr
        path = Path(re.fullmatch(r'What-if: (.*)\n', res.stdout)[1])
        assert path.read_text('utf-8')==what_if_figure().page() and tmp_path in path.parents

def test_a_failing_pip_is_one_sentence_with_the_command(tmp_path):
    code = "import sys; from blf_explore.page import cli; cli.missing_requirements = lambda *a: ['blf-no-such-thing>=1']; sys.exit(cli.dashboard())"
    env = os.environ | {'PIP_NO_INDEX': '1', 'PIP_FIND_LINKS': ''}
    res = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert res.returncode==1
    assert len(res.stdout.splitlines())==1 and 'blf-no-such-thing>=1' in res.stdout
    assert f'{sys.executable} -m pip install "blf-no-such-thing>=1"' in res.stderr.splitlines()[-1]

class Served:
    "A running `blf-dashboard`: what it printed first, its address, the process that trains."
    def __init__(self, *options, **kwargs):
        self.proc = subprocess.Popen([sys.executable, '-c', command, '--no-browser', *options], stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True, **kwargs)
        serving.append(self.proc)
        self.line = self.proc.stdout.readline().strip() # an empty one if it ended
        self.url = self.line.split()[1] if self.line else None
    @property
    def trainers(self): return psutil.Process(self.proc.pid).children(recursive=True) if self.proc.poll() is None else []
    def interrupt(self):
        if self.proc in serving: serving.remove(self.proc)
        return stop(self.proc)

@pytest.mark.browser
def test_page_loads_runs_and_ends_with_its_server(tmp_path):
    (tmp_path/'torch.py').write_text('raise Exception("imported from the folder the command was typed in")')
    served = Served('--name', 'digits', '--redundancy', '.5', '--loss-perc', '.35', '--other', 'SB', '--other-beta', '2.25', '--port', '8950', cwd=tmp_path)
    errors,hosts = [],set()
    try:
        with chromium() as page:
            page.on('console', lambda o: errors.append(o.text) if o.type=='error' else None)
            page.on('pageerror', lambda o: errors.append(str(o)))
            page.on('request', lambda o: hosts.add(o.url.split('/')[2]) if o.url.startswith('http') else None)
            page.goto(served.url, wait_until='commit')
            appears(page, 'button:has-text("Run")') # before PyTorch is there
            assert page.title()=='Selective training, live'
            for o in ('0.35','2.25'): appears(page, f'output:text("{o}")') # the options have reached the page
            trainer, = served.trainers
            assert trainer.cmdline()[0]==sys.executable and Path(trainer.cwd())==tmp_path.resolve()
            appears(page, 'button:has-text("Step"):enabled') # PyTorch and the data are there
            page.click('button.run')
            until(page, "document.querySelector('.blf').dataset.batches > 3")
            until(page, "document.querySelector('.chart.samples .plot .js-plotly-plot, .chart.samples .js-plotly-plot')") # plotly's file has come
            assert errors==[]
            assert hosts=={served.url.split('/')[2]}, 'nothing is asked of another server'
            page.close()
            assert served.interrupt()==0
            gone([trainer])
            said = served.proc.stdout.read().splitlines()
            assert said==['Ctrl-C stops it.', 'Loading PyTorch and fastai, while the page opens.', 'Ready to train.'], 'a page that left is no news'
    finally: served.interrupt()

def test_busy_port_then_ctrl_c(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = s.getsockname()[1]
        served = Served('--port', str(port), cwd=tmp_path)
        try:
            m = re.fullmatch(rf'Dashboard: http://localhost:(\d+)/ \(port {port} was busy\)', served.line)
            assert m and port < int(m[1]) <= port+50, served.line
            wait_until(lambda: served.trainers, what='the process that trains')
            trainers = served.trainers
            assert served.interrupt()==0
            gone(trainers)
        finally: served.interrupt()

def test_a_class_and_a_network_get_addresses_with_tokens(tmp_path):
    env = os.environ | {'XDG_CACHE_HOME': str(tmp_path)}
    for options,n in ((['--class', '--own', '3'], 3), (['--host', '0.0.0.0'], 1), (['--allow-host', 'hub.example'], 1)):
        served = Served(*options, '--port', '8951', cwd=tmp_path, env=env)
        try:
            lines = [served.line, *(served.proc.stdout.readline().strip() for _ in range(n-1))]
            urls = [re.search(r'http://(\S+):\d+/(watch|own|)\?token=([\w]{10,})(?: \(port \d+ was busy\))?$', o) for o in lines]
            assert all(urls), lines
            assert [o[2] for o in urls]==['', 'watch', 'own'][:n] and len({o[3] for o in urls})==min(n, 2)
            assert (urls[0][1]=='localhost')==('--host' not in options)
        finally: served.interrupt()

def test_an_address_that_is_not_this_machines(tmp_path):
    res = subprocess.run([sys.executable, '-c', command, '--no-browser', '--host', '192.0.2.200'], cwd=tmp_path, capture_output=True, text=True)
    line, = res.stderr.splitlines()
    assert res.returncode==1 and "host='192.0.2.200' cannot be served on" in line
