"Figures of records: every point where its own epoch is."
import json, math, subprocess, sys
from pathlib import Path
import pytest
from blf_explore.gradients import GradientProbe
from blf_explore.engine.record import Record, joined
from blf_explore.page.plots import (accuracy_spec, agreement_spec, band, diverged, epoch_sums, epoch_times, evidence, headlines, kept_share, paid,
    plot_accuracy, plot_agreement, plot_samples, plot_time, samples_so_far, samples_spec, saved, seconds_so_far, time_spec,
    times_beside, verdict)
from core_tools import *

N_ITER,BS = 4,8

def run(batches=(4, 4, 4), accs=(.5, .6, .7), method='BLF', start=0, n_epoch=None, kept=None, no_row=(), n_iter=N_ITER):
    """A run by hand: so many batches an epoch (of four each), and the accuracy at the end of each; None: not validated.
    Batch i keeps 1+i%8 samples, and takes 1 s to train and 1/4 s to score; a plain step takes 2 s."""
    r,i = Record(method, dict(loss_perc=.9), n_epoch=n_epoch or start+len(batches), n_iter=n_iter, bs=BS),0
    shares = dict(sign_agreement=.9, cosine=.9, random_sign_agreement=.8, random_cosine=.8)
    def probe(e): r.add('probes', epoch=e, batch=i, n=9, n_kept=3, **shares)
    probe(start)
    for e,(n,acc) in enumerate(zip(batches, accs), start):
        t = dict(t_score_s=.25, t_select_s=0., t_train_s=1.)
        first = i
        for _ in range(n):
            r.add('batches', epoch=e, batch=i, n_seen=BS, n_kept=1+i%BS if kept is None else kept, finite=True, **t)
            r.add('plain', epoch=e, batch=i, t_train_s=2.)
            i += 1
        probe(e)
        sums = {k: sum(b[k] for b in r.rows['batches'][first:]) for k in ('n_seen','n_kept',*t)}
        if e not in no_row: r.add('epochs', epoch=e, **sums, valid_loss=None if acc is None else 1-acc, accuracy=acc)
    return r

def points(rec, by='epoch', col='accuracy'):
    "[(x, y), …] of a panel of `accuracy_spec`, and that both panels agree on x."
    acc,loss = accuracy_spec({'BLF': rec}, by)['data']
    assert acc['x']==loss['x'] and len(acc['x'])==len(acc['y'])==len(loss['y'])
    return [(x, pytest.approx(y/100)) for x,y in zip(acc['x'], acc['y'])]

# ---- epochs without validation

SPARSE = [(None, .5, None, .75), (.5, None, .75, None), (None, None, None, .75), (None,)*4, (.5, math.nan, None, .75)]

@pytest.mark.parametrize('accs', SPARSE)
@pytest.mark.parametrize('missing', ['None', 'NaN', 'no column'])
def test_points_at_their_own_epochs(accs, missing):
    r = run((4,)*4, accs)
    for row in r.rows['epochs']:
        for k in ('accuracy','valid_loss'):
            if row[k] is None and missing=='no column': row.pop(k)
            elif row[k] is None and missing=='NaN': row[k] = math.nan
    there = [e for e,a in enumerate(accs) if a is not None and a==a]
    kept = [sum(1+i%BS for i in range(4*(e+1))) for e in range(4)]
    assert points(r)==[(e+1, accs[e]) for e in there]
    assert points(r, 'seconds')==[(5*(e+1), accs[e]) for e in there]
    assert points(r, 'samples')==[(kept[e], accs[e]) for e in there]
    for by in 'epoch','seconds','samples': json.dumps(accuracy_spec({'BLF': r}, by), allow_nan=False)
    plot_accuracy({'BLF': r})
    said = headlines({'BLF': r}).get('accuracy')
    if not there: assert said is None
    else:
        n = there[-1]+1
        assert said==[[f'{100*accs[n-1]:.1f}%', 'a'], [f'after epoch {n}', '']]
        assert headlines({'BLF': r}, 'seconds')['accuracy'][-1]==[f'epoch {n}: {5*n:.1f} s', '']

def test_saved_and_loaded(tmp_path):
    r = run((4,)*4, SPARSE[0])
    assert points(Record.load(r.save(tmp_path/'r.npz')))==points(r)

def test_two_runs_validated_at_other_epochs():
    a,b = run((4,)*4, (.1, .2, None, None)),run((4,)*4, (None, .3, .4, None))
    both = headlines({'A': a, 'B': b})['accuracy'] # of the epoch that both have validated
    assert both==[['A ', 'a n'], ['20.0%', 'a'], [' · ', 's'], ['B ', 'b n'], ['30.0%', 'b'], ['after epoch 2', '']]
    c = run((4,)*4, (None, None, None, .4))
    both = headlines({'A': a, 'C': c}, 'samples')['accuracy'] # there is none: each run's own
    assert both[1]==['20.0%', 'a'] and both[4]==['40.0%', 'b'] and both[-1]==['epoch 2 · 4: 36 · 72', '']
    assert 'accuracy' not in headlines({'A': a, 'D': run(accs=(None,)*3)})

def test_probes_without_a_number():
    r = run()
    r.rows['probes'][-1] |= dict(sign_agreement=math.nan, random_sign_agreement=.3)
    assert headlines({'BLF': r})['agreement']==[['90%', 'a'], ['of signs agree; a random pick: 80%', '']]
    for p in r.rows['probes']: p['sign_agreement'] = math.nan
    assert 'agreement' not in headlines({'BLF': r})
    agreement_spec(r)

def test_a_metric_that_is_no_number():
    r = run()
    for row in r.rows['epochs']: row |= dict(per_class=[.1, .2], note='good', passed=True, f1=.5)
    for metric in 'per_class','note':
        with pytest.raises(ValueError, match=f"metric='{metric}' holds a .*'accuracy', 'passed', 'f1'") as e:
            plot_accuracy({'BLF': r}, metric=metric)
        assert '\n' not in str(e.value)
    assert accuracy_spec({'BLF': r}, metric='passed')['data'][0]['y']==[100.]*3
    r.rows['epochs'][1]['f1'] = [.5] # once in another shape: the numbers are drawn
    assert accuracy_spec({'BLF': r}, metric='f1')['data'][0]['x']==[1, 3]
    for row in r.rows['epochs']: row['accuracy'] = [.5]
    assert 'accuracy' not in headlines({'BLF': r})
    assert plot_accuracy({'BLF': r}, metric='no such column').data[0].y in (None, ())

# ---- epochs cut short, or not from the first on

def brute(rec):
    "Where each batch begins, counted by hand."
    seen,res = {},[]
    for b in rec.rows['batches']:
        res.append(b['epoch']+seen.get(b['epoch'], 0)/N_ITER)
        seen[b['epoch']] = seen.get(b['epoch'], 0)+1
    return res

CUT = [dict(batches=(1, 4, 4)), dict(batches=(4, 2, 4)), dict(batches=(4, 4, 1)), dict(batches=(4, 0, 4)),
       dict(batches=(0, 4, 1)), dict(batches=(4, 4, 4), start=2), dict(batches=(4, 2, 4), no_row=(1,)),
       dict(batches=(4, 4, 3), no_row=(2,))]

@pytest.mark.parametrize('kwargs', CUT)
def test_batches_in_their_own_epochs(kwargs):
    r = run(**kwargs)
    begin,batches = brute(r),r.rows['batches']
    x,share = kept_share(r, n_points=10**9)
    assert x.tolist()==pytest.approx([o+.5/N_ITER for o in begin])
    assert share.tolist()==pytest.approx([100*b['n_kept']/BS for b in batches])
    x,share = kept_share(r, n_points=5) # averages over a few batches, of which none reaches over a gap
    step = math.ceil(r.info['n_epoch']*N_ITER/5)
    parts = [[begin[0]]]
    for o in begin[1:]:
        if o-parts[-1][-1]<1.01/N_ITER and len(parts[-1])<step: parts[-1].append(o)
        else: parts.append([o])
    assert x.tolist()==pytest.approx([(o[0]+o[-1]+1/N_ITER)/2 for o in parts])
    s = epoch_sums(r)
    counts = {e: sum(b['epoch']==e for b in batches) for e in s['epoch']}
    assert s['n_batch']==list(counts.values())
    assert s['n_kept']==[sum(b['n_kept'] for b in batches if b['epoch']==e) for e in s['epoch']]
    assert epoch_times(r)==[1.25*n for n in counts.values()]

@pytest.mark.parametrize('kwargs', CUT)
def test_bars_marks_and_probes_in_their_own_epochs(kwargs):
    r = run(**kwargs)
    i,e = len(r.rows['batches'])-1,r.rows['batches'][-1]['epoch']
    r.add('changes', epoch=e, batch=i, setting='loss_perc', old=.9, new=.5)
    spec,begin = samples_spec(r),brute(r)
    assert [o['x0'] for o in spec['layout']['shapes']]==pytest.approx([begin[-1]])
    assert spec['data'][1]['x']==[o+.5 for o in epoch_sums(r)['epoch']]
    start,n = kwargs.get('start', 0),kwargs['batches']
    at = [start, *(start+k+m/N_ITER for k,m in enumerate(n))] # before training, and where each epoch ended
    assert agreement_spec(r)['data'][0]['x']==pytest.approx(at)
    assert time_spec(r)['data'][0]['x']==[pytest.approx(o+.28) for o in epoch_sums(r)['epoch']]
    for f in samples_spec,time_spec,agreement_spec: assert f(r)['layout']['xaxis']['range']==[0, start+len(n)]
    for f in plot_samples,plot_time,plot_agreement: f(r); f(r, run())

def test_cut_epochs_are_paid_for_what_they_did():
    r = run((4, 2, 4))
    assert times_beside(r)==[8., 4., 8.] and paid(r)==pytest.approx([37.5]*3) # 2 s a plain step beside 1.25 s
    assert times_beside(r, run((4, 4, 1), method='plain'))==[5., 2.5, 5.]
    marks = [o['x'] for o in time_spec(run((4, 1, 4)))['layout']['annotations']]
    assert marks==[.5, 2.5] # one batch of four is too little to judge by

def test_a_bar_that_leaves_the_axis_says_how_high_it_is():
    "One slow epoch does not flatten the others, and its figure stands where its bar leaves."
    r = run((4,)*5)
    r.rows['epochs'][1]['t_train_s'] = 100.
    spec = time_spec(r, run((4,)*5, method='plain'))
    top,times = spec['layout']['yaxis']['range'][1],epoch_times(r)
    assert times[1]>top>max(times[:1]+times[2:])
    notes = [o for o in spec['layout']['annotations'] if o['text'].startswith('↑')]
    assert [(o['x'], o['text']) for o in notes]==[(1.28, f'↑{times[1]:.3g}')]
    assert not [o for o in time_spec(run((4,)*5))['layout']['annotations'] if o['text'].startswith('↑')]

def test_up_to_the_end_of_an_epoch():
    "What an epoch without a row of its own took is part of it."
    r = run((4, 2, 4), no_row=(1,))
    assert seconds_so_far(r)==[5., 12.5] and samples_so_far(r)==[1+2+3+4, sum(1+i%BS for i in range(10))]
    assert points(r)==[(1, .5), (3, .7)] and points(r, 'seconds')==[(5., .5), (12.5, .7)]

def test_no_n_epoch_known():
    r = run(start=3)
    r.info.pop('n_epoch')
    assert accuracy_spec({'BLF': r})['layout']['xaxis']['range']==[0, 6]

def test_headlines_of_one_epoch():
    "Two runs that are not equally far: of the last epoch that both have."
    a,b = run((4, 4, 4), kept=4),run((4, 4), kept=2, method='HNM')
    said = headlines({'BLF': a, 'HNM': b})
    assert said['samples'][-1]==['epoch 2: 50% · 25%', ''] and said['accuracy'][-1]==['after epoch 2', '']
    assert said['time'][-1][0]=='±0% vs B: too close to call; vs plain −38% · −38%' # 4 batches of .3 s beside 4 plain ones
    assert ''.join(t for t,_ in said['samples'][:-1])=='BLF 4 · HNM 2 of 8'
    b.rows['batches'][-1]['n_seen'] = 5 # its last batch was a smaller one
    assert [t for t,_ in headlines({'BLF': a, 'HNM': b})['samples']][1:5:3]==['4 of 8', '2 of 5']
    c = run((4,), start=7) # no epoch in common
    said = headlines({'BLF': a, 'HNM': c})
    assert 'time' not in said and not any('epoch' in t for t,_ in said['samples'])
    assert said['accuracy'][-1]==['after epoch 3 · 8', '']
    assert headlines({'BLF': run((4, 1, 4))})['samples'][-1][0].startswith('in the last batch; epoch 3: ')

# ---- several fits

def test_joined_fits():
    r = joined([run((4,), (.5,)), run((4, 4), (.6, .7))])
    assert points(r)==[(1, .5), (2, .6), (3, .7)] and points(r, 'seconds')==[(5, .5), (10, .6), (15, .7)]
    assert kept_share(r, n_points=10**9)[0].tolist()==pytest.approx([(i+.5)/4 for i in range(12)])
    assert agreement_spec(r)['data'][0]['x']==[0, 1, 1, 2, 3] and samples_spec(r)['layout']['xaxis']['range']==[0, 3]
    assert headlines({'BLF': r})['accuracy'][-1]==['after epoch 3', '']
    for f in plot_samples,plot_time,plot_agreement: f(r); f(r, run((4, 4, 4), method='plain'))

def test_joined_fits_of_other_batch_sizes(tmp_path):
    # the second fit has two batches an epoch, and was cut in its last
    r = joined([run((4,), (.5,)), run((2, 1), (.6, .7), n_iter=2)])
    r = Record.load(r.save(tmp_path/'r.npz'))
    assert kept_share(r, n_points=10**9)[0].tolist()==pytest.approx([.125, .375, .625, .875, 1.25, 1.75, 2.25])
    s = epoch_sums(r)
    assert s['n_iter']==[4, 2, 2] and s['n_batch']==[4, 2, 1] and times_beside(r)==[8., 4., 2.]
    assert samples_spec(r)['layout']['yaxis']['range'][1]==pytest.approx(1.2*N_ITER*BS) # headroom for the words at a moved slider

def test_no_torch():
    code = "import sys, blf_explore.page.plots; print([o for o in ('torch','fastai') if o in sys.modules])"
    root = Path(__file__).parent.parent
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip()=='[]'

# ---- a record of a real run

@pytest.fixture(scope='module')
def a_run(): return fit_quietly(make_learner(cbs=[BatchLossFilter(.6), GradientProbe(40)])).record

def test_sums_are_those_of_the_batches(a_run):
    by_epoch = a_run.batches.groupby('epoch')
    assert epoch_sums(a_run)['n_kept']==by_epoch.n_kept.sum().tolist()
    times = a_run.batches[['t_score_s','t_select_s','t_train_s']].sum(axis=1).groupby(a_run.batches.epoch).sum().cumsum()
    assert seconds_so_far(a_run)==pytest.approx(times.tolist())

def test_samples_kept_are_drawn_epoch_by_epoch(a_run):
    bars = next(o for o in plot_samples(a_run).data if o.type=='bar' and list(o.y)==epoch_sums(a_run)['n_kept'])
    assert len(bars.x)==3

@pytest.mark.parametrize('plot', [plot_samples, plot_time, plot_agreement])
def test_every_figure_has_an_axis_with_a_name_and_a_trace(a_run, plot):
    fig = plot(a_run)
    assert fig.layout.xaxis.title.text and fig.layout.yaxis.title.text and any(o.y is not None and len(o.y) for o in fig.data)

def test_accuracy_is_the_records(a_run):
    fig = plot_accuracy({'BLF': a_run}, metric='accuracy_')
    assert [list(o.y) for o in fig.data if o.y is not None and len(o.y)==3][0]==pytest.approx((100*a_run.epochs.accuracy_).tolist()) # percent

# ---- the answer

def timed(*seconds, method='BLF', accs=None, losses=None, **info):
    "A run of one batch an epoch, with these times."
    r = Record(method, dict(loss_perc=.9), n_epoch=len(seconds), n_iter=1, bs=8, **info)
    for e,t in enumerate(seconds):
        row = dict(epoch=e, n_seen=8, n_kept=2 if method=='BLF' else 8, t_score_s=t/4, t_select_s=0., t_train_s=3*t/4)
        r.add('batches', batch=e, finite=True, n_trained=8, train_loss=losses[e] if losses else 1., **row)
        r.add('epochs', valid_loss=1., accuracy=accs[e] if accs else .5, **row)
    return r

def plain(*seconds, **kw): return timed(*seconds, method='plain', **kw)

@pytest.mark.parametrize('savings, says', [
    ([10, 20, 30], 'too close to call'), # 20 +- 4.30*10/sqrt(3) = 24.8
    ([10, 20, 30, 10, 20, 30], 'it paid'), # 20 +- 2.57*8.94/sqrt(6) = 9.4
    ([-10, -20, -30, -10, -20, -30], 'it did not pay'), ([52, -2, 1, 0, 2, -1], 'too close to call'), # one slow epoch of the other's
    ([50], 'too close to call'), ([5, 5], 'it paid'), ([0, 0, 0], 'too close to call')], ids=str)
def test_it_paid_only_beyond_the_spread_of_its_epochs(savings, says):
    d = saved(timed(*[1-o/100 for o in savings]), plain(*[1.]*len(savings)))
    n,mean = len(savings),sum(savings)/len(savings)
    assert (d.n,d.says)==(n, says) and d.pct==pytest.approx(mean)
    assert d.overhead==pytest.approx((100-mean)/4) # a quarter of each epoch is scoring
    if n>1:
        t = {2: 12.71, 3: 4.30, 6: 2.57}[n]
        assert d.spread==pytest.approx(t*math.sqrt(sum((o-mean)**2 for o in savings)/(n-1)/n))
    text = headlines({'BLF': timed(*[1-o/100 for o in savings]), 'plain': plain(*[1.]*n)})['time']
    assert text[0][0]==f'{-mean:+.0f}%'.replace('-', '−') and f"plain, {n} epoch{'s'*(n>1)}: {says}; overhead" in text[1][0]

def test_time_is_of_the_whole_run():
    "Epochs of other lengths count by their lengths."
    d = saved(timed(1., 8.), plain(2., 10.))
    assert d.pct==pytest.approx(25.) # 9 of 12 seconds
    assert saved(run((4, 4, 1)), run((4, 4, 1), method='plain', kept=BS)).n==2 # the third has hardly begun
    assert saved(run((1,))).n==1 and saved(timed(1.)) is None # nothing was measured beside it

def test_an_epoch_of_fewer_batches_is_beside_a_whole_one():
    "InfoBatch and SeTa leave samples out of the epoch: half of the batches, half of the time."
    r,p = run((2, 2), (.5, .6)),run((4, 4), (.5, .6), method='plain', kept=BS)
    r.info['n_iter'] = 4
    for o in r.rows['batches']+r.rows['epochs']: o['n_iter'] = 2
    assert times_beside(r, p)==[5., 5.] and times_beside(r)==[8., 8.] and paid(r, p)==[50., 50.] # 2 s a plain step that was sampled
    assert times_beside(p, r)==[2.5, 2.5] and saved(r, p).pct==50
    dark = next(o for o in time_spec(r)['data'] if o['name']=='plain')
    assert dark['y']==[8., 8.]

def test_the_answer_of_one_seed():
    a,b = timed(*[.8]*6, accs=[.5]*5+[.881]),plain(*[1.]*6, accs=[.5]*5+[.884])
    says = 'BLF took 4.8 s beside plain’s 6.0 s (20% less: it paid), trained on 25% of the samples and reached 88.1% beside 88.4%; of one seed: run more to be sure.'
    assert verdict({'BLF': a, 'plain': b})==says==verdict({'plain': b, 'BLF': a}) # the one that selects is judged
    assert verdict({'BLF': timed(*[.8]*5, accs=[.5]*5), 'plain': b})!='' and verdict({})==''
    b.info['n_epoch'] = 7
    assert verdict({'BLF': a, 'plain': b})=='' # it has not ended
    b.info['n_epoch'] = 6
    a.add('changes', epoch=1, batch=1, setting='loss_perc', old=.9, new=.5)
    assert verdict({'BLF': a, 'plain': b})==says[:-1]+'; a slider was moved on the way.'
    b.rows['batches'][-1]['train_loss'] = math.nan
    assert verdict({'BLF': a, 'plain': b})=='plain got out of hand: its losses are no numbers, from epoch 6 on: give a lower learning rate.'

def test_the_answer_of_several_seeds():
    def pair(t, gain): return [timed(*[t]*3, accs=[.5,.5,.8+gain/100]), plain(*[1.]*3, accs=[.5,.5,.8])]
    pairs = [pair(t, g) for t,g in ((.9, -.2), (.8, -.3), (.7, -.4), (.95, -.1), (.6, -.9))]
    def answer(ps): return verdict(dict(zip(('BLF','plain'), ps[-1])), ps[:-1])
    assert answer(pairs)==('In the median of 5 seeds BLF took 20% less time than plain (−40% to −5%): it paid; it trained on 25% of the samples '
                           'and ended −0.3 points of accuracy beside plain (−0.9 to −0.1): less accurate.')
    assert ': ' not in answer(pairs[:4]) and answer(pairs[:4]).endswith('; fewer than five seeds decide nothing.')
    mixed = answer([*pairs[:4], pair(1.1, .1)])
    assert mixed.count('too close to call')==2 and 'decide nothing' not in mixed
    swapped = verdict(dict(zip(('plain','BLF'), pairs[-1][::-1])), [o[::-1] for o in pairs[:-1]])
    assert swapped==answer(pairs)

@pytest.mark.parametrize('losses, says', [
    ([2.3, 1., .5, .2, .1, .1, .1], ''), ([2.3, 1., math.nan, math.nan], 'its losses are no numbers, from epoch 3 on'), ([2.3, math.inf, math.inf], 'its losses are no numbers, from epoch 2 on'),
    ([2.3, 99., 99., 99., 99., 99.], 'its losses are more than ten times as high as in the first batch, from epoch 2 on'), ([2.3, 2., 2., 2., 99., 2., 2.], ''),
    ([.1, 2., 2.], ''), ([], '')], ids=str)
def test_a_run_whose_losses_get_out_of_hand(losses, says):
    r = timed(*[1.]*len(losses), losses=losses)
    assert diverged(r)==says+(': give a lower learning rate' if says else '')
    r.add('batches', epoch=len(losses), batch=len(losses), n_seen=8, n_kept=2, n_trained=0, finite=True, train_loss=math.nan, t_score_s=0., t_select_s=0., t_train_s=0.)
    assert diverged(r)==says+(': give a lower learning rate' if says else '') # a queue that waits has no loss
    for f in samples_spec,time_spec,agreement_spec: f(r)
    tops = accuracy_spec({'BLF': r})['layout']
    assert all(math.isfinite(o) for axis in ('yaxis','yaxis2') for o in tops[axis]['range'])
    assert diverged(run())=='' # a record without losses

def test_a_run_that_has_learned_nothing_says_so():
    "Ten classes, chance to the end, and a loss as at the beginning; but not a second fit of a network that was good already."
    def ended(acc, first, valid):
        r = timed(1., 1., accs=[.1, acc], losses=[first, 2.])
        r.rows['epochs'][-1]['valid_loss'] = valid
        return r
    assert diverged(ended(.1, 2.3, 2.4)).startswith('its validation loss ended no lower')
    assert diverged(ended(.1, 2.3, 2.2))==diverged(ended(.9, .1, .3))==''
    r = ended(.1, 2.3, 2.4)
    r.info['n_epoch'] = 3
    assert diverged(r)=='', 'it may still learn'

def test_methods_that_choose_before_an_epoch_are_not_spoken_of_by_batches():
    "What a batch of InfoBatch kept of 'its part' of the samples means nothing to anyone: the epoch's share does."
    r = run((4, 4), kept=4, method='InfoBatch')
    assert headlines({'InfoBatch': r})['samples']==[['50%', 'a'], [f'in epoch 2, of {4*BS} samples', '']]
    both = headlines({'InfoBatch': r, 'HNM': run((4, 4), kept=2, method='HNM')})['samples']
    assert [o for o,_ in both if '%' in o or ' of ' in o]==['50%', '2 of 8', 'epoch 2: 50% · 25%']

def test_two_that_select_are_beside_one_plain_step():
    "Each sampled its own plain steps; two equal runs are equally far from plain, whatever these were."
    a,b = run((4, 4), method='SeTa'),run((4, 4), method='SeTa')
    for o in b.rows['plain']: o['t_train_s'] *= 3
    text = headlines({'A': a, 'B': b})['time'][-1][0]
    x,y = text.rpartition('vs plain ')[2].split(' · ')
    assert x==y==f'{100*(1.25/4-1):+.0f}%'.replace('-', '−') # 1.25 s a step beside 4 s, the median of 2 and 6

def test_an_epoch_that_took_about_as_long_is_marked_as_such():
    spec = time_spec(timed(.5, .97, 1.03, 1.5), plain(1., 1., 1., 1.))
    assert [o['text'] for o in spec['layout']['annotations']]==['<b>✓</b>', '≈', '≈', '✗']

def test_the_band_of_seeds():
    b = band([run(accs=(.5, None, .7)), run(accs=(.1, .2, .3)), run((4, 4), (.4, .6))])
    assert b==dict(x=[1, 2, 3], median=[.4, pytest.approx(.4), .5], low=[.1, .2, .3], high=[.5, .6, .7], n=[3, 2, 2]) and band([])['x']==[]

def test_what_was_measured_before_is_the_shipped_records():
    import numpy as np
    folder = Path(__file__).parent.parent/'blf_explore'/'records'
    results = [json.loads((folder/f'claims-{o}.json').read_text('utf-8')) for o in ('quick','full')]
    rows = {r['key']: r['figures'] for r in results[0]['rows']}
    s = dict(name='digits', network='convnet', method='SB', other='plain', label_noise=0., redundancy=0.)
    def number(v): return f'{np.median(v):+.1f}'.replace('-', '−')
    cases = [({}, rows['no-train']['whole']['SB'], 4), (dict(label_noise=.2), rows['wrong-labels']['above_plain']['20%']['SB'], 2),
             (dict(redundancy=.9), rows['redundancy']['above_plain']['90%']['SB'], 2)]
    for new,points,epochs in cases:
        said = evidence(s | new, results)
        assert f'SB {number(points)} points (' in said and f'in the time of {epochs} plain epochs (5 seeds, default sliders, batches of ' in said
        assert 'batches' not in evidence(s | new | dict(bs=results[0]['settings']['bs']), results)
        assert (' in every seed' in said)==(min(points)>0 or max(points)<0)
    race = evidence(s | dict(other='HNM'), results)
    assert f"SB {number(rows['no-train']['whole']['SB'])}" in race and f"HNM {number(rows['no-train']['whole']['HNM'])}" in race
    big = evidence(s | dict(name='fashion_mnist', method='BLF'), results)
    assert f"BLF {number(results[1]['rows'][0]['figures']['points']['100%']['BLF'])}" in big and 'in the time of 8 plain epochs' in big
    photos = json.loads((folder/'claims-full-cifar10.json').read_text('utf-8')) # half of the budget
    assert 'in the time of 4 plain epochs' in evidence(s | dict(name='cifar10', method='BLF'), [*results, photos])
    for new in (dict(network='mlp'), dict(name='cifar10'), dict(label_noise=.104), dict(label_noise=.2, redundancy=.5), dict(method='plain')):
        assert evidence(s | new, results)=='The package has no evidence on this set-up: it was not measured.'
