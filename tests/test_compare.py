"Comparing: the arithmetic by brute force, the same run wherever it runs, an interruption, what is refused, what is not finished."
import itertools, json, math, multiprocessing, random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np, pytest
import blf_explore.compare as compare_module
from blf_explore.all import BatchLossFilter, Comparison, Costs, Record, compare, get_dls, median_interval, rerun, run_one, time_to_reach, verdict

# ---- the arithmetic

@pytest.mark.parametrize('seed', range(20))
def test_time_to_reach_is_where_a_rising_curve_crosses_0(seed):
    rng = np.random.default_rng(seed)
    n = rng.integers(2, 8)
    budgets = np.sort(rng.uniform(.1, 10, n))
    gains = np.sort(rng.normal(rng.choice([-.5, 0, .5]), 1, n))
    fine = np.linspace(math.log(budgets[0]), math.log(budgets[-1]), 200_001)
    reached = np.flatnonzero(np.interp(fine, np.log(budgets), gains)>=0)
    expected = math.exp(fine[reached[0]]) if len(reached) else math.inf
    assert time_to_reach(budgets, gains)==pytest.approx(expected, rel=1e-3)

@pytest.mark.parametrize('seed', range(20))
def test_what_falls_is_levelled(seed):
    "The nearest numbers that never fall, by the min-max formula: of the means from a to b, over all a up to i and b from i on."
    g = np.random.default_rng(seed).normal(size=seed%7+1)
    expected = [max(min(g[a:b+1].mean() for b in range(i, len(g))) for a in range(i+1)) for i in range(len(g))]
    assert compare_module._rising(list(g))==pytest.approx(expected, abs=1e-8)

def test_plain_training_always_reaches_what_plain_training_reaches():
    assert time_to_reach([1,2,4], [.1,-.1,0])==1 # the mean of the three is 0, not a rounding error below

@pytest.mark.parametrize('n', range(1, 15))
def test_the_interval_holds_the_median_as_often_as_it_says(n):
    lo,hi,chance = median_interval(range(n))
    below = [sum(o) for o in itertools.product((0,1), repeat=n)] # how many numbers may lie below the true median, all equally likely
    assert np.mean([lo<b<=hi for b in below])==pytest.approx(chance) # number `lo` is below it, and number `hi` is not
    assert lo+hi==n-1 and (chance>=.9 or n<5)
    if n>=5: assert np.mean([lo+1<b<=hi-1 for b in below])<.9, 'a narrower one would do'

@pytest.mark.parametrize('less, word', [([1,2,3,4,5], 'more'), ([-1,-2,-3,-4,-5], 'less'), ([1,2,3,4,-1], 'none'), ([1,2,3,4,0], 'none'), ([1,2,3,4], 'none'),
                                        ([float('nan')], 'none'), ([-1,1,1,1,1,1,1,1], 'more')]) # of eight one may differ
def test_verdicts(less, word): assert verdict(less)==word

def made_up(acc, shares=(.25,.5,1.), seeds=3, budget_s=8.):
    "A comparison with accuracies {method: {share: one a seed}}."
    rows = [dict(method=m, seed=s, share=o, budget_s=o*budget_s, accuracy=a, ref_s=o*budget_s, wall_s=o*budget_s, n_epoch=4, n_seen=100, n_trained=50,
                 ref_before_s=0., ref_score_s=1., ref_select_s=.1, ref_train_s=2.)
            for m,by in acc.items() for o,accs in by.items() for s,a in enumerate(accs)]
    return Comparison(dict(methods={m: [m, {}] for m in acc}, seeds=list(range(seeds)), shares=list(shares), budget_s=budget_s, data='none', model='none',
                           clock='reference', refine=0, lr=.01, epochs=None, budget=None, cbs=None),
                      dict(bs=8, sizes=[4,8], train=[.01,.02], methods={}, device=''), rows, [], {})

def test_times_faster_by_hand():
    c = made_up({'plain': {.25: [.5]*3, .5: [.7]*3, 1.: [.9]*3}, 'BLF': {.25: [.8]*3, .5: [1.]*3, 1.: [1.]*3}, 'HNM': {.25: [.5]*3, .5: [.6]*3, 1.: [.8]*3}})
    assert c.time_to_target('plain')==pytest.approx(8) and c.time_to_target('BLF')==pytest.approx(2*2**.5) and c.time_to_target('HNM')==math.inf
    assert c.speedup('BLF')==pytest.approx((8**.5,)*3) and c.speedup('HNM')==(0, 0, 0)
    row, = c.table().query("method=='BLF'").to_dict('records')
    assert (row['accuracy'], row['less_plain'], row['kept_pct'], row['differs'])==pytest.approx((1., .1, 50., 'none'))

def test_seeds_are_paired():
    "Each seed is above its own plain run by .01, though the seeds themselves are .1 apart."
    c = made_up({'plain': {1.: [.5,.6,.7,.8,.9]}, 'BLF': {1.: [.51,.61,.71,.81,.91]}}, seeds=5)
    assert c.less_plain('BLF')==pytest.approx([.01]*5)
    assert c.table().differs.tolist()==['none','more']

@pytest.mark.parametrize('acc', [{'plain': {}, 'BLF': {1.: [.9]}}, {'plain': {.5: [.8]}, 'BLF': {.5: [.9]}}, {'plain': {1.: [.8]}, 'BLF': {}},
                                 {'plain': {1.: [.8,.9]}, 'BLF': {.25: [.9]}}, {'plain': {1.: [.8]}, 'BLF': {.25: [.7,.9,.8]}}, {'plain': {}, 'BLF': {}}])
def test_a_comparison_that_is_not_finished_has_a_table_and_says_what_it_does_not_know(acc):
    c = made_up(acc)
    table = c.table()
    assert len(table)==sum(1. in by for by in acc.values())
    for name in acc:
        t,x = c.time_to_target(name),c.speedup(name)[0]
        known = 1. in acc['plain'] and any(acc[name].values())
        assert math.isnan(t)!=known and math.isnan(x)!=known

def test_the_order_is_drawn_for_each_seed_and_the_same_again():
    a = list(compare_module._ladder(['plain','BLF','HNM'], range(4), [.25,.5,1.]))
    assert a==list(compare_module._ladder(['plain','BLF','HNM'], range(4), [.25,.5,1.]))
    assert sorted(a)==sorted(itertools.product(['plain','BLF','HNM'], range(4), [.25,.5,1.]))
    by_seed = [[(m,o) for m,s,o in a if s==i] for i in range(4)]
    assert [s for _,s,_ in a]==sorted(s for _,s,_ in a) and len({tuple(o) for o in by_seed})==4

# ---- runs

small = dict(methods=['HNM','SB'], data='digits', model='mlp', budget=.12, seeds=2, shares=(.5,1.), refine=1, progress=False)
same = ('method','seed','share','accuracy','valid_loss','ref_s','n_epoch','n_trained')
def told(c): return sorted(tuple(r[k] for k in same) for r in c.rows)

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp('done')
    return folder,compare(**small, folder=folder)

def begun(done, tmp_path):
    "A folder with the costs of `done` and none of its runs: costs measured anew would give other budgets."
    c = Comparison.load(done[0]/'comparison.json')
    (tmp_path/'runs').mkdir()
    c.rows,c.curves = [],[]
    c.save(tmp_path/'comparison.json')
    return tmp_path

def test_what_a_comparison_leaves(done):
    folder,c = done
    assert len(list((folder/'runs').iterdir()))==len(c.rows)>=12
    assert told(Comparison.load(folder/'comparison.json'))==told(c)
    for r in c.rows:
        most = .02 # seconds: far above a step
        assert r['budget_s']<=r['ref_s']<r['budget_s']+most
        assert len([o for o in c.curves if (o['method'], o['seed'], o['share'])==(r['method'], r['seed'], r['share'])])==r['n_epoch']

def test_a_run_alone_is_the_run_in_the_comparison(done):
    folder,c = done
    row = c.rows[3]
    job = dict(setup=dict(data=dict(bs=128, name='digits'), model='mlp', lr=1e-2, cbs=None), method=row['method'], spec=tuple(c.settings['methods'][row['method']]),
               seed=row['seed'], share=row['share'], seconds=row['budget_s'], clock='reference', costs=c.costs)
    rec = run_one(job)
    assert [rec.info['run'][k] for k in same]==[row[k] for k in same]
    assert rec.info['run'] in [Record.load(f).info['run'] | dict(wall_s=rec.info['run']['wall_s']) for f in (folder/'runs').iterdir()]

def test_a_comparison_is_tried_again_at_its_own_prices(done):
    c = done[1]
    again = rerun(c, ['SB'], [1]).set_index('method')
    assert list(again.index)==['plain','SB']
    for r in c.rows:
        if r['method'] not in again.index or (r['seed'], r['share'])!=(1, 1.): continue
        now = again.loc[r['method']]
        assert (now.accuracy, now.n_epoch)==(r['accuracy'], r['n_epoch']) and now.kept_pct==pytest.approx(100*r['n_trained']/r['n_seen'])
    with pytest.raises(ValueError, match="methods has 'BLF', which this comparison has no prices for: give some of plain, HNM, SB"): rerun(c, ['HNM','BLF'])
    with pytest.raises(ValueError, match='c is not made of names alone'): rerun(made_up({'plain': {1.: [.5]}}), ['BLF'])

def test_an_interrupted_comparison_goes_on(done, tmp_path, monkeypatch):
    folder,n = begun(done, tmp_path),itertools.count()
    def interrupted(job):
        if next(n)==4: raise KeyboardInterrupt
        return run_one(job)
    monkeypatch.setattr(compare_module, 'run_one', interrupted)
    with pytest.raises(KeyboardInterrupt): compare(**small, folder=folder)
    assert len(Comparison.load(folder/'comparison.json').rows)==len(list((folder/'runs').iterdir()))==4
    c = compare(**small, folder=folder)
    assert next(n)==1+len(c.rows), 'the four that were done are not done again'
    assert told(c)==told(done[1])

@pytest.mark.slow
def test_in_other_processes_it_is_the_same(done, tmp_path):
    with ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as ex: c = compare(**small, folder=begun(done, tmp_path), executor=ex)
    assert told(c)==told(done[1])

@pytest.mark.parametrize('other, names', [(dict(lr=.1), 'lr'), (dict(methods=['HNM']), 'methods'), (dict(seeds=3), 'seeds'), (dict(data=dict(name='digits', bs=64)), 'data'),
                                          (dict(methods={'HNM': ('HNM', dict(sample_perc=.1)), 'SB': 'SB'}), 'methods')])
def test_a_folder_with_other_settings_is_refused(other, names, done):
    with pytest.raises(ValueError, match=f'other {names}'): compare(**small | other, folder=done[0])

def test_what_rho_loss_prepares_is_on_its_bill():
    costs = dict(bs=128, sizes=[64,128], train=[.01,.02], methods={'RHO-LOSS': dict(score=.01, select=.001)}, device='')
    n = len(get_dls('digits', bs=128).train)
    job = dict(setup=dict(data=dict(name='digits', bs=128), model='mlp', lr=1e-2, cbs=None), method='RHO-LOSS', spec=('RHO-LOSS', {}), seed=0, share=1.,
               clock='reference', costs=costs)
    a,b = (run_one(job | dict(seconds=s)).info['run'] for s in (.02*n, .02*n+.1))
    assert a['ref_before_s']==b['ref_before_s']==pytest.approx(.02*n)
    assert a['n_step']==0 and a['accuracy']<.5, 'nothing is left to train with'
    assert b['n_step']==math.ceil(.1/(.01+.001+Costs(**costs).train_s(13))) # scoring 128, training on 10% of them

def test_a_function_and_callbacks_of_ones_own():
    added = []
    def mine(learn): learn.add_cb(BatchLossFilter(.5, plain_every=0, keep_losses=False))
    c = compare({'mine': mine}, data=lambda: get_dls('digits', bs=128), model='mlp', budget=.05, seeds=1, shares=(1.,), refine=0, cbs=lambda: added.append(1), progress=False)
    assert c.settings['methods']['mine'].endswith('mine') and len(c.rows)==2 and added
    assert {r['method']: r['n_trained']<r['n_seen'] for r in c.rows}=={'plain': False, 'mine': True}

def test_progress_counts_down(capsys):
    compare('HNM', data='digits', model='mlp', budget=.03, seeds=1, shares=(.5,), refine=0)
    lines = capsys.readouterr().err.splitlines()
    assert [o.split(' runs')[0] for o in lines]==[f'{i} of 4' for i in range(1, 5)]
    assert all('left' in o for o in lines[:-1]) and 'left' not in lines[-1]

@pytest.mark.parametrize('kwargs, names', [
    (dict(methods=['BFL']), "methods['BFL']='BFL'"), (dict(methods=[]), 'methods is empty'), (dict(methods={'a': 3}), "methods['a']=3"),
    (dict(methods={'a': BatchLossFilter}), "methods['a']="), (dict(methods={'a': ('BLF', dict(loss=.5))}), 'loss=0.5'),
    (dict(methods={'a': ('HNM', dict(sample_perc=2))}), 'sample_perc=2'), (dict(seeds=0), 'seeds=0'), (dict(seeds=[]), 'seeds=[]'), (dict(seeds=[1,1]), 'seeds=[1, 1]'),
    (dict(shares=(.5, 2)), 'shares='), (dict(shares='all'), 'shares='), (dict(epochs=2, budget=3), 'epochs=2 and budget=3'), (dict(epochs=0), 'epochs=0'),
    (dict(budget=float('inf')), 'budget=inf'), (dict(clock='sun'), "clock='sun'"), (dict(refine=-1), 'refine=-1'), (dict(lr='high'), "lr='high'"),
    (dict(data='mnist'), "'mnist'"), (dict(model='vgg'), "'vgg'")], ids=lambda o: str(o)[:40])
def test_bad_input_is_one_sentence_before_anything_is_trained(kwargs, names, tmp_path):
    with pytest.raises(ValueError) as e: compare(**dict(methods=['BLF'], data='digits', model='mlp', folder=tmp_path/'new') | kwargs)
    assert names in str(e.value) and '\n' not in str(e.value)
    assert not (tmp_path/'new').exists()

def test_what_is_no_saved_comparison_is_refused(tmp_path):
    for text in ('', '[]', '{}', json.dumps(dict(format='blf_explore comparison 1', rows=3, what=4))):
        (tmp_path/'c.json').write_text(text)
        with pytest.raises(ValueError, match='is not a saved comparison'): Comparison.load(tmp_path/'c.json')

def test_labels_that_a_file_cannot_be_called_are_files_apart(tmp_path):
    files = {compare_module._file(Path(tmp_path), dict(method=m, seed=0, share=.5)).name for m in ('a b', 'a_b', 'a/b', 'a:b')}
    assert len(files)==4 and all(c.isalnum() or c in '.-_' for o in files for c in o)

def test_random_is_left_alone(done):
    random.seed(3); a = random.random()
    random.seed(3); done[1].speedup('SB', 20)
    assert random.random()==a
