"The report of a comparison: that it stands alone, draws everything, fits the screen, says what is missing; colours and figures."
import math, re, subprocess, sys
import numpy as np, pytest
from blf_explore.all import (Comparison, budget_figure, clocks_figure, colors, course_figure, kept_figure, parts_figure, report, run_styles, target_figure)
from browser import launch, open_page

figures = dict(budget=budget_figure, seconds=course_figure, samples=lambda c: course_figure(c, 'samples'), wall=lambda c: course_figure(c, 'wall'),
               target=target_figure, parts=parts_figure, kept=kept_figure, clocks=clocks_figure)
methods = {'plain': ['plain', {}], 'HNM .25': ['HNM', dict(sample_perc=.25)], 'HNM <b>': ['HNM', {}], 'BLF': ['BLF', {}], 'mine': 'mine'}
plus = {'plain': 0, 'HNM .25': .03, 'HNM <b>': -.02, 'BLF': .01, 'mine': 0} # accuracy above plain's, of every seed

def made_up(seeds=5, shares=(.25,.5,1.)):
    "A comparison whose results are known: accuracy rises by .1 with each doubling of the budget."
    rows,curves = [],[]
    for m in methods:
        for s in range(seeds):
            for o in shares:
                acc = .85+.1*math.log2(o)+.01*s+plus[m]
                parts = dict(ref_before_s=0., ref_score_s=2*o if m!='plain' else 0., ref_select_s=.1*o, ref_train_s=6*o)
                rows.append(dict(method=m, seed=s, share=o, budget_s=8*o, accuracy=acc, valid_loss=1., ref_s=8*o, wall_s=9*o, n_epoch=4, n_step=50, n_seen=4000,
                                 n_trained=4000 if m=='plain' else 1000, **parts))
                curves += [dict(method=m, seed=s, share=o, epoch=e, accuracy=acc-.02*(3-e), valid_loss=1., train_loss=1., ref_s=2*o*(e+1), wall_s=2.2*o*(e+1),
                                kept_pct=100 if m=='plain' else 25, n_kept=250*(e+1)) for e in range(4)]
    settings = dict(methods=methods, seeds=list(range(seeds)), shares=list(shares), budget_s=8., data=dict(name='digits', bs=8), model='convnet', clock='reference',
                    refine=0, lr=.01, epochs=8, budget=None, cbs=None, n_train=100, n_valid=20, bs=8)
    costs = dict(bs=8, sizes=[4,8], train=[.01,.02], methods={'BLF': dict(score=.005, select=.001)}, device='a CPU')
    return Comparison(settings, costs, rows, curves, dict(device='a CPU', versions=dict(torch='2'), date='2026-01-01', command="blf-compare BLF --data 'my digits'"))

def shown(path): return re.search('<body class="([^"]*)"', path.read_text('utf-8'))[1].split()

def test_one_colour_for_a_method_and_settings_told_apart():
    s = run_styles(made_up())
    assert s['HNM .25'].color==s['HNM <b>'].color==colors['HNM'] and s['BLF'].color==colors['BLF'] and s['plain'].color==colors['plain']
    assert s['HNM .25'].dash!=s['HNM <b>'].dash and s['HNM .25'].symbol!=s['HNM <b>'].symbol
    assert s['mine'].color not in {m for m in colors.values()} - {colors['random'], colors['scoring']}

def test_every_run_is_a_point_and_the_lines_are_medians():
    c = made_up()
    points,line = budget_figure(c).data[2:4]
    expected = sorted((r['budget_s'], 100*r['accuracy']) for r in c.rows if r['method']=='HNM .25')
    assert np.array(sorted(zip(points.x, points.y)))==pytest.approx(np.array(expected))
    assert list(line.x)==[2,4,8] and list(line.y)==pytest.approx([70,80,90]) # .85+.02 (third of five seeds)+.03, less .1 a halving
    assert [o for o in budget_figure(c).layout.shapes if o.y0==pytest.approx(87)], 'plain with the whole budget, dotted'

def test_times_and_parts_by_hand():
    c = made_up()
    bars = {o.y[0]: o.x[0] for o in target_figure(c).data}
    assert bars['plain']==pytest.approx(8) and bars['HNM .25']==pytest.approx(8*2**-.3) and bars['HNM <b>']==8
    words = {o.y: o.text for o in target_figure(c).layout.annotations}
    assert words['HNM <b>']=='not within the budget' and words['HNM .25'].startswith('1.23 ×')
    assert [o.x[-1] for o in parts_figure(c).data]==pytest.approx([0, 0, .1, 6]) # plain, drawn at the top
    assert list(kept_figure(c).data[5].y)==[100]*4 and list(kept_figure(c).data[5].x)==[1,2,3,4]
    assert sorted(clocks_figure(c).data[0].x)==pytest.approx([2]*5+[4]*5+[8]*5) and sorted(clocks_figure(c).data[0].y)==pytest.approx([2.25]*5+[4.5]*5+[9]*5)
    assert list(course_figure(c, 'samples').data[5].x)==pytest.approx([.25,.5,.75,1.])

def test_the_table_and_the_headline(tmp_path):
    text = report(made_up(), tmp_path/'r.html').read_text('utf-8')
    assert shown(tmp_path/'r.html')==['head-some']
    row = re.search(r'<tr><td[^>]*><span[^>]*>.</span>HNM \.25</td>(.*?)</tr>', text)[1]
    cells = [re.sub('<small>.*?</small>|<[^>]*>', '', o) for o in row.split('</td>')]
    assert cells[:6]==['1.23', 'less', '6.5', '90.00', '+3.00', 'more'] and cells[6:11]==['25', '4', '8', '9', '5']
    assert '2 of 4 methods took less time' in text and 'HNM &lt;b&gt;' in text and '<b>HNM <b>' not in text
    assert 'blf-compare BLF --data &#x27;my digits&#x27;' in text

def cut(c, keep):
    keep = [r for r in c.rows if keep(r)]
    ids = {(r['method'], r['seed'], r['share']) for r in keep}
    return Comparison(c.settings, c.costs, keep, [r for r in c.curves if (r['method'], r['seed'], r['share']) in ids], {})

@pytest.mark.parametrize('c, says', [
    (cut(made_up(), lambda r: r['method']!='BLF' or r['share']<1), {'head-some','unfinished'}),
    (cut(made_up(), lambda r: r['method']!='plain'), {'head-unknown','unfinished','no-plain'}),
    (cut(made_up(), lambda r: r['share']<1), {'head-unknown','unfinished','no-plain','few-seeds'}),
    (cut(made_up(), lambda r: r['method']=='plain' and r['seed']==0 and r['share']==.5), {'head-unknown','unfinished','no-plain','few-seeds'}),
    (made_up(seeds=1), {'head-few','few-seeds','one-seed'}),
    (made_up(shares=(1.,)), {'too-easy'}), # no smaller budget was tried
    (made_up(seeds=3), {'head-few','few-seeds'})], ids=range(7))
def test_what_is_missing_is_said(c, says, tmp_path):
    assert says<=set(shown(report(c, tmp_path/'r.html')))
    for f in figures.values(): f(c)
    assert ('unfinished' in says)==('unfinished' in shown(tmp_path/'r.html'))

def test_a_comparison_without_runs_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match='no run yet'): report(cut(made_up(), lambda r: False), tmp_path/'r.html')
    for f in figures.values(): assert not f(cut(made_up(), lambda r: False)).data
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="by='time'"): course_figure(made_up(), by='time')

def test_a_report_needs_no_torch():
    code = "import sys, blf_explore.page.report; print({'torch','fastai'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout=='set()\n'

@pytest.mark.browser
def test_the_page_stands_alone_and_fits(tmp_path):
    from playwright.sync_api import sync_playwright
    path = report(made_up(), tmp_path/'r.html')
    with sync_playwright() as p:
        browser = launch(p)
        for size in ((1280,720), (1920,1080)):
            with open_page(browser, *size) as page:
                bad = []
                page.on('console', lambda m: bad.append(m.text) if m.type in ('error','warning') else None)
                page.on('pageerror', lambda e: bad.append(str(e)))
                page.on('request', lambda r: bad.append(r.url) if not r.url.startswith(('data:','blob:', path.as_uri())) else None)
                page.goto(path.as_uri(), wait_until='load')
                page.wait_for_function("document.querySelectorAll('figure .main-svg .xtick text').length && document.querySelectorAll('figure .main-svg').length>=21")
                assert bad==[]
                assert page.evaluate("document.documentElement.scrollWidth<=innerWidth"), 'no sideways scrolling'
                for o in page.locator('section, figure').all(): assert o.evaluate("o => o.scrollWidth<=o.clientWidth"), o.inner_text()
                drawn = page.evaluate("""[...document.querySelectorAll('figure')].map(f => {
                    const box = f.getBoundingClientRect(), svg = f.querySelector('.main-svg').getBoundingClientRect()
                    const texts = [...f.querySelectorAll('.main-svg text')].map(t => t.getBoundingClientRect()).filter(t => t.width)
                    return [f.querySelectorAll('.trace').length, svg.right<=box.right && svg.bottom<=box.bottom,
                            texts.every(t => t.left>=svg.left-1 && t.right<=svg.right+1 && t.top>=svg.top-1 && t.bottom<=svg.bottom+1)]})""")
                assert len(drawn)==7 and all(n>=len(methods)-1 and fits and whole for n,fits,whole in drawn), drawn
        browser.close()
