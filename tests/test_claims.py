"The claims: rules on made-up numbers, rows that are all there, a small run from end to end, records and README in step."
import json, math
from pathlib import Path
import numpy as np, pytest
from blf_explore.engine.knobs import methods
from blf_explore.budget import Costs
from blf_explore.compare import Comparison
from blf_explore import claims as C
from blf_explore.claims import claims, judged, load_claims, load_runs, plan, record_name, run_claims, scales, shipped
from blf_explore.page.evidence import (claim_spec, claims_command, claims_options, claims_page, readme_table, with_table)
from blf_explore.page.cli import CommandError

root = Path(__file__).resolve().parent.parent
UP,DOWN,MIXED = [1,2,1,3,1],[-1,-2,-1,-3,-1],[1,-1,1,2,-2]
VERDICTS = {'holds','does not hold','too close to call','not run here'}

@pytest.mark.parametrize('judge', [lambda x: C.judge_more(x), lambda x: C.judge_less([-o for o in x]), lambda x: C.judge_least([o+7 for o in x], 7),
                                   lambda x: C.judge_most([7-o for o in x], 7)])
def test_a_difference_counts_if_every_one_of_five_seeds_has_it(judge):
    for signs in range(32): # all ways for five differences to lie
        x = [(1+i)*(1 if signs>>i&1 else -1) for i in range(5)]
        assert judge(x)==('holds' if min(x)>0 else 'does not hold' if max(x)<0 else 'too close to call')
    assert judge([1,2,3,4])==judge([5])=='too close to call' # fewer than five never differ

# each row on made-up numbers, for each of its outcomes
s = lambda x, k=1.: [k*o for o in x]
cases = dict(
    brief=[(dict(brief=UP), 'holds'), (dict(brief=DOWN), 'does not hold'), (dict(brief=MIXED), 'too close to call')],
    target=[(dict(times=dict(BLF=[1.2,.9,1.4], HNM=[1.5,1.1,2.])), 'holds'), (dict(times=dict(BLF=[.8,.5,.9], HNM=[0,0,.9])), 'does not hold'),
            (dict(times=dict(BLF=[1.1,.9,1.4], HNM=[.8,.5,.9])), 'too close to call')],
    flat=[(dict(flat=DOWN), 'holds'), (dict(flat=UP), 'does not hold'), (dict(flat=MIXED), 'too close to call'), (dict(flat=[.25,-.1,.2,0,.1]), 'holds')],
    payback=[(dict(epoch=[3,5,4,9,4]), 'holds from epoch 4 on'), (dict(epoch=[None]*5), 'does not hold'), (dict(epoch=[3,None,4,4,4]), 'too close to call')],
    share=[(dict(cost_at_half=[.8,.9,.7,.9,.99]), 'holds'), (dict(cost_at_half=[1.1]*5), 'does not hold'), (dict(cost_at_half=[.9,1.1,.9,.9,.9]), 'too close to call')],
    bound=[(dict(epochs=[0,4], log10=[UP,UP]), 'holds'), (dict(epochs=[0,4], log10=[DOWN,UP]), 'holds from epoch 4 on'),
           (dict(epochs=[0,4], log10=[UP,DOWN]), 'does not hold'), (dict(epochs=[0,4], log10=[UP,MIXED]), 'too close to call')],
    signs=[(dict(epochs=[0,4], top=[[90]*5,[81]*5]), 'holds'), (dict(epochs=[0,4], top=[[50]*5,[81,90,85,88,82]]), 'holds from epoch 4 on'),
           (dict(epochs=[0,4], top=[[90]*5,[79]*5]), 'does not hold'), (dict(epochs=[0,4], top=[[90]*5,[81,79,85,88,82]]), 'too close to call')],
    mixup=[(dict(diff=DOWN), 'holds'), (dict(diff=UP), 'does not hold'), (dict(diff=MIXED), 'too close to call')],
    beta=[(dict(diff=DOWN), 'holds'), (dict(diff=UP), 'does not hold'), (dict(diff=MIXED), 'too close to call')],
    imagewoof=[(dict(BLF=[1.4,1.1,1.9]), 'holds'), (dict(BLF=[.8,.5,.9]), 'does not hold'), (dict(BLF=[0,0,0]), 'does not hold'), (dict(BLF=[1.1,.9,1.4]), 'too close to call')],
    redundancy=[(dict(levels=['0%','90%'], diff=[MIXED,UP]), 'holds from 90% on'), (dict(levels=['0%','90%'], diff=[UP,UP]), 'holds'),
                (dict(levels=['0%','90%'], diff=[UP,DOWN]), 'does not hold'), (dict(levels=['0%','90%'], diff=[UP,MIXED]), 'too close to call')])
cases |= {'blf-or-hnm': [({'HNM': UP, 'HNM .25': UP}, 'holds'), ({'HNM': UP, 'HNM .25': DOWN}, 'does not hold'), ({'HNM': UP, 'HNM .25': MIXED}, 'too close to call')],
    'report-time': [(dict(saved=[16,15.3,20,17,19]), 'holds'), (dict(saved=[1,2,3,-4,15.1]), 'does not hold'), (dict(saved=[10,20,20,20,20]), 'too close to call')],
    'report-loss': [(dict(loss=DOWN, rough=DOWN), 'holds'), (dict(loss=DOWN, rough=UP), 'does not hold'), (dict(loss=DOWN, rough=MIXED), 'too close to call')],
    'report-kept': [(dict(kept=[9,10,11,11.9,8]), 'holds'), (dict(kept=[13]*5), 'does not hold'), (dict(kept=[11,13,13,13,13]), 'too close to call')],
    'custom-loss': [(dict(top25=[.95]*5), 'holds'), (dict(top25=[.5]*5), 'does not hold'), (dict(top25=[.8,.95,.8,.95,.8]), 'too close to call')],
    'wrong-labels': [(dict(levels=['10%','40%'], diff=[MIXED,DOWN]), 'holds from 40% on'), (dict(levels=['10%','40%'], diff=[DOWN,DOWN]), 'holds'),
                     (dict(levels=['10%','40%'], diff=[DOWN,UP]), 'does not hold'), (dict(levels=['10%','40%'], diff=[DOWN,MIXED]), 'too close to call')],
    'no-train': [(dict(whole={'SB': DOWN, 'RHO-LOSS': DOWN}), 'holds'), (dict(whole={'SB': UP, 'RHO-LOSS': DOWN}), 'does not hold'),
                 (dict(whole={'SB': MIXED, 'RHO-LOSS': DOWN}), 'too close to call')]}
cases |= {k: [(dict(diff=UP), 'holds'), (dict(diff=DOWN), 'does not hold'), (dict(diff=MIXED), 'too close to call')]
          for k in ('sb-bound','tau','anneal-gentle','anneal-selective','core-set')}

@pytest.mark.parametrize('key', claims)
def test_rule_on_made_up_numbers(key):
    for numbers,want in cases[key]: assert claims[key].judge(numbers)==want, (key, numbers)

def test_every_row_of_the_issue_is_there():
    assert set(claims)=={'brief','target','flat','blf-or-hnm','payback','share','report-time','report-loss','report-kept','bound','sb-bound','tau','anneal-gentle',
        'anneal-selective','signs','custom-loss','mixup','core-set','beta','imagewoof','wrong-labels','redundancy','no-train'}==set(cases)
    for c in claims.values(): assert c.question.endswith('?') and c.claimed and c.measured and c.rule

@pytest.mark.parametrize('scale', scales)
def test_what_rows_need_is_planned_with_every_method_of_the_table(scale):
    p = plan(scales[scale])
    for o in ['main', *(o for o in p if o.startswith(('noise ','redundancy ')))]: assert set(methods)-{'plain'}<=set(p[o]['methods'])
    for c in claims.values():
        for name,labels in c.needs.items():
            if name in p and labels: assert set(labels)<=set(p[name]['methods'])
            assert name in p or name in ('costs','looks','loss','noise','redundancy','imagewoof','target')
    if scale!='small': assert {'noise 10%','noise 20%','noise 40%'}<=set(p) # as the thread asks; the middle scale leaves one out
    assert 'redundancy 90%' in p
    assert 'imagewoof' in plan(scales[scale], 'imagewoof', 'folder')

def test_only_what_is_needed_is_run():
    p = plan(scales['quick'])
    assert C.needed(['mixup'], p).keys()=={'main','mixup'} and set(C.needed(['mixup'], p)['main']['methods'])=={'BLF'}
    assert set(C.needed(['mixup','no-train'], p)['main']['methods'])==set(p['main']['methods'])
    assert set(C.needed(['share','signs'], p))=={'costs','looks'}
    assert C.cost_epochs(dict(methods={'a': 'BLF', 'b': 'SB'}, epochs=4, shares=(.5, 1.)), 5)==3*5*4*1.5

def test_rows_come_in_their_own_order(monkeypatch):
    "Whatever the order they were asked in: a record is read beside others."
    monkeypatch.setattr(C, '_all_runs', lambda *args: ({}, None))
    monkeypatch.setattr(C, 'judged', lambda key, runs: dict(key=key, figures={}, plot=None))
    res = C.run_claims('quick', only=['signs','bound','share'], progress=False, budget=.5)[0]
    assert [r['key'] for r in res['rows']]==['share','bound','signs']
    assert (res['settings']['epochs'], res['settings']['long'])==(2, 7), 'what was trained, not what a whole budget would have been'

def made_up(acc, curves=(), seeds=5, **settings):
    "A comparison whose accuracy is `acc(method, seed, share)`."
    names = settings.pop('names')
    rows = [dict(method=m, seed=i, share=o, accuracy=acc(m, i, o), n_seen=200 if m=='BLF' else 100, n_trained=50, budget_s=10*o)
            for m in names for i in range(seeds) for o in settings.get('shares', (.5, 1.))]
    return Comparison(dict(methods=dict.fromkeys(names), seeds=list(range(seeds)), budget_s=10., epochs=4, shares=(.5, 1.)) | settings, {}, rows, list(curves))

def test_numbers_are_differences_of_the_same_seed():
    c = made_up(lambda m, i, o: .5+.1*i+(.01*(i+1)*o if m=='BLF' else 0), names=['plain','BLF'])
    assert np.allclose(C.points(c, 'BLF'), [1,2,3,4,5]) and np.allclose(C.points(c, 'BLF', share=.5), [.5,1,1.5,2,2.5])

def test_a_method_is_compared_with_a_plain_run_that_was_cut_off_too():
    curves = [dict(method='plain', seed=i, share=1., epoch=e, ref_s=s, accuracy=a) for i in range(5) for e,(s,a) in enumerate([(2,.3),(5.2,.5),(9.9,.8)])]
    c = made_up(lambda m, i, o: .7 if m=='plain' and o<1 else .8, curves, names=['plain','SB','RHO-LOSS'])
    f,_ = C.read_gains(dict(main=c))
    assert np.allclose(f['half']['SB'], 10) and np.allclose(f['half_cut_off']['SB'], 30) and np.allclose(f['whole']['SB'], 0) and (f['more'], f['less'])==(0, 0)

def test_time_to_plains_accuracy_is_read_from_its_own_comparison():
    "Plain reaches 90% with its whole budget alone. Whoever reaches it with .4 of it takes 2.5 times less; whoever never does, 0."
    def acc(m, i, share): return dict(plain=.85+.05*(share==1.), BLF=.7, HNM=.9)[m]+.001*i
    numbers,plot = C.read_target(dict(target=made_up(acc, names=('plain','BLF','HNM'), shares=(.4, .7, 1.))))
    assert numbers['times']['HNM']==pytest.approx([2.5]*3) and numbers['times']['BLF']==[0,0,0]
    assert numbers['points']['40%']['HNM']==pytest.approx([5]*5) and numbers['points']['100%']['BLF']==pytest.approx([-20]*5)
    assert 'BLF never, HNM 2.50' in C.claims['target'].say(numbers)
    assert C.claims['target'].judge(numbers)=='holds' and plot['line']==pytest.approx(90.2) and plot['lines']['HNM']['x']==[40,70,100]

def test_levels_begin_with_the_half_of_main():
    names = ['plain','BLF','HNM','SB','InfoBatch']
    main = made_up(lambda m, i, o: .5 if m=='plain' else .5+.01*(o==.5)+.02*(m=='BLF')*(o==.5), names=names)
    noisy = made_up(lambda m, i, o: .5 if m=='plain' else .44, names=names)
    f,plot = C.read_levels({'main': main, 'noise 10%': noisy})
    assert np.allclose(f['first'], 5/3) and np.allclose(f['diff'], [[-6-5/3]*5]) and set(plot['lines'])=={'BLF','HNM','SB','InfoBatch'} # 1 point, BLF 3
    assert C.claims['wrong-labels'].judge(f)=='holds'

def test_payback_roughness_and_the_share_that_pays_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(50):
        t = rng.uniform(.7, 1.3, 12).cumsum()
        ok = [all(t[j]<=j+1 for j in range(i, 12)) for i in range(12)]
        assert C.paid_back_for_good(t, 1.)==(ok.index(True)+1 if any(ok) else None)
    x = rng.normal(size=11)
    assert math.isclose(C.roughness(x), sum(abs(x[i+1]-2*x[i]+x[i-1]) for i in range(6, 10))/4)
    assert math.isnan(C.roughness([1,2]))
    costs = Costs(100, [50,100], [.6,1.], dict(BLF=dict(score=.3, select=.1), dear=dict(score=2., select=0.)))
    assert abs(C.pays_below(costs, 'BLF')-.5)<=.0051 and C.pays_below(costs, 'dear')==0 # .4 + train(50) = 1

def test_all_that_score_by_the_loss_have_one_price(monkeypatch):
    measured = iter([Costs(64, [32,64], [.5,1.], dict(BLF=dict(score=.2, select=.01), late=dict(score=.4, select=.03), bound=dict(score=.9, select=0.)), 'here'),
                     Costs(64, [32,64], [.7,2.], dict(BLF=dict(score=.6, select=.02), late=dict(score=.6, select=.01), bound=dict(score=.5, select=0.)), 'here'),
                     Costs(64, [32,64], [.6,1.], dict(BLF=dict(score=.3, select=.05), late=dict(score=.1, select=.02), bound=dict(score=.7, select=0.)), 'here')])
    monkeypatch.setattr(C, 'unit_costs', lambda *_: next(measured))
    got = C.prices({}, dict(BLF='BLF', late=('HNM', dict(interrupt=2)), bound=('SB', dict(score=len))))
    c = got['costs'] # scoring in plain steps: .2 .4 | .3 .3 | .3 .1
    assert c['train']==[.6,1.] and math.isclose(got['spread'], 4)
    assert {k: (round(v['score'], 9), v['select']) for k,v in c['methods'].items()}==dict(BLF=(.3,.02), late=(.3,.02), bound=(.7,0.))

def test_double_precision_looks_agree_with_one_backward_per_sample():
    import torch
    from torch import nn
    torch.manual_seed(0)
    m,x,y = nn.Sequential(nn.Linear(5,4), nn.ReLU(), nn.Linear(4,3)),torch.randn(20,5),torch.randint(3,(20,))
    got = C.look_at(m, nn.CrossEntropyLoss(), x, y)
    m,grads,losses = m.double(),[],[]
    for i in range(20):
        loss = nn.functional.cross_entropy(m(x[i:i+1].double()), y[i:i+1])
        losses.append(loss.item())
        grads.append(torch.cat([o.flatten() for o in torch.autograd.grad(loss, m.parameters())]))
    G,l = torch.stack(grads),torch.tensor(losses).double()
    norm,z = G.norm(dim=1),(m(x.double()).softmax(1)-nn.functional.one_hot(y, 3)).norm(dim=1).detach()
    sse = lambda o: ((o/o.sum()-norm/norm.sum())**2).sum().item()
    assert math.isclose(got['loss_sse'], sse(l), rel_tol=1e-6) and math.isclose(got['bound_sse'], sse(z), rel_tol=1e-6)
    ref = G.mean(0)
    top = G[l.topk(2).indices].mean(0)
    assert math.isclose(got['top_signs'], ((top.sign()==ref.sign())&(ref!=0)).sum().item()/(ref!=0).sum().item())

@pytest.mark.parametrize('kw,says', [(dict(scale='large'), "scale='large'"), (dict(only=['sines']), "only='sines'"), (dict(only='signs'), "only='signs'"), (dict(data='x'), "data='x'"),
                                     (dict(seeds=0), 'seeds=0'), (dict(workers=0), 'workers=0'), (dict(budget=0), 'budget=0')])
def test_bad_arguments_get_one_sentence(kw, says):
    with pytest.raises(ValueError, match=says): run_claims(**kw)

def test_options_are_read_without_torch():
    assert claims_options([])['scale']=='quick' and claims_options(['--full','--only','signs','bound'])['only']==['signs','bound']
    for bad in (['--slow'], ['--write','--only','signs'], ['--write','--seeds','3']):
        with pytest.raises(CommandError): claims_options(bad)

@pytest.mark.slow
def test_from_end_to_end(tmp_path, capsys):
    words = ['--only','custom-loss','core-set','imagewoof','--budget','.05','--workers','1','--folder',str(tmp_path),'--seeds']
    assert claims_command([*words,'1'])==0
    out = capsys.readouterr()
    assert '6 runs, in all' in out.err and 'too close to call' in out.out # plain, core-set and HNM, half and whole budget
    res = json.loads((tmp_path/'claims.json').read_text())
    assert [r['key'] for r in res['rows']]==['custom-loss','core-set','imagewoof'] and [r['verdict'] for r in res['rows']][1:]==['too close to call','not run here']
    page = (tmp_path/'claims.html').read_text()
    assert page.count('Plotly.newPlot("fig-')==2 and 'ImageWoof is not at hand' in page and 'src="http' not in page
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob('*.npz')}
    assert claims_command([*words,'1'])==0 and '(read)' in capsys.readouterr().err
    assert before=={f: f.stat().st_mtime_ns for f in tmp_path.rglob('*.npz')} and json.loads((tmp_path/'claims.json').read_text())['rows']==res['rows']
    assert claims_command([*words,'3'])==2 and 'other seeds' in capsys.readouterr().err

@pytest.mark.slow
def test_imagewoof_runs_where_its_folder_is_at_hand(tmp_path):
    from PIL import Image
    rng = np.random.default_rng(0)
    for split,n in (('train',8),('val',4)):
        for k in ('n01','n02'):
            (d := tmp_path/split/k).mkdir(parents=True)
            for i in range(n): Image.fromarray(rng.integers(0, 256, (20,24,3), dtype=np.uint8)).save(d/f'{i}.jpg')
    res,runs = run_claims('quick', data='imagewoof', path=tmp_path, seeds=1, workers=1, budget=.01, progress=False)
    assert [r['key'] for r in res['rows']]==['imagewoof'] and res['rows'][0]['verdict'] in VERDICTS-{'not run here'}
    assert runs['imagewoof'].settings['clock']=='wall' and runs['imagewoof'].settings['n_train']==16 and len(runs['imagewoof'].rows)==15

def test_records_ship_and_can_be_judged_again():
    files = shipped()
    assert [o.stem for o in files][:1]==['claims-quick']
    for f in files:
        scale,*data = f.stem.split('-')[1:]
        res,runs = load_claims(scale, *data),load_runs(scale, *data)
        assert record_name(scale, res['settings']['data'])==f.stem and (f.parent/f'{f.stem}-runs.json.xz').stat().st_size<300_000
        assert res['settings']['seeds']>=5 and res['info']['device'] and res['info']['date'] and res['info']['versions']['torch']
        assert [r['key'] for r in res['rows']]==[k for k in claims if k in {r['key'] for r in res['rows']}]
        for r in res['rows']:
            assert r['verdict'] in VERDICTS or r['verdict'].startswith('holds from ')
            if r['verdict']!='not run here': assert judged(r['key'], runs)['verdict']==r['verdict'], r['key']
    with pytest.raises(ValueError, match="scale='huge'"): load_claims('huge')

def test_readme_has_the_table_of_the_records():
    text = (root/'README.md').read_text('utf-8')
    assert with_table(text, [json.loads(o.read_text('utf-8')) for o in shipped()])==text, 'run blf-claims --write, or write it from the records'
    for r in load_claims('quick')['rows']: assert f"| {r['question']} |" in text and f"**{r['verdict']}**" in text

def test_the_page_has_every_row_and_nothing_that_ends_a_script():
    res = load_claims('quick')
    for r in res['rows']:
        spec = claim_spec(r)
        assert (spec is None)==(r['plot'] is None)
        if spec: assert spec['data'] and json.dumps(spec)
    row = dict(res['rows'][0], question='<b>?', plot=dict(kind='dots', y='</script>', groups={'BLF': UP}, line=0))
    page = claims_page(res | dict(rows=[row]))
    assert '<b>?' not in page and page.count('</script>')==2
    assert '**' in readme_table([res])
