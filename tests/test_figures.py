"The figures of the lessons: each number they show against the package's own rule, and the page against Python over a grid of slider values."
import itertools, json, math, re
import numpy as np, pytest, torch
from fastai.callback.schedule import SchedCos, SchedLin
from blf_explore.blf import _select
from blf_explore.coreset import k_center
from blf_explore.engine.record import colors
from blf_explore.engine.rows import Queue, Rows
from blf_explore.engine.timing import break_even, selective_step
from blf_explore.hnm import hardest
from blf_explore.importance import tau, weighted_draw
from blf_explore.infobatch import InfoBatch, infobatch_keep
from blf_explore.page import figures
from blf_explore.page.frame import _drag, _pack
from blf_explore.page.whatif import what_if_figure
from blf_explore.sb import keep_probability
from browser import chromium

# values of the sliders: their ends, and some between
grid = dict(cut_line=dict(loss_perc=[0, .37, .9, 1], sample_perc=[0, .07, .5, 1], epoch=[0, 1, 4, 8]),
            break_even_line=dict(share=[1, 33, 100], score=[.1, 7.7, 80.], F=[.1, 21.2], B=[.1, 42.9]),
            two_stops=dict(loss_perc=[0, .5, .9, 1], sample_perc=[0, .11, .5, 1], epoch=[0, 2, 8]),
            agreement_at_cut=dict(kept=[5, 10, 45, 100], epoch=[0, 1, 5, 8]),
            beta_curve=dict(beta=[0, .3, 1, 2, 8], epoch=[1, 5, 8]),
            queue_filling=dict(share=[1, 7, 33, 50, 100], bs=[8, 64, 256]),
            weighted_draw=dict(by_score=[0, .35, 1], k=[4, 16, 32], epoch=[0, 1, 5, 8]),
            share_over_time=dict(setting=[0, 1], shape=[0, 1, 2], begin=[0, .07, 1], end=[.25, .9], warmup=[0, 3]),
            k_center=dict(k=[1, 2, 10, 33, 64]),
            holdout_loss=dict(sample_perc=[.01, .1, .33, 1], epoch=[0, 1, 4, 8]),
            samples_per_epoch=dict(prune=[0, .5, .95], delta=[0, .4, .875, 1]))

def settings(name): return [dict(zip(grid[name], o)) for o in itertools.product(*grid[name].values())]

def series(shown, panel, label): return next(o for o in shown['panels'][panel]['series'] if o['label']==label)

def points(s): return list(zip(s['x'], s['y']))

def test_every_figure_is_tried():
    assert set(grid)==set(figures.__all__)
    for name in grid:
        assert set(grid[name])=={k.name for k in getattr(figures, name)().knobs}

# ---- Python against the package's rules

@pytest.mark.parametrize('epoch', range(9))
def test_the_cut_is_blfs(epoch):
    fig = figures.cut_line()
    losses = torch.tensor(fig.data['losses'][epoch])
    for loss_perc,sample_perc in itertools.product([0, .2, .5, .77, .9, .99, 1], [0, .07, .4, 1]):
        shown,expected = fig.show(loss_perc=loss_perc, sample_perc=sample_perc, epoch=epoch),_select(losses, loss_perc, sample_perc).idxs.tolist()
        kept,skipped = series(shown, 0, 'kept'),series(shown, 0, 'skipped')
        assert kept['y']==pytest.approx(losses[expected].tolist()) and kept['x']==list(range(1, len(expected)+1)) and len(kept['x'])+len(skipped['x'])==64
        assert shown['panels'][2]['groups'][0]['items']==expected[:10]
        assert not set(shown['panels'][2]['groups'][1]['items']) & set(expected)
        held = 100*losses[expected].double().sum()/losses.double().sum()
        assert dict(points(shown['panels'][1]['series'][0]))[len(expected)]==pytest.approx(held.item(), rel=1e-6)

def test_break_even_is_the_cost_model():
    fig = figures.break_even_line()
    for share,score,F,B in itertools.product([5, 30, 90], [4., 20.], [10., 21.], [12., 40.]):
        shown = fig.show(share=share, score=score, F=F, B=B)
        line = series(shown, 0, 'a step with selection')
        assert line['y']==pytest.approx(selective_step(np.array(line['x'])/100, F+B, score)/(F+B))
        assert series(shown, 0, 'here')['y']==pytest.approx([selective_step(share/100, F+B, score)/(F+B)])
        at = next(o['at'] for o in shown['panels'][0]['marks'] if o['kind']=='vline')
        assert at==pytest.approx(100*break_even(F+B, score))
    assert 'never saves time' in fig.show(score=90., F=10., B=20.)['say']

def test_two_stops_are_blfs_and_hnms():
    fig = figures.two_stops()
    for loss_perc,sample_perc in itertools.product([.3, .9, 1], [.05, .5, 1]):
        shown = fig.show(loss_perc=loss_perc, sample_perc=sample_perc)
        for i,o in enumerate(fig.data['losses']):
            l = torch.tensor(o)
            for name,sel in dict(BLF=_select(l, loss_perc, 0.), HNM=hardest(l, sample_perc)).items():
                assert series(shown, 1, name)['y'][i]==pytest.approx(100*len(sel.idxs)/64)
                assert series(shown, 2, name)['y'][i]==pytest.approx((100*l[sel.idxs].sum()/l.sum()).item(), rel=1e-5)

def test_agreement_is_read_off_the_record():
    fig = figures.agreement_at_cut()
    assert [round(o, 2) for o in fig.data['kept']]==[round(.05*(i+1), 2) for i in range(20)], 'the slider names these shares'
    for kept,epoch in itertools.product([5, 10, 60, 100], range(9)):
        shown,i = fig.show(kept=kept, epoch=epoch),kept//5-1
        assert dict(points(series(shown, 1, 'the hardest')))[epoch]==series(shown, 0, 'the hardest')['y'][i]==pytest.approx(100*fig.data['agreement'][epoch]['top'][i])
        assert series(shown, 1, 'random ones')['y'][epoch]==series(shown, 0, 'random ones')['y'][i]
    assert series(fig.show(), 0, 'the hardest')['y'][-1]==100 # all of the batch

def test_chances_are_selective_backprops():
    "A batch whose own losses are the history: a sample's percentile is its rank."
    fig,n = figures.beta_curve(),64
    losses = torch.rand(n, generator=torch.Generator().manual_seed(1))
    ranks = losses.argsort().argsort().double()/n
    fig.data['percentiles'][3] = ranks.tolist()
    for beta in (0, .5, 1, 2, 7.9):
        shown,expected = fig.show(beta=beta, epoch=3),keep_probability(losses, losses, beta)
        assert series(shown, 0, 'the batch’s images')['y']==pytest.approx((100*expected).tolist())
        assert series(shown, 1, 'this batch, expected')['y']==pytest.approx([100*expected.mean().item()])
        assert shown['panels'][2]['groups'][0]['items']==losses.argsort(descending=True)[:8].tolist()

@pytest.mark.parametrize('share, bs', [(25, 8), (50, 64), (75, 16), (100, 8), (10, 40)])
def test_the_queue_fills_as_the_packages_does(share, bs):
    fig = figures.queue_filling(share, bs)
    shown,queue,n,steps,waits = fig.show(),Queue(bs),bs*share//100,0,[]
    for i in range(fig.data['batches']):
        queue.add(Rows((torch.zeros(n, 1),), (torch.zeros(n),), torch.arange(n)))
        if queue.ready(False):
            queue.pop()
            steps += 1
        waits.append(len(queue))
        assert series(shown, 1, 'with a queue: full batches')['y'][i+1]==steps
    after = dict(points(series(shown, 0, 'waiting'))) # of two points of a batch the later one
    assert [after[i+1] for i in range(len(waits))]==waits

@pytest.mark.parametrize('epoch', [0, 1, 4, 8])
def test_draws_weights_and_variance(epoch):
    fig = figures.weighted_draw()
    g,n,k = fig.data['gradients'][epoch],64,16
    scores,along,norms = (torch.tensor(g[o]).double() for o in ('bound','along','norm'))
    shown,mean = fig.show(by_score=1, k=k, epoch=epoch),along.mean()
    p = scores/scores.sum()
    sel = weighted_draw(scores, 20_000, torch.Generator().manual_seed(0)) # the package's draw: chances and weights
    assert torch.allclose(sel.weights.double(), (1/(n*p))[sel.idxs], rtol=1e-4)
    many = sel.weights.double()*along[sel.idxs]
    assert (sel.weights.double()*norms[sel.idxs]).pow(2).mean().item()==pytest.approx(((norms/n)**2/p).sum().item(), rel=.15)
    assert many.mean().item()==pytest.approx(mean.item(), rel=.1)
    def variance(p): return ((norms/n)**2/p).sum()-mean**2
    ratio = (variance(p)/variance(torch.full_like(p, 1/n))).item()
    assert series(shown, 2, '')['y'][-1]==pytest.approx(ratio) and f'{math.floor(100*ratio+.5)/100:.2f} of that' in shown['say']
    edges = p.cumsum(0)
    for j,us in enumerate(fig.data['uniforms']):
        idxs = torch.searchsorted(edges, torch.tensor(us[:k]).double(), right=True).clamp(max=n-1)
        assert series(shown, 0, 'with weights 1/(n p)')['y'][j]==pytest.approx((along[idxs]/(n*p[idxs])).mean().item()/mean.item())
        assert series(shown, 0, 'without weights')['y'][j]==pytest.approx((along[idxs].mean()/mean).item())
    assert tau(scores)>=1 and series(shown, 1, '')['y'][0]==pytest.approx(100*p.max().item())

def test_a_schedule_keeps_what_the_rules_would():
    fig = figures.share_over_time()
    batches = torch.tensor(np.array(fig.data['training'])).reshape(-1, 64)
    for setting,shape,begin,end,warmup in [(0, 2, .1, 1., 0), (1, 1, 1., .5, 2), (1, 0, .8, .1, 0), (0, 1, 0., .33, 7)]:
        shown = fig.show(setting=setting, shape=shape, begin=begin, end=end, warmup=warmup)
        sched = {0: lambda pct: begin, 1: SchedLin(begin, end), 2: SchedCos(begin, end)}[shape]
        kept = []
        for i,l in enumerate(batches):
            v = sched(i/len(batches))
            kept.append(64 if i<22*warmup else len((_select(l, v, 0.) if setting else hardest(l, max(v, 1e-9))).idxs))
        expected = np.array(kept).reshape(8, 22).mean(1)/64
        assert series(shown, 1, '')['y']==pytest.approx(list(100*expected))
        assert shown['say'].startswith(f'{sum(kept):,} of 11,264 images')

def test_greedy_k_center_is_the_packages():
    fig = figures.k_center()
    pts = torch.tensor(fig.data['points'])
    dist = torch.cdist(pts.double(), pts.double())
    for k in (1, 2, 10, 40, 64):
        shown,chosen = fig.show(k=k),k_center(pts, k)
        assert points(series(shown, 0, 'kept'))==[tuple(o) for o in torch.tensor(fig.data['points'])[chosen].double().tolist()] or \
               np.allclose(points(series(shown, 0, 'kept')), pts[chosen].numpy())
        radius = dist[:,chosen].min(1).values.max().item()
        assert series(shown, 1, 'core-set')['y'][k-1]==pytest.approx(radius, rel=1e-4, abs=1e-6)
        assert series(shown, 1, 'random')['y'][k-1]==pytest.approx(dist[:,fig.data['order'][:k]].min(1).values.max().item(), rel=1e-4, abs=1e-6)

def test_rho_keeps_the_largest_excess():
    fig = figures.holdout_loss()
    wrong,hold = torch.tensor(fig.data['wrong']),torch.tensor(fig.data['holdout'])
    for sample_perc,epoch in itertools.product([.05, .1, .5, 1], [0, 2, 8]):
        shown,losses = fig.show(sample_perc=sample_perc, epoch=epoch),torch.tensor(fig.data['losses'][epoch])
        rho,hnm = hardest(losses-hold, sample_perc).idxs,hardest(losses, sample_perc).idxs
        assert sorted(series(shown, 0, 'kept')['y']+series(shown, 0, 'kept, label wrong')['y'])==pytest.approx(losses[rho].sort().values.tolist())
        assert len(series(shown, 0, 'kept, label wrong')['x'])==wrong[rho].sum() and len(series(shown, 0, 'skipped, label wrong')['x'])==wrong.sum()-wrong[rho].sum()
        assert f'RHO-LOSS {wrong[rho].sum()}, hard-negative mining {wrong[hnm].sum()}. The batch holds {wrong.sum()}.' in shown['say']

def test_infobatch_drops_as_the_package_does():
    fig = figures.samples_per_epoch()
    n,losses = 1000,torch.rand(1000, generator=torch.Generator().manual_seed(3))**3
    below = (losses<losses.mean()).float().mean().item()
    fig.data = dict(n=n, below=[below]*16)
    for prune,delta in itertools.product([0, .5, .9], [.3, .875, 1]):
        y = series(fig.show(prune=prune, delta=delta), 0, 'trained on')['y']
        drops = infobatch_keep(losses, losses.double().mean().item(), prune, torch.Generator().manual_seed(5))
        cb = InfoBatch(prune, delta)
        for e in range(16):
            cb.learn = type('Learn', (), dict(epoch=e, n_epoch=16))() # what the rule asks a learner
            whole = e==0 or cb.keep_epoch(losses, prune, delta) is None
            assert y[e]==n if whole and prune else abs(y[e]-len(drops.idxs))<4*math.sqrt(n/4)+1e-9

@pytest.mark.parametrize('name, values, says', [('cut_line', dict(loss_perc=1.2), 'loss_perc=1.2 is not accepted: give a number from 0 to 1'),
    ('cut_line', dict(epoch=1.5), 'epoch=1.5 is not accepted: give a number from 0 to 8 in steps of 1'),
    ('agreement_at_cut', dict(kept=7), 'kept=7 is not accepted: give a number from 5 to 100 in steps of 5'),
    ('samples_per_epoch', dict(prune=1.), 'prune=1.0 is not accepted: give a number from 0 to 0.95')])
def test_a_value_off_the_slider_gets_one_sentence(name, values, says):
    for call in (lambda: getattr(figures, name)(**values), lambda: getattr(figures, name)().show(**values)):
        with pytest.raises(ValueError) as e: call()
        assert str(e.value)==says

def test_colours_come_with_the_data():
    "The page's scripts hold none; what a figure sends has those of the methods, and draws with no others."
    for name in (*grid,'what_if','rules'): assert not re.findall(r'#[0-9A-Fa-f]{3,8}\b', _drag(f'{name}.js')), name
    for fig in (*(getattr(figures, o)() for o in grid),what_if_figure()):
        sent = fig.data['colors']
        assert all(sent[k]==v for k,v in colors.items() if k in sent) and len(sent)>=8
        for p in fig.show()['panels']:
            drawn = [o['color'] for o in (p['groups'] if p.get('kind')=='images' else p['series']+p['marks'])]
            assert set(drawn)<=set(sent.values()), (fig.name, p['title'])

# ---- the page against Python

def alike(a, b, where):
    if isinstance(a, dict):
        assert a.keys()==b.keys(), where
        for k in a: alike(a[k], b[k], (*where, k))
    elif isinstance(a, (list,tuple)):
        assert len(a)==len(b), where
        for v,w in zip(a, b): alike(v, w, where)
    elif isinstance(a, float) and b is not None: assert math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12), (where, a, b)
    else: assert a==b, where

@pytest.fixture(scope='module')
def page():
    with chromium() as page: yield page

@pytest.mark.browser
def test_the_page_computes_what_python_does(page):
    page.set_content('<!doctype html><title>figures</title>')
    for o in ('frame.js','rules.js',*(f'{name}.js' for name in grid)): page.add_script_tag(content=_drag(o))
    for name in grid:
        fig,tried = getattr(figures, name)(),settings(name)
        shown = page.evaluate('([name, data, tried]) => { const d = BLF.unpack(JSON.parse(data)); return tried.map(o => JSON.stringify(BLF.compute[name](d, o))) }',
                              [name, json.dumps(_pack(fig.data)), tried])
        for values,got in zip(tried, shown): alike(fig.show(**values), json.loads(got), (name, values))

@pytest.mark.browser
def test_every_figure_plays_by_itself(page, tmp_path):
    "Opened as the file that stands alone: it draws, and a move of the first slider changes what it shows and says what Python says."
    errors = []
    page.on('pageerror', lambda o: errors.append(str(o)))
    for name in grid:
        fig = getattr(figures, name)()
        page.goto(fig.save(tmp_path/f'{name}.html').as_uri())
        assert page.locator('.say').inner_text()==fig.show()['say']
        knob = fig.knobs[0]
        key,end = ('End',knob.hi) if knob.value==knob.lo else ('Home',knob.lo)
        page.locator('input').first.press(key)
        assert page.locator('.say').inner_text()==fig.show(**{knob.name: end})['say']!=fig.show()['say']
        assert page.locator('canvas').count()>=len(fig.show()['panels']) and errors==[]
