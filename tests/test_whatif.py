"The what-if of a record: beside engine and rule, by brute force; the page's arithmetic beside Python's; what a live run does."
import math, numpy as np, pytest, torch
from blf_explore.all import (Record, hardest, kept_count, load_what_if, pays_back, select, sorted_mass, step_prices, train_s, what_if,
                             what_if_figure)
from drag import assert_page_is_python

grid = [(l,s) for l in (0, .01, .3, .5, .77, .9, .99, 1) for s in (0, .07, .25, .5, .93, 1)]

def made_up(seed=0, epochs=3, sizes=(16,16,7), agreement=True, odd=True):
    "A record of random losses: some equal, some 0, a batch that is not finite, one that was not scored."
    rng = np.random.default_rng(seed)
    rec = Record('BLF', agreement=[dict(kept=[.25,.5,1.], top=sorted(rng.random(2))+[1.], random=sorted(rng.random(2))+[1.]) for _ in range(epochs-1)] if agreement else None)
    rec.info['costs'] = dict(bs=16, sizes=[2,8,16], train=[.03,.05,.11], methods={'BLF': dict(score=.02, select=.001)}, device='')
    for e in range(epochs):
        for i,n in enumerate(sizes):
            losses = (rng.exponential(size=n)*rng.integers(0, 4, n)).round(1).astype(np.float32)
            if odd and (e,i)==(1,0): losses[3] = np.nan
            if odd and (e,i)==(1,1): losses = np.zeros(0, np.float32)
            if odd and (e,i)==(2,0): losses[:] = 0
            rec.losses.append(losses)
            rec.add('batches', epoch=e, batch=e*len(sizes)+i, n_seen=n, n_kept=n)
    return rec

@pytest.mark.parametrize('seed', range(4))
def test_as_many_are_kept_as_the_rules_keep(seed):
    torch.manual_seed(seed)
    for n in (1, 2, 13, 100):
        for losses in (torch.rand(n)**3, torch.randint(0, 3, (n,)).float(), torch.randn(n), torch.zeros(n), torch.tensor([math.inf]*n), torch.tensor([math.nan]+[1.]*(n-1))):
            for l,s in grid:
                if l or s: assert kept_count(sorted_mass(losses.numpy()), l, s)==len(select(losses, l, s).idxs), (losses, l, s)
            if losses.isfinite().all(): assert kept_count(sorted_mass(losses.numpy()), 0, .3)==len(hardest(losses, .3).idxs)

@pytest.mark.parametrize('l,s', [(.9,0), (0,.25), (.5,.5), (1,0)])
def test_an_epoch_by_a_loop(l, s):
    rec = made_up()
    def step(n): # by hand: a straight line between the sizes timed, and on to a step without samples
        for (a,t),(b,u) in (((2,.03),(8,.05)), ((8,.05),(16,.11))):
            if n<=b: return t+(n-a)*(u-t)/(b-a)
    seen,kept,time,plain = [0]*3,[0]*3,[0.]*3,[0.]*3
    for r,losses in zip(rec.rows['batches'], rec.losses):
        e,n = r['epoch'],r['n_seen']
        m = len(select(torch.tensor(losses), l, s).idxs) if len(losses) else n
        seen[e] += n; kept[e] += m
        time[e] += step(m) + (.02*step(n)/.11+.001 if len(losses) else 0)
        plain[e] += step(n)
    w = what_if(rec, l, s)
    assert w.n_seen.tolist()==seen and w.n_kept.tolist()==kept and w.epoch.tolist()==[1,2,3]
    assert w.t_s.tolist()==pytest.approx(time) and w.t_plain_s.tolist()==pytest.approx(plain)
    assert w.kept_pct.tolist()==pytest.approx([100*k/n for k,n in zip(kept, seen)])
    c = rec.info['agreement'][1]
    k = kept[1]/seen[1]
    by_hand = c['top'][0] if k<=.25 else c['top'][0]+(k-.25)/.25*(c['top'][1]-c['top'][0]) if k<=.5 else c['top'][1]+(k-.5)/.5*(1-c['top'][1])
    assert w.sign_agreement[1]==pytest.approx(by_hand) and math.isnan(w.sign_agreement[2]), 'no curve for the last epoch'

def test_paid_back_by_a_loop():
    rng = np.random.default_rng(1)
    for _ in range(200):
        t,p = rng.random(6)+.2,rng.random(6)+.2
        a = b = 0; by_hand = None
        for e in range(6):
            a += t[e]; b += p[e]
            if a<=b and by_hand is None: by_hand = e+1
        assert pays_back(t, p)==by_hand

def test_prices_of_a_run_without_any():
    rec = made_up()
    del rec.info['costs']
    with pytest.raises(ValueError, match='does not say what scoring and a plain step cost'): what_if(rec)
    for i,r in enumerate(rec.rows['batches']): r |= dict(t_score_s=.01*(i%3), t_select_s=.002)
    for t in (.3,.1,.2): rec.add('plain', epoch=0, batch=0, t_train_s=t)
    p = step_prices(rec)
    assert (p['score'],p['select'],train_s(16, p),train_s(4, p),train_s(32, p),train_s(0, p))==pytest.approx((.015,.002,.2,.05,.4,0))

@pytest.mark.parametrize('kw, says', [(dict(loss_perc=1.5), 'loss_perc=1.5 is not accepted'), (dict(sample_perc='x'), "sample_perc='x' is not accepted"),
                                      (dict(loss_perc=0), 'would keep nothing')])
def test_settings_are_refused_in_a_sentence(kw, says):
    with pytest.raises(ValueError, match=says): what_if(made_up(), **kw)

def test_a_record_without_losses_is_refused():
    rec = made_up()
    rec.losses = []
    for f in (what_if, what_if_figure):
        with pytest.raises(ValueError, match='record holds no losses'): f(rec)
        with pytest.raises(ValueError, match='record holds no losses'): f(Record())

@pytest.mark.parametrize('rec', [made_up(7), made_up(8, epochs=9, sizes=(64,64,64,31), odd=False), made_up(9, agreement=False), load_what_if()], ids=['held out','long','no curves','shipped'])
def test_the_page_computes_what_python_computes(rec):
    assert_page_is_python(what_if_figure(rec), [dict(loss_perc=l, sample_perc=s) for l,s in grid])

def test_the_figure_shows_the_what_if():
    fig,w = what_if_figure(),what_if(load_what_if(), .7, .1)
    samples,time,signs = fig.show(loss_perc=.7, sample_perc=.1)['panels']
    assert samples['series'][0]['y']==w.n_kept.tolist()
    assert time['series'][0]['y']==pytest.approx((w.t_s/w.t_plain_s.mean()).tolist()) and time['marks'][1]['at']==pays_back(w.t_s, w.t_plain_s)
    assert signs['series'][0]['y']==pytest.approx((100*w.sign_agreement).tolist())

def test_the_shipped_record_is_small_and_whole():
    from importlib.resources import files
    rec = load_what_if()
    assert files('blf_explore').joinpath('records', 'what-if.npz').stat().st_size<=500_000
    assert sum(map(len, rec.losses))==sum(r['n_seen'] for r in rec.rows['batches']) and len(rec.info['live'])==6
    assert len(rec.info['agreement'])==len(rec.rows['epochs'])>=8 and len(rec.info['agreement'][0]['kept']) in (10,20)
