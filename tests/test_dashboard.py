"""The live dashboard in a real browser: Voila's page as `blf-dashboard` serves it, and a cell in JupyterLab."""
import json, os, re, subprocess, sys, time
from contextlib import contextmanager
import psutil, pytest
from browser import serve, chromium

LONG = 120_000 # ms: two busy cores load PyTorch in their own time

def ready(page, url):
    page.errors = []
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    # a page without network cannot fetch fonts and the like: not ours
    page.on('console', lambda m: m.type=='error' and 'Failed to load resource' not in m.text and page.errors.append(m.text))
    page.goto(url)
    page.wait_for_selector('.blf[data-status=ready]', timeout=LONG)
    return page

@pytest.fixture(scope='module')
def app():
    with serve('--epochs', '60') as url: yield url

@pytest.fixture
def page(app):
    with chromium() as p: yield ready(p, app)

def batches(page): return int(page.get_attribute('.blf', 'data-batches'))
def button(page, name): return page.get_by_role('button', name=name, exact=True)
def until(page, js, timeout=LONG): page.wait_for_function(js, timeout=timeout)
def status(page, what): until(page, f"document.querySelector('.blf').dataset.status=='{what}'")
def at_least(page, n): until(page, f"document.querySelector('.blf').dataset.batches>={n}")
def chart(page, name, what='data'): return page.evaluate(f"document.querySelector('.chart.{name} .plot > div').{what} ?? null")
def numbers(o):
    if isinstance(o, dict) and 'bdata' in o: raise AssertionError('typed arrays are not sent')
    return [v for v in o if v is not None]

def drag(page, name, to):
    "Drag a slider with the mouse."
    box = page.get_by_role('slider', name=name).bounding_box()
    now = float(page.get_by_role('slider', name=name).input_value())
    x = lambda v: box['x'] + 8 + (box['width']-16)*v # the thumb is 16 pixels wide
    y = box['y']+box['height']/2
    page.mouse.move(x(now), y)
    page.mouse.down()
    page.mouse.move(x((now+to)/2), y, steps=4)
    page.mouse.move(x(to), y, steps=4)
    page.mouse.up()
    return float(page.get_by_role('slider', name=name).input_value())

def kept_share(page):
    "Percent kept by batches, and where along the epochs."
    line = chart(page, 'samples')[2]
    return line['x'],line['customdata']

def test_run_pause_step_reset(page):
    assert batches(page)==0
    button(page, 'Step').click()
    until(page, "document.querySelector('.blf').dataset.batches==1")
    button(page, 'Step').click()
    until(page, "document.querySelector('.blf').dataset.batches==2")
    time.sleep(.5)
    assert batches(page)==2 # exactly one batch a step

    button(page, 'Step epoch').click()
    until(page, "document.querySelector('.blf').dataset.batches==22") # 1437 training digits, 64 a batch
    status(page, 'paused')

    page.evaluate("for (let i = 0; i < 2; i++) document.querySelector('.blf .run').click()") # twice before the page can answer
    at_least(page, 30)
    first = [sum(numbers(chart(page, o)[i]['y'])) for o,i in (('samples',1), ('time',1), ('agreement',1))]
    at_least(page, 70)
    later = [sum(numbers(chart(page, o)[i]['y'])) for o,i in (('samples',1), ('time',1), ('agreement',1))]
    assert all(a<b for a,b in zip(first, later)) # bars and lines have grown
    assert len(chart(page, 'accuracy')[0]['x'])>=2

    button(page, 'Pause').click()
    status(page, 'paused')
    n = batches(page)
    time.sleep(1)
    assert batches(page)==n

    button(page, 'Reset').click()
    status(page, 'ready')
    assert batches(page)==0
    assert numbers(chart(page, 'samples')[1]['y'])==[] and numbers(chart(page, 'accuracy')[0]['y'])==[]
    assert page.errors==[]

def test_dragging_loss_perc_keeps_fewer_samples(page):
    button(page, 'Run').click()
    at_least(page, 15)
    value = drag(page, 'loss_perc', .3)
    assert abs(value-.3)<=.02
    until(page, "(document.querySelector('.chart.samples .plot > div').layout.shapes || []).length>0")
    mark = chart(page, 'samples', 'layout')['shapes'][-1]['x0']
    at_least(page, round(mark*22)+30)
    button(page, 'Pause').click()
    status(page, 'paused')
    assert 'loss_perc' in chart(page, 'samples', 'layout')['annotations'][-1]['text']
    x,share = kept_share(page)
    w = x[1]-x[0] if len(x)>1 else 0
    before = [s for a,s in zip(x, share) if a+w/2<mark]
    after = [s for a,s in zip(x, share) if a-w/2>mark]
    # losses sorted, the hardest hold at least their share: 30% of the loss takes at most a third of what 90% takes, and a bit
    assert len(before)>=2 and len(after)>=4
    assert min(before[-3:])>max(after[:4])
    assert page.errors==[]

def test_all_charts_hold_finite_numbers(page):
    button(page, 'Run').click()
    at_least(page, 60)
    button(page, 'Pause').click()
    status(page, 'paused')
    until(page, "document.querySelector('.chart.accuracy .plot > div').data?.[0].y.length>0")
    for name in ('samples', 'time', 'agreement', 'accuracy'):
        for trace in [o for o in chart(page, name) if o.get('name')]:
            assert len(trace['y'])==len(trace['x'])>0, (name, trace['name'])
            assert all(isinstance(v, (int,float)) and abs(v)<1e9 for v in [*trace['x'], *trace['y']]), (name, trace['name'])
    kept = page.locator('.side.kept figure')
    assert kept.count()>0 and re.fullmatch(r'<?[\d.]+', kept.first.locator('b').inner_text())
    # hardest first, and the skipped ones are easier than all that were kept
    loss = lambda side: [float(o.lstrip('<')) for o in page.locator(f'.side.{side} figcaption b').all_inner_texts()]
    assert loss('kept')==sorted(loss('kept'), reverse=True)
    if loss('skipped'): assert loss('skipped')==sorted(loss('skipped')) and max(loss('skipped'))<=min(loss('kept'))
    page.get_by_role('button', name='by seconds').click()
    until(page, "document.querySelector('.chart.accuracy .plot > div').layout.xaxis.title.text.startsWith('seconds')")
    assert page.errors==[]

def test_bad_input_is_a_sentence_on_the_page(page):
    button(page, 'Step').click()
    at_least(page, 1)
    for label,bad,says in (('epochs', '-3', 'epochs=-3 is not accepted'), ('batch size', '0', 'bs=0 is not accepted'), ('learning rate', 'fast', "lr='fast' is not accepted")):
        field = page.get_by_label(label, exact=True)
        field.fill(bad)
        field.press('Enter')
        page.wait_for_selector(f'.blf .error:has-text("{says}")', timeout=10_000)
        assert batches(page)==1 # nothing is lost
        button(page, 'OK').click()
    assert page.errors==[]

def test_an_error_while_training_can_be_dismissed_and_mended(page):
    page.get_by_label('epochs', exact=True).fill('500')
    page.get_by_label('epochs', exact=True).press('Enter')
    until(page, "document.querySelector('.n-epoch').textContent.endsWith('/500')")
    status(page, 'ready')
    button(page, 'Run').click()
    at_least(page, 5)
    seed = page.get_by_label('seed', exact=True)
    seed.fill('-1')
    seed.press('Enter')
    page.wait_for_selector('.blf .error:has-text("seed=-1 is not accepted")', timeout=10_000)
    assert seed.input_value()=='42' # what was there before is back
    button(page, 'OK').click()
    n = batches(page)
    at_least(page, n+40) # many updates later
    assert not page.locator('.blf .error').is_visible()
    button(page, 'Reset').click() # while it runs
    status(page, 'ready')
    assert batches(page)==0 and page.errors==[]

def test_a_folder_of_images(page, tmp_path):
    from PIL import Image
    for c,v in (('dark',40), ('light',200)):
        (tmp_path/c).mkdir()
        for i in range(40): Image.new('L', (8,8), v+i).save(tmp_path/c/f'{i}.png')
    page.get_by_label('data', exact=True).select_option('folder')
    field = page.get_by_label('folder', exact=True)
    field.fill('no/such/folder')
    field.press('Enter')
    page.wait_for_selector('.blf .error:has-text("is not a folder")', timeout=10_000)
    button(page, 'OK').click()
    page.get_by_label('data', exact=True).select_option('folder')
    field.fill(str(tmp_path))
    field.press('Enter')
    until(page, "document.querySelector('.n-batch').textContent.endsWith('/1')") # 64 of 80 images train: one batch
    status(page, 'ready')
    button(page, 'Step').click()
    at_least(page, 1)
    assert {o.split('→')[0] for o in page.locator('.side.kept figcaption:nth-of-type(2)').all_inner_texts()}<={'dark','light'}
    assert page.errors==[]

def test_a_path_belongs_to_its_data_set(tmp_path):
    from blf_explore.widgets import LiveDashboard, check_settings
    assert check_settings(path=tmp_path)['name']=='folder' # digits have no folder
    dash = LiveDashboard(name='fashion_mnist', path=tmp_path)
    try:
        dash.set(name='digits')
        assert (dash.settings['name'],dash.settings['path'])==('digits',None)
        assert dash.wait(timeout=60)=='ready' and len(dash.session.lane.learn.dls.vocab)==10
    finally: dash.close()

def test_no_network_is_a_sentence_and_the_way_back_is_open(tmp_path):
    dead = 'http://127.0.0.1:9' # nothing listens there
    with serve(env=dict(http_proxy=dead, https_proxy=dead, FASTAI_HOME=str(tmp_path))) as url, chromium() as page:
        ready(page, url)
        page.get_by_label('data', exact=True).select_option('cifar10')
        page.wait_for_selector('.blf .error:has-text("has to be downloaded")', timeout=LONG)
        status(page, 'error')
        button(page, 'OK').click()
        page.get_by_label('data', exact=True).select_option('digits')
        status(page, 'ready')
        button(page, 'Step').click()
        at_least(page, 1)
        assert page.errors==[]

def test_settings_apply_on_reset(page):
    button(page, 'Step').click()
    at_least(page, 1)
    page.get_by_label('network', exact=True).select_option('mlp')
    page.get_by_role('button', name='Reset to apply').click()
    status(page, 'ready')
    assert page.get_by_label('network', exact=True).input_value()=='mlp' and batches(page)==0
    button(page, 'Step').click()
    at_least(page, 1)
    assert page.errors==[]

def kernels():
    "Kernel processes below this test's own."
    res = []
    for p in psutil.Process().children(recursive=True):
        try: res += [p] if any('ipykernel' in o for o in p.cmdline()) else []
        except psutil.Error: pass
    return res

def test_closing_the_page_ends_the_training(app):
    old = {p.pid for p in kernels()}
    with chromium() as page:
        ready(page, app)
        mine = [p for p in kernels() if p.pid not in old]
        assert len(mine)==1
        button(page, 'Run').click()
        at_least(page, 10)
        page.close(run_before_unload=False)
        gone,alive = psutil.wait_procs(mine, timeout=20)
        assert not alive

def test_an_address_with_settings(app):
    with chromium() as page:
        ready(page, app+('&' if '?' in app else '?')+'network=mlp&loss_perc=0.5&epochs=7&hide=images')
        until(page, "document.querySelector('input[name=loss_perc]').value=='0.5'")
        status(page, 'ready')
        assert page.get_by_label('network', exact=True).input_value()=='mlp' and page.get_by_label('epochs', exact=True).input_value()=='7'
        assert page.locator('.strip').count()==0
        assert page.errors==[]

@contextmanager
def jupyterlab(folder):
    "JupyterLab on `folder`; gives its address."
    cmd = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ServerApp.token=', '--ServerApp.password=', '--port=0',
           '--ServerApp.port_retries=0', f'--ServerApp.root_dir={folder}', '--LabApp.news_url=', '--LabApp.extension_manager=readonly']
    env = os.environ | {f'JUPYTER_{o}_DIR': str(folder/o.lower()) for o in ('CONFIG','RUNTIME')} | {'JUPYTERLAB_SETTINGS_DIR': str(folder/'settings'), 'JUPYTERLAB_WORKSPACES_DIR': str(folder/'workspaces')}
    log = (folder/'log').open('w+')
    proc = subprocess.Popen(cmd, stdout=log, stderr=log, env=env)
    try:
        for _ in range(600):
            if m := re.search(r'http://(localhost|127\.0\.0\.1):\d+', (folder/'log').read_text()): break
            time.sleep(.1)
        else: raise RuntimeError((folder/'log').read_text())
        yield m[0]
    finally:
        for p in [*psutil.Process(proc.pid).children(recursive=True), proc]: p.terminate()
        proc.wait(20)

def test_in_jupyterlab(tmp_path):
    cell = dict(cell_type='code', execution_count=None, id='a', metadata={}, outputs=[],
                source='from blf_explore.widgets import LiveDashboard\nLiveDashboard(epochs=50)')
    (tmp_path/'class.ipynb').write_text(json.dumps(dict(cells=[cell], nbformat=4, nbformat_minor=5,
        metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')))))
    with jupyterlab(tmp_path) as url, chromium(1600, 1000) as page:
        page.goto(f'{url}/lab/tree/class.ipynb?reset')
        page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=LONG)
        page.wait_for_timeout(2000)
        page.locator('.jp-Notebook .jp-CodeCell .cm-content').first.click()
        page.keyboard.press('Shift+Enter')
        page.wait_for_selector('.blf[data-status=ready]', timeout=LONG)
        button(page, 'Run').click()
        at_least(page, 25)
        button(page, 'Pause').click()
        status(page, 'paused')
        assert sum(numbers(chart(page, 'samples')[1]['y']))>0 and len(numbers(chart(page, 'agreement')[1]['y']))>1
        drag(page, 'sample_perc', .6)
        n = batches(page)
        button(page, 'Step').click()
        at_least(page, n+1)
        kept,seen = map(int, re.match(r'(\d+) of (\d+)', page.locator('.chart.samples .value').inner_text()).groups())
        assert kept>=.58*seen
        page.screenshot(path=str(tmp_path/'lab.png'))
