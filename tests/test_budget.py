"Training within a budget: prices by hand, steps counted by the network itself, schedules that end with the budget, a clock of our own."
import math, types
import pytest, torch
from fastai.basics import Callback
from fastai.callback.schedule import combined_cos
import blf_explore.budget as budget_module
from blf_explore.all import Budget, Costs, HardNegativeMining, SelectiveBackprop, SelectiveTraining, fit_within, unit_costs
from core_tools import blobs, loaders, make_learner, tries_out

prices = Costs(16, [4,8,16], [.010,.015,.020], {'HNM': dict(score=.008, select=.001), 'SB': dict(score=.008, select=.002), 'InfoBatch': dict(score=0., select=.003)})

@pytest.mark.parametrize('n, seconds', [(0, 0.), (4, .010), (6, .0125), (8, .015), (12, .0175), (16, .020),
                                        (2, .0075),   # the line from 4 to 8, prolonged down: .005 without any samples
                                        (24, .025)])  # … and that from 8 to 16, up
def test_the_price_of_a_step_by_hand(n, seconds): assert prices.train_s(n)==pytest.approx(seconds)

def test_a_step_without_samples_costs_nothing_less_than_nothing():
    assert Costs(8, [4,8], [.001,.010]).train_s(1)==pytest.approx(.001/4) # the line would fall below 0

@pytest.mark.parametrize('row, name, by_hand', [
    (dict(n_scored=16, n_trained=8), 'HNM', (.008, .001, .015)),
    (dict(n_scored=8, n_trained=4), 'HNM', (.008*.015/.020, .001, .010)), # scoring falls with the batch as training does
    (dict(n_scored=0, n_trained=16), 'HNM', (0, 0, .020)),                # a plain batch: nothing was chosen
    (dict(n_scored=0, n_trained=8), 'InfoBatch', (0, .003, .015)),        # chooses without scoring
    (dict(n_scored=16, n_trained=0), 'SB', (.008, .002, 0)),              # all of it waits
    (dict(n_trained=16), 'plain', (0, 0, .020))])
def test_the_price_of_a_batch_by_hand(row, name, by_hand):
    assert list(prices.of_batch(row, name).values())==pytest.approx(list(by_hand))

class Counts(Callback):
    "Counts the samples of every forward of the training part of a fit. It is no part of the network: looking at it puts its lists back."
    order = 1000 # after the queue was emptied
    def __init__(self): self.trained,self.scored,self.on = [],[],False
    def before_train(self): self.on = True
    def after_train(self): self.on = False
    def count(self, model, args):
        tried = tries_out(self.learn) and self.learn.selection.selector is not None # a plain fit is not tried out
        if self.on and not tried: (self.trained if model.training else self.scored).append(len(args[0]))

def counted(cb=None):
    counts = Counts()
    learn = make_learner(cbs=[counts, *([cb] if cb else [])])
    learn.model.register_forward_pre_hook(counts.count)
    return learn,counts

own = dict(plain_every=0, keep_losses=False)
epoch = [16]*5+[10] # 90 samples in batches of 16

def plain_steps(seconds):
    "Sizes of the steps that plain training takes until `seconds` are spent."
    res,spent = [],0.
    while spent<seconds-1e-9:
        res.append(epoch[len(res)%6])
        spent += prices.train_s(res[-1])
    return res,spent

@pytest.mark.parametrize('seconds', [.019, .1, .3, .52])
def test_plain_training_takes_the_steps_that_the_prices_say(seconds):
    learn,counts = counted()
    b = Budget(seconds, prices)
    rec = fit_within(learn, b, 1e-2)
    steps,spent = plain_steps(seconds)
    assert counts.trained==steps and counts.scored==[]
    assert b.ref_s==pytest.approx(spent) and seconds<=b.ref_s<seconds+prices.train_s(16)
    assert rec.rows['epochs'][-1]['ref_s']==pytest.approx(spent)
    assert len(rec.rows['epochs'])==rec.info['n_epoch']==math.ceil(len(steps)/6)

def test_the_schedule_runs_by_the_share_of_the_budget():
    learn,_ = counted()
    fit_within(learn, Budget(.3, prices), 1e-2)
    sched,spent = combined_cos(.25, 1e-2/25, 1e-2, 1e-2/1e5),0.
    for n,lr in zip(plain_steps(.3)[0], learn.recorder.lrs, strict=True):
        assert lr==pytest.approx(sched(spent/.3))
        spent += prices.train_s(n)
    assert learn.recorder.lrs[-1]<.1*max(learn.recorder.lrs)

@pytest.mark.parametrize('seconds', [.1, .4])
def test_the_bill_of_scoring_counts_what_the_network_saw(seconds):
    learn,counts = counted(HardNegativeMining(.5, **own))
    b = Budget(seconds, prices, 'HNM')
    fit_within(learn, b, 1e-2)
    assert counts.trained==[math.ceil(n/2) for n in counts.scored]
    assert b.parts['train']==pytest.approx(sum(map(prices.train_s, counts.trained)))
    assert b.parts['score']==pytest.approx(sum(.008*prices.train_s(n)/.020 for n in counts.scored))
    assert b.parts['select']==pytest.approx(.001*len(counts.scored))
    assert seconds<=b.ref_s<seconds+.008+.001+prices.train_s(8)

def test_the_last_steps_of_a_queue_are_on_the_bill():
    learn,counts = counted(SelectiveBackprop(1., warmup=0, **own))
    b = Budget(.5, prices, 'SB')
    rec = fit_within(learn, b, 1e-2)
    rows = rec.rows['batches']
    assert any(n<16 for n in counts.trained), 'no queue was emptied'
    assert sum(r['n_trained'] for r in rows)==sum(counts.trained)
    for i,m in enumerate(b.marks): # at the end of each epoch
        assert m['ref_train_s']==pytest.approx(sum(prices.train_s(r['n_trained']) for r in rows if r['epoch']<=i))

class Ticks(Callback):
    "A clock that only training and validation move."
    def __init__(self): self.now = 100.
    def perf_counter(self): return self.now
    def after_batch(self): self.now += .02 if self.training else .7

@pytest.mark.parametrize('seconds, steps', [(.19, 10), (.2001, 11), (.5, 25)])
def test_on_this_machines_clock_validation_costs_nothing(seconds, steps, monkeypatch):
    ticks = Ticks()
    monkeypatch.setattr(budget_module, 'time', types.SimpleNamespace(perf_counter=ticks.perf_counter))
    learn,counts = counted(ticks)
    b = Budget(seconds, prices, clock='wall')
    rec = fit_within(learn, b, 1e-2)
    assert abs(len(counts.trained)-steps)<=1 # rounding errors of the clock may make it one more
    assert b.wall_s==pytest.approx(.02*len(counts.trained))
    assert rec.rows['epochs'][-1]['wall_s']==pytest.approx(b.wall_s)
    assert learn.recorder.lrs[-1]<1e-3

def test_what_was_spent_before_is_on_the_bill():
    learn,counts = counted()
    b = Budget(.3, prices, spent_ref=.2)
    fit_within(learn, b, 1e-2)
    assert counts.trained==plain_steps(.1)[0] and b.ref_s==pytest.approx(.2+plain_steps(.1)[1])

def test_a_budget_that_is_spent_before_trains_nothing():
    learn,counts = counted()
    rec = fit_within(learn, Budget(.3, prices, spent_ref=.3), 1e-2)
    assert counts.trained==[] and rec.rows['epochs']==[]

def test_costs_are_measured_at_every_size_and_for_each_method():
    dls = loaders(*blobs())
    costs = unit_costs(lambda: make_learner(dls=dls), {'HNM': lambda l: l.add_cb(HardNegativeMining(.5)), 'plain': lambda l: l.add_cb(SelectiveTraining()),
                                                       'SB': lambda l: l.add_cb(SelectiveBackprop())}, rounds=4)
    assert costs.sizes==[2,4,8,12,16] # BatchNorm never gets a single sample; the epoch's sixth batch, of ten, takes nobody's turn
    assert len(costs.train)==5 and min(costs.train)>0
    assert set(costs.methods)=={'HNM','SB'} and all(o['score']>0 and o['select']>0 for o in costs.methods.values()) # SB begins at once

@pytest.mark.parametrize('kwargs, names', [(dict(seconds=0), 'seconds=0'), (dict(seconds=float('nan')), 'seconds=nan'), (dict(seconds='1'), "seconds='1'"),
                                           (dict(seconds=1, clock='sun'), "clock='sun'")])
def test_a_bad_budget_is_one_sentence(kwargs, names):
    with pytest.raises(ValueError, match=names) as e: Budget(costs=prices, **kwargs)
    assert '\n' not in str(e.value)

def test_a_batch_size_of_one_cannot_be_priced():
    with pytest.raises(ValueError, match='bs=1'): unit_costs(lambda: make_learner(dls=loaders(*blobs(), bs=1)), {})

def test_nothing_of_the_budget_outlives_it():
    learn,_ = counted()
    fit_within(learn, Budget(.1, prices), 1e-2)
    assert not learn._grab_cbs(Budget) and torch.is_grad_enabled()
