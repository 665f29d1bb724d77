"""The live dashboard in a real browser: the page that `blf-dashboard` serves, and a cell in JupyterLab."""
import json, math, re, time
from urllib.parse import parse_qsl
import psutil, pytest
from browser import appears, jupyterlab, launch, open_page, says, serve, shown_error, until
from waits import wait_until

quick = dict(name='digits', bs=64) # 22 batches of some milliseconds an epoch; what the page begins with takes a hundred times as long
quick_options = '--name','digits','--bs','64'

def ready(page, url):
    page.errors = []
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    # a page without network cannot fetch fonts and the like: not ours
    page.on('console', lambda m: m.type=='error' and 'Failed to load resource' not in m.text and page.errors.append(m.text))
    page.goto(url, wait_until='commit')
    appears(page, '.blf[data-status=ready]')
    return page

@pytest.fixture(scope='module')
def app():
    with serve(*quick_options, '--epochs', '60') as url: yield url

@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        res = launch(p)
        yield res
        res.close()

@pytest.fixture(scope='module')
def one_page(browser, app):
    with open_page(browser) as p: yield ready(p, app)

@pytest.fixture
def page(one_page):
    "The dashboard on the digits and nothing trained; one page for many tests, for each has to load PyTorch."
    if shown_error(one_page): button(one_page, 'OK').click()
    one_page.locator('.reset').click()
    status(one_page, 'ready')
    for label,value in (('data','digits'), ('network','convnet')):
        if one_page.get_by_label(label, exact=True).input_value()!=value: one_page.get_by_label(label, exact=True).select_option(value)
    field = one_page.get_by_label('epochs', exact=True)
    field.fill('60')
    field.press('Enter')
    until(one_page, "document.querySelector('.n-epoch').textContent.endsWith('/60')")
    for letter,m in ('A','plain'),('A','BLF'),('B','plain'): choose(one_page, letter, m) # another one and back: its sliders begin anew
    button(one_page, 'by epoch').click()
    one_page.errors.clear()
    return one_page

def batches(page): return int(page.get_attribute('.blf', 'data-batches'))
def button(page, name): return page.get_by_role('button', name=name, exact=True)
def status(page, what): until(page, f"document.querySelector('.blf').dataset.status=='{what}'")
def at_least(page, n): until(page, f"document.querySelector('.blf').dataset.batches>={n}")
def chart(page, name, what='data'):
    "What is drawn; of the accuracy without the past runs behind it."
    res = page.evaluate(f"document.querySelector('.chart.{name} .plot > div').{what} ?? null")
    return [o for o in res if o.get('hoverinfo')!='skip'] if res and (name,what)==('accuracy','data') else res
def numbers(o):
    if isinstance(o, dict) and 'bdata' in o: raise AssertionError('typed arrays are not sent')
    return [v for v in o if v is not None]

def drag(page, name, to):
    "Drag a slider with the mouse."
    slider = page.locator(f'input[name="{name}"]')
    box,now = slider.bounding_box(),float(slider.input_value())
    lo,hi = (float(slider.get_attribute(o)) for o in ('min','max'))
    x = lambda v: box['x'] + 8 + (box['width']-16)*(v-lo)/(hi-lo) # the thumb is 16 pixels wide
    y = box['y']+box['height']/2
    page.mouse.move(x(now), y)
    page.mouse.down()
    page.mouse.move(x((now+to)/2), y, steps=4)
    page.mouse.move(x(to), y, steps=4)
    page.mouse.up()
    return float(slider.input_value())

def reached(dash, status=('ready',)):
    "A dashboard's status, once it is one of these or an error."
    return wait_until(lambda: dash.wait((*status, 'error'), timeout=.05) in (*status, 'error') and dash.status, what=f'status {status}')

def kept_share(page):
    "Percent kept by batches, and where along the epochs."
    line = chart(page, 'samples')[2]
    return line['x'],line['customdata']

def choose(page, letter, method):
    page.get_by_label(f'method {letter}', exact=True).select_option(method)
    until(page, f"document.querySelector('.lane.{letter.lower()}').dataset.method=='{method}'") # before anything is trained: at once
    status(page, 'ready')

def sliders(page): return page.eval_on_selector_all('.knob input', 'os => os.map(o => o.name)')

@pytest.mark.browser
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

@pytest.mark.browser
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

@pytest.mark.browser
def test_all_charts_hold_finite_numbers(page):
    button(page, 'Run').click()
    at_least(page, 60)
    button(page, 'Pause').click()
    status(page, 'paused')
    until(page, "document.querySelector('.chart.accuracy .plot > div').data?.filter(o => o.hoverinfo!='skip')[0].y.length>0")
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

@pytest.mark.browser
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
    says(page, "seed='-1' is not accepted")
    assert seed.input_value()=='42' # what was there before is back
    button(page, 'OK').click()
    n = batches(page)
    at_least(page, n+40) # many updates later
    assert not page.locator('.blf .error').is_visible()
    button(page, 'Reset').click() # while it runs
    status(page, 'ready')
    assert batches(page)==0 and page.errors==[]

@pytest.mark.browser
def test_the_folder_that_the_command_named_and_no_other(browser, tmp_path):
    from PIL import Image
    for c,v in (('dark',40), ('light',200)):
        (tmp_path/c).mkdir()
        for i in range(40): Image.new('L', (8,8), v+i).save(tmp_path/c/f'{i}.png')
    with serve('--name', 'folder', '--path', str(tmp_path), '--bs', '64') as url, open_page(browser) as page:
        ready(page, url)
        until(page, "document.querySelector('.n-batch').textContent.endsWith('/1')") # 64 of 80 images train: one batch
        button(page, 'Step').click()
        at_least(page, 1)
        assert {o.split('→')[0] for o in page.locator('.side.kept figcaption:nth-of-type(2)').all_inner_texts()}<={'dark','light'}
        field = page.get_by_label('folder', exact=True)
        for other in (str(tmp_path.parent), 'no/such/folder'): # the same sentence, whether it is there or not
            field.fill(other)
            field.press('Enter')
            says(page, 'path=')
            button(page, 'OK').click()
            assert field.input_value()==str(tmp_path)
        assert page.errors==[]

def test_a_path_belongs_to_its_data_set(tmp_path):
    from blf_explore.page.sessions import check_settings
    from blf_explore.page.widgets import LiveDashboard
    assert check_settings(path=tmp_path)['name']=='folder' # digits have no folder
    dash = LiveDashboard(name='fashion_mnist', path=tmp_path)
    try:
        dash.set(name='digits')
        assert (dash.settings['name'],dash.settings['path'])==('digits',None)
        assert reached(dash)=='ready' and len(dash.session.lane.learn.dls.vocab)==10
    finally: dash.close()

@pytest.mark.browser
def test_no_network_is_a_sentence_and_the_way_back_is_open(browser, tmp_path):
    dead = 'http://127.0.0.1:9' # nothing listens there
    with serve(*quick_options, '--download', env=dict(http_proxy=dead, https_proxy=dead, FASTAI_HOME=str(tmp_path))) as url, open_page(browser) as page:
        ready(page, url)
        page.get_by_label('data', exact=True).select_option('cifar10')
        says(page, 'has to be downloaded')
        status(page, 'error')
        button(page, 'OK').click()
        page.get_by_label('data', exact=True).select_option('digits')
        status(page, 'ready')
        button(page, 'Step').click()
        at_least(page, 1)
        assert page.errors==[]

@pytest.mark.browser
def test_settings_apply_on_reset(page):
    button(page, 'Step').click()
    at_least(page, 1)
    page.get_by_label('network', exact=True).select_option('mlp')
    page.get_by_label('method B', exact=True).select_option('HNM')
    appears(page, '.lane.b.pending .says:has-text("from the next Reset on")')
    assert sliders(page)==['loss_perc','sample_perc'] # what trains still is what the sliders move
    drag(page, 'loss_perc', .3)
    button(page, 'Step').click()
    at_least(page, 2)
    appears(page, '.reset.pending')
    button(page, 'Reset').click()
    status(page, 'ready')
    assert page.get_by_label('network', exact=True).input_value()=='mlp' and batches(page)==0
    assert sliders(page)==['loss_perc','sample_perc','other_sample_perc'] and not page.locator('.pending').count()
    button(page, 'Step').click()
    at_least(page, 1)
    assert page.errors==[]

@pytest.mark.browser
def test_every_method_has_its_sliders_and_they_act_on_the_next_batch(page):
    from blf_explore.page.sessions import dashboard_methods as methods
    for m in methods:
        choose(page, 'A', m)
        assert sliders(page)==[k.name for k in methods[m].knobs]
    choose(page, 'A', 'HNM')
    choose(page, 'B', 'core-set')
    def kept(a, b): until(page, f"document.querySelector('.chart.samples .value').textContent=='HNM {a} · core-set {b} of 64'")
    button(page, 'Step').click()
    kept(32, 32)
    a,b = drag(page, 'sample_perc', .25),drag(page, 'other_sample_perc', .8)
    assert abs(a-.25)<.03 and abs(b-.8)<.03
    button(page, 'Step').click()
    kept(math.ceil(64*a), math.ceil(64*b))
    assert batches(page)==2
    notes = [o['text'] for o in chart(page, 'samples', 'layout')['annotations']]
    assert notes==[f'HNM: sample_perc 0.50→{a:.2f}', f'core-set: sample_perc 0.50→{b:.2f}']
    assert page.errors==[]

@pytest.mark.browser
def test_a_race_to_its_end_and_a_link_to_it(page, app):
    choose(page, 'A', 'SB')
    choose(page, 'B', 'BLF')
    page.get_by_label('epochs', exact=True).fill('3')
    page.get_by_label('epochs', exact=True).press('Enter')
    until(page, "document.querySelector('.n-epoch').textContent.endsWith('/3')")
    status(page, 'ready')
    assert 'selects from epoch 2 on' in page.locator('.lane.a .says').inner_text()
    beta,loss_perc = drag(page, 'beta', 2),drag(page, 'other_loss_perc', .5)
    button(page, 'Run').click()
    status(page, 'done')
    assert batches(page)==66
    until(page, "document.querySelector('.chart.accuracy .plot > div').data?.filter(o => o.hoverinfo!='skip')[0].y.length==3")
    bars = {o['name']: o for o in chart(page, 'samples') if o['type']=='bar'}
    assert bars['SB']['y'][0]==22*64 and all(0<o<22*64 for o in [*bars['SB']['y'][1:], *bars['BLF']['y']])
    assert ['pattern' in bars[o]['marker'] for o in ('SB','BLF')]==[False,True]
    time = [o['name'] for o in chart(page, 'time')]
    assert time==['SB','scoring','selecting','BLF','scoring','selecting','plain']
    assert {o['name'] for o in chart(page, 'agreement')}>={'SB','BLF'}
    ends = {}
    for by,title in (('samples','samples trained on'), ('seconds','seconds of training'), ('epoch','epoch')):
        button(page, f'by {by}').click()
        until(page, f"document.querySelector('.chart.accuracy .plot > div').layout.xaxis.title.text=='{title}'")
        ends[by] = {o['name']: o['x'] for o in chart(page, 'accuracy')[::2]}
    for m in ('SB','BLF'):
        assert ends['samples'][m]==[sum(bars[m]['y'][:i+1]) for i in range(3)] and ends['epoch'][m]==[1,2,3]
        assert all(a<b for a,b in zip(ends['seconds'][m], ends['seconds'][m][1:]))
    page.evaluate("navigator.clipboard.writeText = async o => { window.copied = o }")
    page.locator('.menu summary').click()
    button(page, 'Copy link').click()
    until(page, 'window.copied')
    address,query = page.evaluate('window.copied').split('?')
    asked = dict(parse_qsl(query))
    assert address==app.split('?')[0]
    assert asked==dict(method='SB', other='BLF', epochs='3', beta=f'{beta:g}', other_loss_perc=f'{loss_perc:g}') # what differs from how the page begins
    assert page.errors==[]

@pytest.mark.slow
@pytest.mark.parametrize('pair', [('SB','importance'), ('InfoBatch','core-set'), ('SeTa','BLS'), ('SB-rank','HNM'), ('SB','SB'), ('RHO-LOSS','HNM')], ids='-'.join)
def test_two_lanes_end_where_two_learners_of_their_own_would(pair):
    import importlib, torch
    from fastai.vision.all import Learner, accuracy, set_seed
    from blf_explore.engine.data import get_dls, get_model
    from blf_explore.page.sessions import dashboard_methods as methods
    from blf_explore.page.widgets import LiveDashboard
    from blf_explore.rho import half_losses
    few = dict(sample_perc=.25)
    settings = {'SB': dict(beta=2., stale=1), 'importance': few | dict(tau_th=1.2), 'InfoBatch': dict(prune=.7), 'core-set': few, 'SeTa': dict(window=.5), 'BLS': dict(alpha=.9),
                'SB-rank': few, 'HNM': few, 'RHO-LOSS': few}
    (a,b),mine = pair,[settings[pair[0]], settings[pair[1]] if pair[0]!=pair[1] else {}]
    dash = LiveDashboard(**quick, method=a, other=b, epochs=3, network='mlp', **mine[0], **{f'other_{k}': v for k,v in mine[1].items()})
    try:
        assert reached(dash)=='ready'
        begins = [torch.cat([p.detach().flatten() for p in o.learn.model.parameters()]) for o in dash.session.lanes]
        assert torch.equal(*begins)
        dash.run()
        assert reached(dash, ('done','error'))=='done'
        for o,m in zip(dash.session.lanes, pair):
            assert o.n_batch==len(o.record.batches) and (o.n_batch<66 if m in ('InfoBatch','SeTa','BLS') else o.n_batch==66) and o.done_epochs==3
        for lane,m,kw in zip(dash.session.lanes, pair, mine):
            dls = get_dls(seed=42)
            set_seed(42)
            holdout = dict(holdout=half_losses(dls, 42)) if m=='RHO-LOSS' else {}
            cb = getattr(importlib.import_module(f'blf_explore.{methods[m].module}'), methods[m].cls)(**kw, **holdout)
            learn = Learner(dls, get_model('mlp', dls), metrics=accuracy, cbs=cb)
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, .01)
            assert lane.record.batches.n_kept.tolist()==cb.batches.n_kept.tolist()
            assert min(cb.batches.kept_pct)<100 # it did select
            for p,q in zip(lane.learn.model.state_dict().values(), learn.model.state_dict().values()): assert torch.equal(p, q)
    finally: dash.close()

@pytest.mark.slow
def test_no_holdout_model_has_seen_what_it_is_asked_about():
    "Labels that cannot be foreseen: a network knows those that it was trained on, and no others."
    import torch
    from fastai.vision.all import Learner, set_seed
    from blf_explore.engine.data import get_dls, get_model
    from blf_explore.rho import holdout_losses
    from blf_explore.rho import half_losses
    dls = get_dls(label_noise=1.)
    held = half_losses(dls, 3, epochs=12)
    assert held.shape==(len(dls.train_ds),) and torch.equal(held, half_losses(dls, 3, epochs=12))
    assert held.mean()>math.log(9) # of nine labels each is as likely, so no forecast has a lower expected loss
    set_seed(3)
    learn = Learner(dls, get_model('convnet', dls))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(12, .01)
    assert holdout_losses(learn.model, dls).mean()<math.log(9)-.5 # what it would be of a network that has seen them

@pytest.mark.parametrize('bad, says', [
    (dict(beta=2), "beta=2 is no setting of BLF: it has loss_perc, sample_perc"),
    (dict(other_beta=2), "other_beta=2 is no setting of plain: it has none"),
    (dict(other='none', other_loss_perc=.5), "other_loss_perc=0.5 is no setting of none: it has none"),
    (dict(method='SB', beta=-1), "beta=-1 is not accepted: give a number from 0 to 4"),
    (dict(method='SB', stale=.5), "stale=0.5 is not accepted: give a whole number from 0 to 3"),
    (dict(method='HNM', sample_perc=0), "sample_perc=0 is not accepted: give a number from 0.01 to 1"),
    (dict(other='BLF', other_loss_perc=0), "other_loss_perc=0 and other_sample_perc=0 would keep nothing: give at least one of them"),
    (dict(method='none'), "method='none' is not known: choose one of 'BLF', 'HNM', 'SB', 'SB-rank', 'importance', 'core-set',"),
    (dict(plain=True), "plain=True is not a setting"),
    (dict(redundancy=1), "redundancy=1 is not accepted: give a number from 0 to 0.999"),
    (dict(redundancy='half'), "redundancy='half' is not accepted"),
], ids=str)
def test_a_bad_setting_is_one_sentence(bad, says):
    from blf_explore.page.widgets import LiveDashboard
    with pytest.raises(ValueError) as e: LiveDashboard(**bad)
    assert str(e.value).startswith(says) and '\n' not in str(e.value)

def test_the_two_set_ups_of_the_page():
    from blf_explore.page.sessions import check_settings, dashboard_presets as presets
    from blf_explore.page.widgets import LiveDashboard
    def full(o): return {k: v for k,v in check_settings(**o).items() if k in o}
    a,b = map(full, presets.values())
    assert list(presets)==['where it pays','where it does not'] and a.items()<=check_settings().items() # the page begins with the first
    assert len([k for k in a if a[k]!=b[k]])==1 and a['name']=='fashion_small' and (a['method'],a['other'],a['loss_perc'])==('BLF','plain',.9)
    dash = LiveDashboard(**quick, redundancy=.8, seed=7, pace=5, loss_perc=.3, network='mlp')
    def chosen(): return dash._state_now(0.)['preset']
    try:
        assert reached(dash)=='ready' and chosen() is None
        assert len(dash.session.loaded.dls.originals.unique())==1437-round(.8*1437) # the setting has reached the data
        for name in reversed(presets):
            dash.preset(name)
            assert chosen()==name and (dash.settings['seed'],dash.settings['pace'])==(7,5.)
            assert full(presets[name]).items()<=dash.settings.items() and reached(dash)=='ready'
        dash.set(loss_perc=.5)
        assert chosen() is None
        with pytest.raises(ValueError, match="^name='neither' is not known: choose one of 'where it pays', 'where it does not'$"): dash.preset('neither')
    finally: dash.close()

@pytest.mark.browser
def test_one_click_from_where_it_pays_to_where_it_does_not(browser, app):
    from blf_explore.page.sessions import dashboard_presets as presets, show_field
    labels = dict(name='data', network='network', epochs='epochs', lr='learning rate', bs='batch size', redundancy='repeats', label_noise='wrong labels')
    def shown(page): return {k: page.get_by_label(o, exact=True).input_value() for k,o in labels.items()}
    with open_page(browser) as page:
        ready(page, app)
        button(page, 'Step').click()
        at_least(page, 1)
        for name in presets:
            button(page, name).click() # a run has begun: it is given up
            until(page, f"document.querySelector('[data-preset=\"{name}\"]').getAttribute('aria-pressed')=='true'")
            status(page, 'ready')
            assert batches(page)==0 and page.locator('.presets [aria-pressed=true]').count()==1
            assert shown(page)=={k: show_field(k, presets[name][k]) for k in labels}
        assert page.errors==[]

def test_a_method_changed_in_mid_run_waits_and_its_settings_with_it():
    from blf_explore.page.widgets import LiveDashboard
    dash = LiveDashboard(**quick, method='importance', other='HNM', network='mlp')
    def values(): return {k: v for k,v in dash.settings.items() if v is not None and 'perc' in k or k in ('method','other','beta','tau_th')}
    try:
        assert reached(dash)=='ready'
        dash.set(method='BLF', loss_perc=.5) # before anything is trained: at once
        assert reached(dash)=='ready' and dash.session.lane.method=='BLF'
        assert values()==dict(method='BLF', other='HNM', loss_perc=.5, sample_perc=0., other_sample_perc=.5, beta=None, tau_th=None)
        dash.step()
        assert reached(dash, ('paused',))=='paused'
        dash.set(method='SB', beta=2)
        dash.set(loss_perc=.7, other_sample_perc=.25) # of the methods that train
        assert values()==dict(method='BLF', other='HNM', loss_perc=.7, sample_perc=0., other_sample_perc=.25, beta=None, tau_th=None)
        assert dash.session.lane.learn.selection.loss_perc==.7 and dash.session.lanes[1].learn.selection.sample_perc==.25
        for bad in (dict(loss_perc=2), dict(tau_th=1), dict(beta=5)): # none of them, too high for either
            with pytest.raises(ValueError): dash.set(**bad)
        assert dash.settings['loss_perc']==.7 and dash.n_batch==1
        dash.reset()
        assert reached(dash)=='ready'
        assert values()==dict(method='SB', other='HNM', other_sample_perc=.25, beta=2., tau_th=None)
        dash.step()
        assert reached(dash, ('paused',))=='paused'
        dash.set(method='BLF')
        dash.set(method='SB') # back again
        assert dash._pending=={}
    finally: dash.close()

@pytest.mark.browser
def test_an_address_with_settings(browser, app):
    with open_page(browser) as page:
        page.errors = []
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        page.goto(app+'?network=mlp&method=SB&beta=2.5&other=BLF&other_loss_perc=0.5&epochs=7&hide=images&prune=.3', wait_until='commit')
        says(page, 'prune=0.3 is no setting')
        button(page, 'OK').click()
        until(page, "document.querySelector('input[name=beta]')?.value=='2.5'")
        status(page, 'ready')
        def value(label): return page.get_by_label(label, exact=True).input_value()
        assert [value(o) for o in ('network','epochs','method A','method B','beta of A','loss_perc of B')]==['mlp','7','SB','BLF','2.5','0.5']
        assert sliders(page)==['beta','stale','other_loss_perc','other_sample_perc'] # neither has `prune`
        assert page.locator('.strip').count()==0
        assert page.errors==[]

@pytest.mark.browser
def test_in_jupyterlab(browser, tmp_path):
    cell = dict(cell_type='code', execution_count=None, id='a', metadata={}, outputs=[],
                source='from blf_explore.page.widgets import LiveDashboard\nLiveDashboard(name="digits", bs=64, epochs=50)')
    (tmp_path/'class.ipynb').write_text(json.dumps(dict(cells=[cell], nbformat=4, nbformat_minor=5,
        metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')))))
    with jupyterlab(tmp_path) as url, open_page(browser, 1600, 1000) as page:
        page.goto(f'{url}/lab/tree/class.ipynb?reset', wait_until='commit')
        appears(page, '.jp-Notebook .jp-CodeCell')
        wait_until(lambda: any(o['connections'] for o in page.request.get(f'{url}/api/kernels').json()), what='JupyterLab to reach its kernel')
        def ran(): # a key pressed before JupyterLab listens is lost
            if page.locator('.jp-Notebook .jp-CodeCell .jp-InputPrompt').first.inner_text().strip() not in ('', '[ ]:'): return True
            page.locator('.jp-Notebook .jp-CodeCell .cm-content').first.click()
            page.keyboard.press('Shift+Enter')
        wait_until(ran, what='the cell to run')
        appears(page, '.blf[data-status=ready]')
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
        stills = page.locator('.jp-OutputArea-child:not(:has(.blf)) img[src^="data:image/png"]') # what a reader without a kernel sees; here it is hidden
        wait_until(lambda: stills.count()==1 and not stills.first.is_visible(), what='the picture to be there, and hidden')
        first = stills.first.get_attribute('src')
        button(page, 'Step').click() # every pause puts it anew
        wait_until(lambda: stills.first.get_attribute('src')!=first and not stills.first.is_visible(), what='a picture of the page as it is now')
        page.keyboard.press('Control+s')
        saved = wait_until(lambda: [o for o in json.loads((tmp_path/'class.ipynb').read_text())['cells'][0]['outputs'] if 'image/png' in o.get('data', {})], what='the notebook to be saved')
        assert len(saved)==1
        for p in psutil.Process().children(recursive=True):
            if any('ipykernel' in o for o in p.cmdline()): p.kill()
        appears(page, '.blf[data-lost] .status:has-text("No answer")')
        assert page.get_by_role('button', name='Reset').is_disabled()
