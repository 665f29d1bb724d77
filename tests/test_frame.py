"Figures to drag: the same words in page and Python, one file that stands alone, every host from a live notebook to one without scripts."
import json, os, re, shutil, struct, subprocess, sys
import numpy as np, pytest
from blf_explore.page.frame import Figure, Knob, _drag, _json, _rows, fixed, percent, thousands
from drag import assert_page_is_python, in_page

def compute(data, n, share):
    "Every kind of series, mark and panel."
    n = int(n)
    x = list(range(1, n+1))
    hard = dict(title='Bars', x=dict(title='epoch', range=[.5, 12.5]), y=dict(title='samples', range=[0, 12]), marks=[dict(kind='hline', at=6, label='half', color='#D55E00')],
                series=[dict(kind='bars', x=x, y=[o*share for o in x], label='kept', color='#0072B2')])
    lines = dict(title='Lines', x=dict(title='x', log=True), y=dict(title='y'), series=[dict(kind='line', x=x, y=[None if o==3 else o for o in x], label='line', color='#009E73', dash=True),
                 dict(kind='steps', x=x, y=x, label='steps', color='#000000'), dict(kind='points', x=x, y=x[::-1], label='points', color='#CC79A7')],
                 marks=[dict(kind='vline', at=2, label='a', color='#000000'), dict(kind='vline', at=None, label='nowhere', color='#000000'), dict(kind='band', at=[3,5], label='b', color='#777777')])
    images = dict(kind='images', title='Images', groups=[dict(label=f'first {n}', color='#0072B2', items=list(range(n)), notes=[fixed(o/8, 2) for o in range(n)]),
                                                         dict(label='rest', color='#777777', items=list(range(n, 12)), notes=[])])
    return dict(panels=[hard, lines, images], say=f"{n} of 12 at {percent(share)}: {data['word']}.")

script = """BLF.compute.all_kinds = (data, {n, share}) => {
  const x = Array.from({length: n}, (_, i) => i + 1), to = (a, b) => Array.from({length: b - a}, (_, i) => i + a)
  return {say: `${n} of 12 at ${BLF.percent(share)}: ${data.word}.`, panels: [
    {title: 'Bars', x: {title: 'epoch', range: [0.5, 12.5]}, y: {title: 'samples', range: [0, 12]}, marks: [{kind: 'hline', at: 6, label: 'half', color: '#D55E00'}],
     series: [{kind: 'bars', x, y: x.map(o => o * share), label: 'kept', color: '#0072B2'}]},
    {title: 'Lines', x: {title: 'x', log: true}, y: {title: 'y'}, series: [{kind: 'line', x, y: x.map(o => o === 3 ? null : o), label: 'line', color: '#009E73', dash: true},
      {kind: 'steps', x, y: x, label: 'steps', color: '#000000'}, {kind: 'points', x, y: [...x].reverse(), label: 'points', color: '#CC79A7'}],
     marks: [{kind: 'vline', at: 2, label: 'a', color: '#000000'}, {kind: 'vline', at: null, label: 'nowhere', color: '#000000'}, {kind: 'band', at: [3, 5], label: 'b', color: '#777777'}]},
    {kind: 'images', title: 'Images', groups: [{label: `first ${n}`, color: '#0072B2', items: to(0, n), notes: to(0, n).map(o => BLF.fixed(o / 8, 2))},
      {label: 'rest', color: '#777777', items: to(n, 12), notes: []}]}]}}"""

def figure(word='a word', title='Every kind'):
    images = (np.arange(12*8*8).reshape(12, 8, 8)%256).astype(np.uint8)
    return Figure('all_kinds', title, 'What is drawn.', [Knob('n', 'Number', 1, 12, 1, 6), Knob('share', 'Share', 0, 1, .05, .5)], dict(images=images, word=word), compute, script)

# ---- Python and the page

def test_words_and_numbers_as_in_python():
    rng = np.random.default_rng(0)
    xs = [*rng.normal(size=300).tolist(), *(rng.integers(-50, 50, 300)/8).tolist(), 0., .5, 1.5, 2.5, 1e6, 123456.5, 1.005, -.4]
    a = np.sort(rng.random(9))
    at = [*rng.random(50).tolist(), *a.tolist(), -1., 2.]
    probe = "BLF.compute.words = (d) => ({fixed: d.xs.map(x => [0, 1, 2, 3].map(k => BLF.fixed(x, k))), percent: d.xs.map(x => BLF.percent(x, 1)), thousands: d.xs.map(BLF.thousands)," \
            "interp: d.at.map(x => BLF.interp(x, d.a, d.b)), place: d.at.map(x => BLF.searchsorted(d.a, x))})"
    b = rng.random(9)
    got, = in_page(Figure('words', '', '', [], dict(xs=xs, at=at, a=a.tolist(), b=b.tolist()), None, probe), [{}])
    assert got['fixed']==[[fixed(x, k) for k in range(4)] for x in xs] and got['percent']==[percent(x, 1) for x in xs]
    assert got['thousands']==[thousands(x) for x in xs]
    assert got['interp']==pytest.approx(np.interp(at, a, b), rel=1e-12) and got['place']==np.searchsorted(a, at).tolist()

@pytest.mark.parametrize('kind', ['uint8','int32','float16','float32','float64'])
def test_arrays_arrive_as_they_were(kind):
    vals = np.array([0, 1, 2.5, 200, 6.1e-5, 5.96e-8, 1/3] if 'f' in kind else [0, 1, 200], dtype=kind).reshape(1, -1)
    got, = in_page(Figure('echo', '', '', [], dict(vals=vals), None, "BLF.compute.echo = d => ({vals: Array.from(d.vals), shape: d.vals.shape})"), [{}])
    assert got==dict(vals=vals.astype(float).ravel().tolist(), shape=list(vals.shape))

def test_both_computations_of_the_toy_agree():
    assert_page_is_python(figure(), [dict(n=n, share=s) for n in (1, 3, 7, 12) for s in (0, .05, .55, 1)])

# ---- a figure

def test_what_it_does_not_accept_is_one_sentence():
    fig = figure()
    for f,says in ((lambda: fig.show(size=2), r"size=2: figure 'all_kinds' has no such knob: give n, share"), (lambda: fig.show(n=13), 'n=13 is not accepted: give a number from 1 to 12'),
                   (lambda: fig.show(n='x'), "n='x' is not accepted"), (lambda: Knob('a', 'a', 1, 0, 1, 0), "knob 'a': lo=1, hi=0"), (lambda: Knob('a', 'a', 0, 1, .1, 2), 'a=2 is not accepted')):
        with pytest.raises(ValueError, match=says) as e: f()
        assert '\n' not in str(e.value)
    with pytest.raises(FileNotFoundError, match='there is no folder'): fig.save('not-here/x.html')

def png_size(b): return struct.unpack('>II', b[16:24])

def test_the_picture_has_a_row_for_charts_and_one_for_images():
    fig = figure()
    assert [len(o) for o in _rows(fig.show()['panels'])]==[2,1] and [len(o) for o in _rows([dict(title='')]*5)]==[3,2]
    a,b = fig.picture(),fig.picture(n=12)
    assert a[:4]==b'\x89PNG' and png_size(a)[0]==990 and a!=b and a==fig.picture()
    with pytest.raises(ValueError, match="kind='pie' is not drawn"):
        Figure('x', '', '', [], {}, lambda d: dict(panels=[dict(x={}, y={}, series=[dict(kind='pie', x=[1], y=[1])])], say=''), '').picture()

def test_it_stands_alone_and_is_small(tmp_path):
    text = figure().save(tmp_path/'a.html').read_text('utf-8')
    assert not re.findall(r'(?:src|href)\s*=|@import|url\(', text.replace(_drag('uplot.min.js'), '')) and [o.name for o in tmp_path.iterdir()]==['a.html']
    from blf_explore.page.whatif import what_if_figure
    bundle = what_if_figure()._repr_mimebundle_()
    assert 3*len(bundle['text/html'])<3e6 and sum(map(len, bundle.values()))<9e5

def test_no_text_ends_the_script_that_it_stands_in():
    bad = '</script><script>window.broken = 1</script> \u2028 <!-- & "\''
    assert '<' not in _json(dict(a=bad)) and json.loads(_json(dict(a=bad)))==dict(a=bad)
    with pytest.raises(ValueError): _json(dict(a=float('nan')))

def test_a_figure_needs_no_torch():
    code = "import sys, blf_explore.page.whatif; print({'torch','fastai','plotly'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout=='set()\n'

# ---- in a browser

def listen(page, allowed):
    "What goes wrong on a page, and what it asks the network for."
    bad = []
    page.on('console', lambda m: bad.append(m.text) if m.type in ('error','warning') else None)
    page.on('pageerror', lambda e: bad.append(str(e)))
    page.on('request', lambda r: bad.append(r.url) if not r.url.startswith(('data:','blob:','about:', *allowed)) else None)
    return bad

painted = "[...document.querySelectorAll('canvas')].map(c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return new Set(d.filter((_, i) => i % 4 === 0)).size })"

@pytest.mark.browser
def test_the_saved_page_plays_without_a_network(tmp_path):
    from browser import chromium, until
    bad_word = '</script><script>window.broken = 1</script>'
    fig = figure(bad_word, 'A <b>title</b>')
    path = fig.save(tmp_path/'a.html')
    with chromium() as page:
        bad = listen(page, [path.as_uri()])
        page.context.set_offline(True)
        page.goto(path.as_uri())
        until(page, "document.querySelectorAll('.panel').length===3")
        assert page.locator('.say').inner_text()==fig.show()['say'] and page.locator('h1').inner_text()=='A <b>title</b>'
        assert all(o>3 for o in page.evaluate(painted)), 'nothing is drawn'
        slider = page.get_by_role('slider', name='Number', exact=True)
        slider.focus()
        assert slider.evaluate("o => getComputedStyle(o).outlineStyle")=='solid', 'a ring shows where the keys go'
        for key,n in (('ArrowRight',7), ('End',12), ('ArrowLeft',11), ('Home',1)):
            slider.press(key)
            until(page, f"BLF.shown.say===document.querySelector('.say').textContent && document.querySelector('output').textContent==='{n}'")
            assert page.locator('.say').inner_text()==fig.show(n=n)['say'] and slider.get_attribute('aria-valuetext')==str(n)
        assert page.evaluate("document.querySelector('.say').getAttribute('aria-live')")=='polite' and not page.evaluate('window.broken')
        assert bad==[]

@pytest.mark.browser
def test_what_if_fits_a_projector_and_a_telephone_and_nothing_jumps(tmp_path):
    from browser import chromium, until
    from blf_explore.page.whatif import what_if_figure
    fig = what_if_figure()
    path = fig.save(tmp_path/'a.html')
    for width,height,columns in ((1280,720,3), (390,844,1)):
        with chromium(width, height) as page:
            page.emulate_media(color_scheme='dark', reduced_motion='reduce')
            page.goto(path.as_uri())
            until(page, "document.querySelectorAll('.panel canvas').length===3")
            assert page.evaluate("document.documentElement.scrollWidth<=innerWidth"), 'no sideways scrolling'
            assert len({o['x'] for o in map(lambda o: o.bounding_box(), page.locator('.panel').all())})==columns
            if columns==3: assert page.evaluate("document.documentElement.scrollHeight<=innerHeight"), 'all of it on the screen at once'
            assert page.evaluate("getComputedStyle(document.body).backgroundColor")=='rgb(255, 255, 255)'
            assert page.evaluate("[...document.querySelectorAll('main *')].every(o => parseFloat(getComputedStyle(o).fontSize)>=14)")
            places = "[...document.querySelectorAll('.plot, .say')].map(o => o.getBoundingClientRect().top)"
            before,slider = page.evaluate(places),page.get_by_role('slider').first
            slider.focus()
            for key in ('Home','ArrowRight','End','ArrowLeft'):
                slider.press(key)
                until(page, "BLF.shown.say===document.querySelector('.say').textContent")
                assert page.evaluate(places)==before, 'a move shifts nothing'
            assert page.locator('.say').inner_text()==fig.show(loss_perc=.99)['say']

def notebook_page(figs, tmp_path, name='a.html'):
    "A page as nbconvert makes it of a notebook with these figures in it."
    import nbformat as nbf
    from nbconvert import HTMLExporter
    cells = [nbf.v4.new_code_cell('fig', outputs=[nbf.v4.new_output('display_data', data=o._repr_mimebundle_())]) for o in figs]
    nb = nbf.v4.new_notebook(cells=cells)
    nbf.write(nb, tmp_path/'a.ipynb')
    (tmp_path/name).write_text(HTMLExporter(template_name='basic').from_notebook_node(nb)[0], 'utf-8')
    return tmp_path/name

@pytest.mark.browser
def test_two_figures_in_one_page_leave_each_other_alone(tmp_path):
    from browser import chromium, until
    a,b = figure('one'),figure('two')
    path = notebook_page([a, b], tmp_path)
    assert path.stat().st_size<2e6*2/3
    with chromium() as page:
        page.goto(path.as_uri())
        ready = "[...document.querySelectorAll('iframe')].filter(f => f.contentDocument.querySelectorAll('.panel').length===3 && f.offsetHeight>=f.contentDocument.querySelector('main').offsetHeight-1).length===2"
        until(page, ready)
        assert not any(o.is_visible() for o in page.locator('img').all()), 'the picture gives way to the page'
        one,two = (o.content_frame for o in page.locator('iframe').all())
        slider = one.get_by_role('slider').first
        slider.press('Home')
        until(page, "document.querySelector('iframe').contentDocument.querySelector('.say').textContent.startsWith('1 of')")
        assert one.locator('.say').inner_text()==a.show(n=1)['say'] and two.locator('.say').inner_text()==b.show()['say']
        assert page.evaluate(ready), 'each frame is as high as its page'

@pytest.mark.browser
def test_where_scripts_and_frames_are_removed_the_picture_stays(tmp_path):
    from browser import chromium, until
    path = notebook_page([figure()], tmp_path)
    text = path.read_text('utf-8')
    clean = re.sub(r'<(iframe|script)\b.*?</\1>', '', text, flags=re.S)
    assert '<iframe' not in clean and 'BLF.start' not in clean
    (tmp_path/'b.html').write_text(clean, 'utf-8')
    with chromium() as page:
        page.goto((tmp_path/'b.html').as_uri())
        until(page, "document.querySelector('img').naturalWidth===990")
        assert page.locator('img').is_visible() and page.locator('img').get_attribute('alt').endswith(figure().show()['say'])

@pytest.mark.browser
@pytest.mark.slow
def test_jupyterlab_plays_a_trusted_notebook_and_shows_the_picture_of_another(tmp_path):
    from browser import appears, chromium, jupyterlab, until
    notebook_page([figure()], tmp_path)
    shutil.move(tmp_path/'a.ipynb', tmp_path/'trusted.ipynb')
    notebook_page([figure('another word')], tmp_path) # trust goes by what a notebook holds
    own = {f'JUPYTER_{k}_DIR': str(tmp_path/k.lower()) for k in ('CONFIG','DATA','RUNTIME')}
    subprocess.run([sys.executable, '-m', 'jupyter', 'trust', tmp_path/'trusted.ipynb'], env=os.environ|own, check=True, capture_output=True)
    with jupyterlab(tmp_path, own) as url, chromium() as page:
        for name,shows,not_there in (('trusted','.jp-OutputArea iframe','img:visible'), ('a','.jp-OutputArea img','iframe')):
            page.goto(f'{url}/lab/workspaces/{name}/tree/{name}.ipynb?reset')
            appears(page, shows)
            if name=='trusted':
                until(page, "document.querySelector('.jp-OutputArea iframe').contentDocument.querySelectorAll('.panel').length===3")
                assert page.locator('.jp-OutputArea iframe').content_frame.locator('.say').inner_text()==figure().show()['say']
            assert page.locator(f'.jp-OutputArea {not_there}').count()==0
