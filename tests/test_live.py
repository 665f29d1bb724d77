"""The dashboard's page in a browser, without PyTorch: recorded runs stand for training (`live_page.py`). What the page computes itself is
compared with rules written here; it runs in the browser and, where there is one, in Node."""
import json, math, re, shutil, subprocess
from importlib.resources import files
import numpy as np, pytest
from browser import chromium
from live_page import LOADING, loading, parts, records, recorded, sent, show, stand_in, start
from waits import wait_until
from blf_explore.engine.record import colors
from blf_explore.engine.knobs import methods
from blf_explore.page.plots import accuracy_spec, agreement_spec, behind, samples_spec, time_spec

SIZES = [(1280,720), (1920,1080), (1024,768), (390,844)]
ANSWER = ('In the median of 9 seeds importance took 20% less time than SB (−40% to −5%): too close to call; it trained on 25% of the samples (22% to 28%) and ended '
          '−0.3 points of accuracy beside SB (−0.9 to +0.1): too close to call; a slider was moved on the way.') # as long as they come
EVIDENCE = ('Measured before, in the time of 4 plain epochs (5 seeds, default sliders, batches of 128), accuracy beside plain: importance +0.9 points '
            '(+0.0 to +1.2), more accurate in every seed; SB +0.6 points (−0.1 to +1.1), too close to call.')

@pytest.fixture(scope='module')
def one_page():
    with chromium() as page, stand_in(page): yield page

@pytest.fixture
def blank(one_page):
    "The one page, with a new dashboard that nothing was shown to."
    one_page.set_viewport_size(dict(width=1280, height=720))
    one_page.evaluate('localStorage.clear()')
    start(one_page)
    one_page.errors.clear()
    yield one_page
    assert one_page.errors==[]

@pytest.fixture
def page(blank):
    "It shows the middle of a run, of BatchLossFilter beside plain training."
    show(blank, parts('pays', 330))
    return blank

# ---- what the page computes

def in_node(calls):
    "[result, …] of calls [[function's name, arguments], …], by Node."
    code = ("import * as live from 'data:text/javascript;base64,%s';import {readFileSync} from 'node:fs';"
            "console.log(JSON.stringify(JSON.parse(readFileSync(0)).map(([f, a]) => live[f](...a) ?? null)))")
    import base64
    src = base64.b64encode(files('blf_explore.page').joinpath('live.js').read_bytes()).decode()
    res = subprocess.run(['node', '--input-type=module', '-e', code % src], input=json.dumps(calls), capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    return json.loads(res.stdout)

@pytest.fixture(params=[pytest.param('browser', marks=pytest.mark.browser),
                        pytest.param('node', marks=pytest.mark.skipif(not shutil.which('node'), reason='no Node here'))])
def js(request):
    "Calls functions of the page's script."
    if request.param=='node': return in_node
    page = request.getfixturevalue('one_page')
    return lambda calls: page.evaluate('calls => calls.map(([f, a]) => window.live[f](...a) ?? null)', calls)

def kept_by_hand(losses, loss_perc, sample_perc):
    "The fewest of the hardest that hold `loss_perc` of the loss, but at least `sample_perc` of the samples, and one."
    held = [sum(losses[:k]) for k in range(len(losses)+1)]
    k = next((k for k in range(len(held)) if held[k]>=loss_perc*held[-1]), len(losses)) if loss_perc<1 else len(losses)
    return max(1, k, next(k for k in range(len(losses)+1) if k>=round(sample_perc*len(losses), 6)))

def test_the_cut_is_that_of_the_rule(js):
    losses = [8., 4., 2., 1., .5, .25, .125, .125] # in halves: every sum is exact
    grid = [(a/16, b/8) for a in range(17) for b in range(9)]
    assert js([['cutOf', ['BLF', losses, dict(loss_perc=a, sample_perc=b)]] for a,b in grid])==[kept_by_hand(losses, a, b) for a,b in grid]
    assert js([['cutOf', ['HNM', losses, dict(sample_perc=b)]] for b in (.01,.125,.3,.5,1)])==[1,1,3,4,8]
    assert js([['cutOf', ['SB', losses, dict(beta=1)]], ['cutOf', ['BLF', [], dict(loss_perc=.5, sample_perc=0)]]])==[None,None]
    real = recorded()['pays']['batch']
    assert js([['cutOf', ['BLF', real['losses'], dict(loss_perc=.6, sample_perc=0)]]])==[sum(real['kept'])] # what the training did

def test_a_link_keeps_the_looks(js):
    assert js([['withLooks', ['seed=7', dict(hide='images,batch', size='projector')]], ['withLooks', ['', dict(hide='', size=None)]], ['withLooks', ['', dict(size='projector')]]])==[
        'seed=7&hide=images%2Cbatch&size=projector', '', 'size=projector']

def test_silence_is_noticed_but_not_by_a_page_that_slept(js):
    #        now, heard, looked, loading
    cases = [(4000,0,3500,False,'fine'), (5100,0,4600,False,'lost'), (5100,3000,4600,False,'fine'), (60000,0,2000,False,'asleep'),
             (9000,0,8500,True,'fine'), (20100,0,19600,True,'lost')]
    assert js([['silence', o[:4]] for o in cases])==[o[4] for o in cases]

def test_every_status_and_chart_has_something_to_say(js):
    states = [dict(status=o, settings=dict(other='plain'), now=dict(method=m, other='plain'), pending=[], n_batch=n, answer='') for m in ('BLF','plain')
              for o,n in (('loading',0), ('ready',0), ('running',5), ('paused',5), ('done',9), ('error',5))]
    for o in js([['newsOf', [s, w]] for s in states for w in (False,True)] + [['lookFor', [c, s, 'epoch']] for c in ('samples','time','agreement','accuracy') for s in states]): assert 8<len(o)<75
    assert js([['newsOf', [states[4] | dict(answer='It paid.')]]])==['It paid.']

def test_a_slider_of_a_method_that_chooses_before_an_epoch_says_when_it_holds(js):
    known = {k: dict(each=m.each) for k,m in methods.items()}
    def waits(*now): return js([['waits', [dict(now=dict(zip(('method','other'), now))), known]]])[0]
    whole = {k for k in known if waits(k, 'plain')}
    assert whole=={'InfoBatch','SeTa','BLS'} and not waits('InfoBatch', 'BLF') and not waits('plain', 'none') and waits('SeTa', 'InfoBatch')
    said = js([['newsOf', [dict(status='running', settings={}, now=dict(method=m, other='plain')), False, known]] for m in ('SeTa','BLF')])
    assert said==['Drag a slider: it holds from the next epoch on.', 'Drag a slider: it holds from the very next batch.']

def test_a_picture_says_what_was_trained(js):
    from blf_explore.page.sessions import check_settings, live_settings, page_choices, show_field
    s = check_settings(name='digits', method='BLF', other='plain', loss_perc=.35, label_noise=.2, network='mlp')
    fields = {k: show_field(k, v) for k,v in s.items() if k not in live_settings}
    said = js([['setupOf', [dict(now=s, fields=fields), page_choices()]]])[0]
    assert said.startswith('BatchLossFilter loss_perc 0.35 sample_perc 0 beside plain training, ') and said.endswith(', wrong labels 20%') and 'repeats' not in said
    assert f"MLP, epochs {s['epochs']}, learning rate" in said and f"seed {s['seed']}" in said

# ---- colours

def rgb(c): return np.array([int(c[i:i+2], 16)/255 for i in (1,3,5)])
def linear(c): return np.where(rgb(c)<=.04045, rgb(c)/12.92, ((rgb(c)+.055)/1.055)**2.4)
def contrast(a, b='#ffffff'): # WCAG 2.1
    x,y = sorted((linear(o)@[.2126,.7152,.0722] for o in (a,b)), reverse=True)
    return (x+.05)/(y+.05)

# how a protanope and a deuteranope see linear RGB: Machado, Oliveira and Fernandes 2009, severity 1
EYES = dict(all=np.eye(3), protan=[[.152286,1.052583,-.204868],[.114503,.786281,.099216],[-.003882,-.048116,1.051998]],
            deutan=[[.367322,.860646,-.227968],[.280085,.672501,.047413],[-.011820,.042940,.968881]])

def lab(c, eye): # CIELAB, D65
    xyz = np.array([[.4124,.3576,.1805],[.2126,.7152,.0722],[.0193,.1192,.9505]])@np.clip(np.array(EYES[eye])@linear(c), 0, 1)/[.9505,1,1.089]
    x,y,z = np.where(xyz>.008856, np.cbrt(xyz), 7.787*xyz+16/116)
    return np.array([116*y-16, 500*(x-y), 200*(y-z)])

def test_every_colour_stands_out_from_white():
    pale = {k: round(contrast(c), 2) for k,c in colors.items() if contrast(c)<3}
    assert pale=={}
    css = files('blf_explore.page').joinpath('live.css').read_text('utf-8')
    own = {k: v for k,v in re.findall(r'--([a-z]+): (#[0-9a-fA-F]{6}|#[0-9a-fA-F]{3})\b', css)}
    own = {k: v if len(v)==7 else '#'+''.join(2*o for o in v[1:]) for k,v in own.items()}
    assert {'focus','track','edge','soft','warn','ink'}<=own.keys()
    assert all(contrast(own[o])>=3 for o in ('focus','track','edge')), own # what is not text
    assert all(contrast(own[o])>=4.5 for o in ('soft','warn','ink')), own # text
    assert 'outline: 3px solid var(--focus)' in css and 'var(--track)' in css

@pytest.mark.parametrize('eye', EYES)
def test_no_two_methods_look_alike(eye):
    "Of 66 pairs the nearest is further apart than what counts as the same at a glance, CIE76's 10."
    cs = [m.color for m in methods.values()]
    near = min((np.linalg.norm(lab(a, eye)-lab(b, eye)),a,b) for i,a in enumerate(cs) for b in cs[:i])
    assert near[0]>10, near

def test_at_most_one_method_is_pink():
    "Pink and magenta: hues of CIELAB from 325 to 20 degrees, of some chroma."
    def pink(c):
        _,a,b = lab(c, 'all')
        return math.hypot(a, b)>20 and (math.degrees(math.atan2(b, a))%360>325 or math.degrees(math.atan2(b, a))%360<20)
    assert len([m for m in methods.values() if pink(m.color)])<=1

# ---- the looks of the charts

def test_no_words_over_a_curve():
    "What moves of a slider are called stands above all samples, where no curve comes."
    for which,rows in (('pays',1), ('race',2)):
        spec = samples_spec(*records(which))
        top,full = spec['layout']['yaxis']['range'][1],max(spec['data'][0]['y'])
        lowest = max(max(o['y']) for o in spec['data'] if len(o['y']))
        assert lowest<=full*1.0001 and len({o['y'] for o in spec['layout']['annotations']})==rows
        assert all(o['yanchor']=='top' and o['y']-.13>=full/top-1e-6 for o in spec['layout']['annotations']) # 13%: a line at 120 pixels
    assert not agreement_spec(*records('race'))['layout'].get('annotations')
    marks = time_spec(*records('pays'))['layout']['annotations']
    assert {'<b>✓</b>','✗'}=={o['text'] for o in marks} and all(o['bgcolor'].startswith('rgba(255,255,255') for o in marks)

def test_an_accuracy_axis_does_not_begin_at_100():
    a,b = records('pays')
    for o in a.rows['epochs']+b.rows['epochs']: o['accuracy'] = 1.
    lo,hi = accuracy_spec({'BLF': a, 'plain': b})['layout']['yaxis']['range']
    assert lo<=90 and hi>100

def test_a_divergent_run_does_not_squash_the_other():
    a,b = records('pays')
    a.rows['epochs'][3]['valid_loss'],a.rows['epochs'][4]['valid_loss'],a.rows['epochs'][5]['valid_loss'] = 4e6,math.inf,None
    spec = accuracy_spec({'BLF': a, 'plain': b})
    own = [o['valid_loss'] for o in b.rows['epochs']]
    top = spec['layout']['yaxis2']['range'][1]
    assert max(own)<=top<=5*max(own) and max(own)-min(own)>.1*top
    assert [o['text'] for o in spec['layout']['annotations']]==['↑ BLF up to 4e+06']
    assert not accuracy_spec(dict(zip(('BLF','plain'), records('pays'))))['layout']['annotations']

def test_past_runs_are_not_cut_off():
    def spec(*traces): return behind(accuracy_spec(dict(zip(('BLF','plain'), records('pays')))), list(traces))
    usual = spec()['layout']
    low = spec(dict(x=[1,2], y=[31.,60.], yaxis='y'), dict(x=[1,2], y=[1.4,.6], yaxis='y2'), dict(x=[1,2], y=[31.,33.])) # a band names no axis: it is the first
    assert low['layout']['yaxis']['range']==[30,100.5] and low['layout']['yaxis2']['range'][1]>=1.4 and [o.get('name') for o in low['data'][:4]]==[None]*3+['BLF']
    assert usual['yaxis']['range']==[70,100.5] and spec(dict(x=[1], y=[1e9], yaxis='y2'))['layout']['yaxis2']['range'][1]<3

@pytest.mark.parametrize('by', ['epoch','seconds','samples'])
def test_axes_stay_where_they_are(by):
    "While a run goes on, an axis of the whole run keeps its end, or changes it by a step or two."
    ends = [accuracy_spec(dict(zip('AB', records('pays', n))), by)['layout']['xaxis']['range'][1] for n in range(93*2, 93*6+1, 31)]
    assert len(set(ends))<=(1 if by=='epoch' else 4) and max(ends)<1.35*min(ends)
    tops = [time_spec(*records('pays', n))['layout']['yaxis']['range'][1] for n in range(93, 93*6+1, 31)]
    assert len(set(tops))==1 # the first epoch is the slowest

def test_plain_lets_the_other_be_seen():
    recs = records('pays')
    plain = next(o for o in accuracy_spec(dict(zip(('BLF','plain'), recs)))['data'] if o['name']=='plain')
    assert plain['line']['dash']=='dot' and plain['marker']['symbol'].endswith('open')
    alone = accuracy_spec({'plain': recs[1]})['data'][0]
    assert 'dash' not in alone['line']

# ---- readable at every size

BOXES = """() => Object.fromEntries([...document.querySelectorAll('.blf, .blf header, .blf header > *, .blf header button, .blf .setup, .blf .news, .blf .knobs, .blf .charts, .blf .chart, .blf .plot, .blf .band')]
  .map((o, i) => [`${i} ${o.className || o.tagName}`, (r => [r.left, r.top, r.right, r.bottom])(o.getBoundingClientRect())]))"""

def boxes(page): return {k.split(' ', 1)[1]+'|'+k.split(' ')[0]: v for k,v in page.evaluate(BOXES).items()}
def named(bs, cls): return [v for k,v in bs.items() if cls in k.split('|')[0].split(' ')]
def apart(a, b): return a[2]<=b[0]+.5 or b[2]<=a[0]+.5 or a[3]<=b[1]+.5 or b[3]<=a[1]+.5

CUT = '''() => [...document.querySelectorAll('.head, .value, .more, .legend, .hint, .lane p, .status, .news p, .strip h2, figcaption, .knob label, .by, .count')]
  .filter(o => o.offsetParent && (o.scrollWidth > o.clientWidth + 1 || o.scrollHeight > o.clientHeight + 3)).map(o => [o.className, o.innerText])'''

def cut_off(page):
    "What has words that do not fit. An inline element has no width of its own."
    return [o for o in page.evaluate(CUT) if o[1]]

@pytest.mark.browser
@pytest.mark.parametrize('width', [720, 800, 950, 1100])
def test_at_a_notebooks_width_nothing_is_cut_off_or_small(blank, width):
    page = blank
    page.set_viewport_size(dict(width=width, height=900))
    start(page, fill=False)
    heights = set()
    for state in (parts('pays', 0), parts('pays', 330), parts('pays', answer=ANSWER, evidence=EVIDENCE), parts('race', 250), parts('race', answer=ANSWER, evidence=EVIDENCE)):
        show(page, state)
        bs = boxes(page)
        assert all(v[0]>=-.5 and v[2]<=width+.5 for v in bs.values()) and cut_off(page)==[]
        controls = page.evaluate("[...document.querySelectorAll('header button, header select, header summary, header .count span')].filter(o => o.offsetParent && !o.closest('.menu > div')).map(o => (r => [r.left, r.top, r.right, r.bottom])(o.getBoundingClientRect()))")
        assert all(apart(a, b) for i,a in enumerate(controls) for b in controls[:i])
        assert all(v[2]-v[0]>.33*width and v[3]-v[1]>95 for v in named(bs, 'plot'))
        heights.add(round(bs[next(k for k in bs if k.startswith('blf'))][3]))
        if width<=1000: assert page.evaluate("document.querySelector('.blf').scrollHeight<=document.querySelector('.blf').clientHeight+1"), 'the notebook scrolls, not the dashboard'
    assert max(heights)-min(heights)<=(120 if width<=1000 else 0) # two sliders more

@pytest.mark.browser
@pytest.mark.parametrize('size', SIZES, ids=lambda o: 'x'.join(map(str, o)))
def test_idle_running_done_at_every_size(blank, size):
    page = blank
    page.set_viewport_size(dict(width=size[0], height=size[1]))
    charts,heads = set(),set()
    for state in (loading(), parts('pays', 0), parts('pays', 330), parts('pays', answer=ANSWER, evidence=EVIDENCE), parts('race', 250), parts('race', answer=ANSWER, evidence=EVIDENCE)):
        show(page, state)
        bs = boxes(page)
        assert all(v[0]>=-.5 and v[2]<=size[0]+.5 for v in bs.values()), 'nothing is cut off at a side'
        assert page.evaluate("document.querySelector('.blf').scrollWidth<=document.querySelector('.blf').clientWidth")
        head = next(v for k,v in bs.items() if k.startswith('HEADER'))
        kids = page.evaluate("[...document.querySelectorAll('header > *, header button, header select, header summary, header .count span')].filter(o => o.offsetParent && !o.closest('.menu > div')).map(o => (r => [r.left, r.top, r.right, r.bottom])(o.getBoundingClientRect()))")
        assert all(head[1]-.5<=o[1] and o[3]<=head[3]+.5 for o in kids)
        assert head[3]-head[1]<=(72 if size[0]<700 else 60)
        heads.add(head[3]-head[1])
        charts.add(json.dumps([[round(x) for x in v] for v in named(bs, 'chart')]))
        if size[0]>700: # all on one screen
            assert page.evaluate("document.querySelector('.blf').scrollHeight<=document.querySelector('.blf').clientHeight+1")
            pieces = [head, *(v for o in ('setup','news','knobs','charts','band') for v in named(bs, o))]
            assert len(pieces)==6 and all(apart(a, b) for i,a in enumerate(pieces) for b in pieces[:i])
        else: # charts below one another; the sliders in reach wherever one has scrolled to
            tops = [v[1] for v in named(bs, 'chart')]
            assert tops==sorted(set(tops))
            for at in (0, 500, 10**6):
                page.evaluate(f"document.querySelector('.blf').scrollTop = {at}")
                reach = page.evaluate("['.run', '.knob input, .choose select'].map(o => (r => r.top>=0 && r.bottom<=innerHeight)(document.querySelector(o).getBoundingClientRect()))")
                assert reach==[True,True], at
            page.evaluate("document.querySelector('.blf').scrollTop = 0")
        assert all(v[3]-v[1]>=95 for v in named(bs, 'plot'))
        assert cut_off(page)==[]
    assert len(heads)==1 and len(charts)<=(1 if size[0]>700 else 2), 'charts do not jump' # on a phone a race has a line more above them

@pytest.mark.browser
@pytest.mark.parametrize('size', [(1280,720),(1920,1080),(1024,768)], ids=lambda o: 'x'.join(map(str, o)))
def test_no_slider_is_hidden_in_a_race(blank, size):
    "Up to eight sliders, each with what it means, and nothing to scroll."
    from blf_explore.page.sessions import check_settings
    blank.set_viewport_size(dict(width=size[0], height=size[1]))
    for query in ('','?size=projector')[:1+(size[0]>1100)]:
        start(blank, query)
        for a,b in (('SeTa','SeTa'),('BLS','InfoBatch'),('SB','importance'),('BLF','plain')):
            s = check_settings(name='digits', method=a, other=b)
            show(blank, parts('race', now=s, settings=s))
            assert blank.evaluate("(o => o.scrollHeight<=o.clientHeight+1)(document.querySelector('.knobs'))"), (a, b, query)
            helps = blank.evaluate("[...document.querySelectorAll('.knob p')].map(o => o.getClientRects().length > 0)")
            assert helps==[True]*(len(methods[a].knobs)+len(methods[b].knobs))
            assert blank.locator('.does').first.is_visible()==(blank.locator('.knobs').get_attribute('data-fit')!='sliders')
    assert blank.locator('.knobs').get_attribute('data-fit')=='', 'two sliders have room, and what the method does'

@pytest.mark.browser
@pytest.mark.parametrize('hide', ['setup','images','batch','images,batch','time','time,accuracy','samples,time,agreement','samples,time,agreement,accuracy','sliders','title,news'])
def test_what_is_hidden_leaves_no_hole(blank, hide):
    page = blank
    start(page, f'?hide={hide}')
    show(page, parts('pays', 330))
    bs,gone = boxes(page),set(hide.split(','))
    shown = [o for o in ('samples','time','agreement','accuracy') if o not in gone]
    assert len(named(bs, 'chart'))==len(shown) and bool(named(bs, 'band'))==(not {'images','batch'}<=gone)
    area = lambda v: (v[2]-v[0])*(v[3]-v[1])
    if shown:
        outer = named(bs, 'charts')[0]
        assert sum(map(area, named(bs, 'chart')))>.93*area(outer) and abs(outer[2]-named(bs, 'news')[0][2] if 'news' not in gone else 0)<1
    pieces = [next(v for k,v in bs.items() if k.startswith('HEADER')), *(v for o in ('setup','news') for v in named(bs, o)), *(named(bs, 'charts') or named(bs, 'knobs')), *named(bs, 'band')]
    rows = sorted(pieces, key=lambda v: v[1])
    assert all(0<=b[1]-a[3]<10 for a,b in zip(rows, rows[1:])) and rows[-1][3]>708 # one below the other, to the end of the page
    if 'batch' in gone and 'images' not in gone: assert page.locator('.strip').bounding_box()['width']>1200

@pytest.mark.browser
def test_a_size_for_projectors(page):
    def size(): return page.evaluate("parseFloat(getComputedStyle(document.querySelector('.blf')).fontSize)")
    usual = size()
    page.get_by_role('button', name='A+').click()
    assert size()>=1.15*usual and page.locator('.setup').is_hidden()
    page.get_by_role('button', name='Set-up').click()
    assert page.locator('.setup').is_visible()
    assert page.evaluate("document.querySelector('.chart.time .plot > div').clientHeight")>60

# ---- explained on the page

@pytest.mark.browser
def test_everything_is_explained_on_the_page_and_can_be_hidden(page):
    show(page, parts('race', 250)) # four sliders
    seen = page.locator('.blf').inner_text()
    for m in ('SB','importance'): assert methods[m].help in ' '.join(seen.split()) and all(k.help in ' '.join(seen.split()) for k in methods[m].knobs)
    assert page.locator('.hint').count()==4 and all(o.is_visible() for o in page.locator('.hint').all())
    explain = page.get_by_role('button', name='Explain')
    explain.click()
    assert not any(o.is_visible() for o in page.locator('.hint, .does, .knob p').all())
    start(page) # remembered
    show(page, parts('race', 250))
    assert not any(o.is_visible() for o in page.locator('.hint').all()) and explain.get_attribute('aria-pressed')=='false'
    explain.click()
    assert page.locator('.hint').first.is_visible()
    page.get_by_text('More', exact=True).click()
    page.get_by_role('button', name='What the words mean').click()
    said = page.get_by_role('region', name='What the words mean').inner_text()
    assert all(o in said for o in ('epoch','batch','overhead','sign agreement','seed','repeats','wrong labels','random pick','validation loss'))
    page.keyboard.press('Escape')
    assert page.locator('.words').is_hidden()

# ---- the idea

def cut(page): return page.evaluate("(c => c.hidden ? null : parseFloat(c.style.left))(document.querySelector('.cut'))")

@pytest.mark.browser
def test_the_cut_moves_with_the_slider_before_anything_is_sent(page):
    losses = recorded()['pays']['batch']['losses']
    n = len(losses)
    assert cut(page)==pytest.approx(100*sum(recorded()['pays']['batch']['kept'])/n)
    page.evaluate("window.model.sent = []; const o = document.querySelector('input[name=loss_perc]'); o.value = .3; o.dispatchEvent(new Event('input', {bubbles: true})); window.then = window.model.sent.length")
    k = kept_by_hand(losses, .3, 0)
    assert page.evaluate('window.then')==0 and cut(page)==pytest.approx(100*k/n)
    assert f'would keep {k} of {n}' in page.locator('.idea h2').inner_text()
    wait_until(lambda: sent(page, 'set')==[dict(settings=dict(loss_perc=.3))], what='the message')
    show(page, {'batch': json.dumps(recorded()['pays']['batch'] | dict(cut=k, kept=[i<k for i in range(n)]))})
    assert f'it kept {k} of {n}' in page.locator('.idea h2').inner_text()

@pytest.mark.browser
def test_an_image_marks_its_place(page):
    batch = recorded()['pays']['batch']
    pics = page.locator('.pics-at .pic')
    assert pics.count()==len(batch['images'])
    where = [o.bounding_box() for o in pics.all()]
    assert [o['x'] for o in where]==sorted(o['x'] for o in where)
    pics.nth(3).focus()
    page.keyboard.press('Enter')
    o = batch['images'][3]
    assert pics.nth(3).get_attribute('aria-pressed')=='true' and o['loss'] in page.locator('.idea h2').inner_text()
    line = page.locator('.curve').bounding_box()
    at = page.evaluate("document.querySelector('.curve .at').getBoundingClientRect().left")
    assert abs(at-(line['x']+line['width']*o['i']/len(batch['losses'])))<8
    page.keyboard.press('Enter')
    assert pics.nth(3).get_attribute('aria-pressed')=='false'
    show(page, parts('race', 250)) # by chance: there is no line to cut at
    assert cut(page) is None and 'it kept' in page.locator('.idea h2').inner_text()

# ---- keyboard, screen reader, motion

@pytest.mark.browser
def test_by_keyboard_alone(page):
    page.evaluate("document.body.focus()")
    order = []
    for _ in range(70):
        page.keyboard.press('Tab')
        order.append(page.evaluate("(o => o.className+' '+(o.dataset.k || o.name || o.dataset.by || o.textContent.slice(0, 14)))(document.activeElement)"))
    for o in ('run Pause','reset Reset','pace','explains Explain','bigger A+','More','where it pays','label_noise','loss_perc','sample_perc','epoch','pic kept'):
        assert any(o in x for x in order), (o, order)
    slider = page.get_by_role('slider', name='loss_perc of A')
    slider.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle")=='solid'
    page.keyboard.press('ArrowRight')
    wait_until(lambda: sent(page, 'set'), what='the message')
    assert sent(page, 'set')[-1]==dict(settings=dict(loss_perc=.61))

@pytest.mark.browser
def test_what_a_screen_reader_is_told(page):
    for k,title in dict(samples='Samples kept', time='Time', agreement='Gradient signs', accuracy='Accuracy').items():
        label = page.locator(f'.chart.{k} .plot > [role=img]').get_attribute('aria-label')
        assert label.startswith(f'{title}: ') and re.search(r'\d', label)
    before = page.locator('.chart.samples .plot > [role=img]').get_attribute('aria-label')
    show(page, parts('pays', 400))
    assert page.locator('.chart.samples .plot > [role=img]').get_attribute('aria-label')!=before # it follows the chart
    spec = json.loads(parts('pays', 400)['samples']) | dict(say='Four of ten.')
    show(page, dict(samples=json.dumps(spec)))
    assert page.locator('.chart.samples .plot > [role=img]').get_attribute('aria-label')=='Samples kept: Four of ten.'
    show(page, parts('race', 250))
    names = [o.get_attribute('aria-label') for o in page.locator('input[type=range]').all()]
    assert names==['beta of A','stale of A','sample_perc of B','tau_th of B']
    for o in page.locator('input[type=range]').all(): assert page.locator('#'+o.get_attribute('aria-describedby')).inner_text()
    unnamed = page.evaluate("[...document.querySelectorAll('button, select, input')].filter(o => !(o.getAttribute('aria-label') || o.textContent.trim())).length")
    assert unnamed==0

@pytest.mark.browser
def test_nothing_flashes_for_who_does_not_want_it(page):
    move = "const o = document.querySelector('input[name=loss_perc]'); o.value = VALUE; o.dispatchEvent(new Event('input', {bubbles: true})); document.getAnimations().length"
    try:
        page.emulate_media(reduced_motion='reduce')
        assert page.evaluate(f"() => {{ {move.replace('VALUE', '.3').replace('document.getA', 'return document.getA')} }}")==0
        page.emulate_media(reduced_motion='no-preference')
        assert page.evaluate(f"() => {{ {move.replace('VALUE', '.4').replace('document.getA', 'return document.getA')} }}")==1
    finally: page.emulate_media(reduced_motion=None)

# ---- what is sent, and what is said

@pytest.mark.browser
def test_fields_send_what_was_written_and_show_what_is_said_of_it(page):
    field = page.get_by_label('wrong labels', exact=True)
    assert field.input_value()=='0%'
    field.fill('10 %')
    field.press('Enter')
    assert sent(page, 'set')==[dict(settings=dict(label_noise='10 %'))]
    show(page, parts('pays', 330, notes=dict(bs='The set has 9,600 images: each batch is all of them.')))
    note = page.locator('[data-for=bs] .note')
    assert note.is_visible() and page.locator('.note:visible').count()==1
    assert page.locator(f"#{page.get_by_label('batch size', exact=True).get_attribute('aria-describedby')}").inner_text()==note.inner_text()
    page.locator('.lane.b select').select_option('HNM')
    assert sent(page, 'set')==[dict(settings=dict(other='HNM'))]
    show(page, parts('pays', 330, diverged=dict(method='The loss is not finite since epoch 3.')))
    assert page.locator('.lane.a .says').inner_text()=='The loss is not finite since epoch 3.'

@pytest.mark.browser
def test_each_error_speaks(page):
    error = page.locator('.error')
    def say(i, sentence='bs=0 is not accepted'): show(page, parts('pays', 330, error=sentence, error_id=i))
    say(1)
    assert error.is_visible() and error.get_attribute('role')=='alert'
    page.get_by_role('button', name='OK').click()
    assert sent(page, 'ok')==[{}]
    say(1)
    assert error.is_hidden() # many updates later it is still the same one
    field = page.get_by_label('batch size', exact=True)
    field.fill('0')
    say(2) # once more the same words
    assert error.is_visible() and field.input_value()=='128' # what was there before is back

@pytest.mark.browser
def test_at_the_end_the_answer_and_what_to_do(page):
    assert page.get_by_role('button', name='One more seed').count()==0
    runs = [dict(id=3, names=['BLF','plain'], colors=['#0072B2','#000000'], seed=42, differs='loss_perc 0.5')]
    show(page, parts('pays', answer=ANSWER, runs=runs))
    answer = page.locator('.answer')
    assert answer.inner_text()==ANSWER and answer.is_visible() and page.locator('.news p').get_attribute('role')=='status'
    assert page.locator('.evidence').inner_text()=='The package has no evidence on this set-up: it was not measured.'
    assert page.evaluate("(o => o.scrollHeight<=o.clientHeight+1)(document.querySelector('.news p'))") # all of it
    page.get_by_role('button', name='One more seed').click()
    page.get_by_role('button', name='Take the run with BLF and plain, seed 42, loss_perc 0.5 off the chart').click()
    assert sent(page, 'more')==[{}] and sent(page, 'forget')==[dict(run=3)]
    show(page, parts('pays', 330, status='paused', away='The page did not answer for 20 s, so the run was paused.'))
    assert 'did not answer' in page.locator('.news').inner_text()
    page.get_by_role('button', name='Go on').click()
    assert sent(page, 'go_on')==[{}]

@pytest.mark.browser
def test_accuracy_by_is_the_pages_own_choice(page):
    title = "document.querySelector('.chart.accuracy .plot > div').layout.xaxis.title.text"
    page.evaluate('window.model.sent = []')
    for by,what in (('seconds','seconds of training'), ('samples','samples trained on'), ('epoch','epoch')):
        page.get_by_role('button', name=f'by {by}').click()
        page.wait_for_function(f"{title}=={what!r}")
    assert page.evaluate("window.model.sent.filter(o => o.type !== 'ack').length")==0

@pytest.mark.browser
def test_loading_has_a_frame_and_a_bar(page):
    show(page, loading(progress=[2,6], what='Loading Fashion, 12,000'))
    assert page.locator('.veil').inner_text()=='Loading Fashion, 12,000 …' and page.locator('.veil progress').evaluate('o => [o.value, o.max]')==[2,6]
    assert page.locator('.chart').count()==4 and page.get_by_role('button', name='Run', exact=True).is_enabled()
    show(page, parts('pays', 0))
    assert page.locator('.veil').is_hidden() and LOADING['progress']==[0,6]

@pytest.mark.browser
def test_files(page):
    def choose(name):
        page.get_by_text('More', exact=True).click()
        page.get_by_role('button', name=name).click()
        assert page.locator('.menu').get_attribute('open') is None, 'it closes once something is chosen'
    choose('Epochs as a table (CSV)')
    choose('Record (npz)')
    assert sent(page, 'file')==[dict(what='csv'), dict(what='npz')]
    with page.expect_download() as got:
        page.evaluate("window.model.say({type: 'file', view: window.model.sent[0].view, name: 'epochs.csv', mime: 'text/csv', data: btoa('a,b')})")
    assert got.value.suggested_filename=='epochs.csv' and got.value.path().read_text()=='a,b'
    with page.expect_download() as got: choose('Charts as a picture (PNG)')
    from PIL import Image
    im = Image.open(got.value.path())
    assert got.value.suggested_filename=='blf-explore.png' and im.size==(1760,1048)
    assert all(len(im.convert('RGB').crop((x, y, x+880, y+504)).getcolors(1<<20))>20 for x in (0,880) for y in (0,504)) # a chart in each quarter

@pytest.mark.browser
def test_in_a_notebook_the_charts_are_kept_as_a_picture_whenever_all_stands_still(blank):
    start(blank, fill=False)
    assert blank.evaluate("document.querySelector('.blf').clientHeight")==700
    show(blank, parts('pays', 330))
    show(blank, parts('pays', 330, status='paused'))
    wait_until(lambda: sent(blank, 'picture'), what='the picture')
    first = sent(blank, 'picture')[0]['data']
    assert first.startswith('data:image/png;base64,') and len(first)>20_000
    show(blank, parts('pays', 330, status='paused', left='0:01')) # nothing new to keep
    show(blank, parts('pays'))
    wait_until(lambda: sent(blank, 'picture'), what='the next picture')
    assert len(sent(blank, 'picture'))==1 and sent(blank, 'picture')[0]['data']!=first

@pytest.mark.browser
def test_a_second_run_that_ends_with_the_same_batch_gets_a_picture_of_its_own(blank):
    start(blank, fill=False)
    for answer in ('BLF took less.', 'BLF took more.'):
        show(blank, parts('pays', 330))
        show(blank, parts('pays', answer=answer))
        wait_until(lambda: sent(blank, 'picture'), what=f'the picture of the run with {answer!r}')

@pytest.mark.browser
def test_a_dashboard_does_not_wait_for_what_the_one_before_it_asked_for(blank):
    "A cell that runs again at once takes the first dashboard away before the kernel has answered it."
    blank.evaluate("() => { window.had = window.Plotly; window.blfHad = window.blfPlotly; delete window.Plotly; delete window.blfPlotly }")
    try:
        for _ in range(2):
            start(blank, fill=False)
            assert len(sent(blank, 'plotly'))==1
        blank.evaluate("() => { window.Plotly = window.had; window.model.say({type: 'plotly', view: window.model.sent.find(o => o.type === 'plotly').view}) }")
        show(blank, parts('pays', 330))
    finally: blank.evaluate("() => { window.Plotly = window.had; window.blfPlotly = window.blfHad }")

@pytest.mark.browser
def test_a_set_up_that_is_clicked_ends_the_wait_for_a_folder(page):
    data = page.get_by_label('data', exact=True)
    data.select_option('folder') # which one, is still to be said
    assert sent(page, 'set')==[] and page.get_by_label('folder', exact=True).is_visible()
    page.get_by_role('button', name='where it pays').click()
    show(page, parts('pays', 0))
    assert data.input_value()=='fashion_small' and page.get_by_label('folder', exact=True).is_hidden()

@pytest.mark.browser
def test_a_watcher_sees_all_and_controls_nothing(blank):
    page = blank
    start(page, role='watch')
    show(page, parts('pays', 330))
    assert page.locator('header .controls, .setup').count()==0 and page.locator('.chart').count()==4
    assert page.locator('.knobs input, .knobs select').count()==4 and all(o.is_disabled() for o in page.locator('.knobs input, .knobs select').all())
    page.evaluate('window.model.sent = []')
    page.get_by_role('button', name='by seconds').click()
    page.locator('.pics-at .pic').nth(2).click()
    assert page.locator('.pics-at .pic').nth(2).get_attribute('aria-pressed')=='true' and page.evaluate('window.model.sent')==[]
    show(page, parts('pays', answer=ANSWER, evidence=EVIDENCE))
    assert page.get_by_role('button', name='One more seed').count()==0 and ANSWER in page.locator('.news').inner_text()

@pytest.mark.browser
def test_silence_is_said_and_ends_by_itself(page):
    page.evaluate('window.model.beats = false; window.model.sent = []')
    wait_until(lambda: page.locator('.blf[data-lost]').count(), what='the page to notice')
    assert 'Nothing of this run has come from the server' in page.locator('.news').inner_text()
    assert all(o.is_disabled() for o in page.locator('.controls button, .setup input, .knobs input').all())
    assert page.get_by_role('button', name='Open it anew').is_visible()
    wait_until(lambda: sent(page, 'hello'), what='the page to ask')
    assert 'loss_perc=0.6' in sent(page, 'hello')[0]['query'] # the set-up as it is
    page.evaluate("window.model.say({type: 'beat'})")
    assert page.locator('.blf[data-lost]').count()==0 and page.get_by_role('button', name='Pause').is_enabled()
    page.evaluate('window.model.beats = true')
