"What of the docs site can be built without Quarto: every notebook as the site takes it, the order of its pages, and the first page in a browser."
import json, re, shutil, subprocess, sys
from pathlib import Path
import pytest
from blf_explore.page.figures import cut_line

root = Path(__file__).resolve().parent.parent
build = "from nbdev.quarto import nbdev_sidebar\nfrom nbdev.serve import proc_nbs\nnbdev_sidebar()\nproc_nbs(n_workers=0)" # nbdev-docs, but for Quarto

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder that Quarto would be given."
    d = tmp_path_factory.mktemp('site')
    shutil.copytree(root/'nbs', d/'nbs', ignore=shutil.ignore_patterns('.*'))
    for o in ('pyproject.toml','settings.ini','README.md'): shutil.copy(root/o, d)
    res = subprocess.run([sys.executable, '-c', build], cwd=d, capture_output=True, text=True)
    assert res.returncode==0, res.stdout+res.stderr
    return d/'_proc'

def notebooks(d): return sorted(o.relative_to(d).as_posix() for o in d.rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)

def text(nb): return '\n'.join(''.join(c['source']) for c in json.loads(nb.read_text('utf-8'))['cells'])

@pytest.mark.slow
def test_every_notebook_is_a_page_and_shows_its_code(site):
    assert notebooks(site)==notebooks(root/'nbs')
    for o in notebooks(root/'nbs'): # what a lesson exports is what it teaches: nbdev alone would leave it out
        exported = [''.join(c['source']) for c in json.loads((root/'nbs'/o).read_text('utf-8'))['cells'] if c['cell_type']=='code' and '#| export' in ''.join(c['source'])]
        page = text(site/o)
        assert not [name for name in re.findall(r'^(?:def|class) (\w+)', '\n'.join(exported), re.M) if not re.search(rf'^(?:def|class) {name}\b', page, re.M)], o
    assert 'the solutions pass' in text(root/'nbs'/'lessons'/'05_sb.ipynb') and 'the solutions pass' not in text(site/'lessons'/'05_sb.ipynb')

@pytest.mark.slow
def test_pages_stand_in_the_order_of_the_story(site):
    pages = re.findall(r'[\w/]+\.ipynb', (site/'sidebar.yml').read_text('utf-8'))
    assert pages[0]=='index.ipynb' and sorted(pages)==notebooks(site)
    lessons = [o for o in pages if o.startswith('lessons/')]
    assert lessons==sorted(lessons) and lessons[0]=='lessons/01_blf.ipynb' and len(lessons)>=15

@pytest.mark.browser
def test_the_first_pages_figure_plays(site, tmp_path):
    "As HTML, with no kernel and no network: a moved slider gives the sentence that Python gives."
    from nbconvert import HTMLExporter
    from browser import chromium, until
    (tmp_path/'index.html').write_text(HTMLExporter(template_name='basic').from_filename(str(site/'index.ipynb'))[0], 'utf-8')
    fig,errors = cut_line(),[]
    with chromium() as page:
        page.on('pageerror', lambda o: errors.append(str(o)))
        page.context.set_offline(True)
        page.goto((tmp_path/'index.html').as_uri())
        until(page, "document.querySelector('iframe').contentDocument.querySelectorAll('.panel').length===3")
        frame = page.locator('iframe').first.content_frame
        assert frame.locator('.say').inner_text()==fig.show()['say']
        frame.get_by_role('slider').first.press('Home')
        assert frame.locator('.say').inner_text()==fig.show(loss_perc=0)['say']!=fig.show()['say'] and errors==[]
