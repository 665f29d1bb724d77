"The exercises of lessons 1 to 4: the check refuses what the notebook leaves open, and accepts the solution that it folds away."
import json, re
from pathlib import Path
import pytest, torch

lessons = Path(__file__).resolve().parent.parent/'nbs'/'lessons'
losses = [torch.rand(n, generator=torch.Generator().manual_seed(n)).double()**4 for n in (1024, 64, 64)]
NEEDS = { # what an earlier cell of the lesson has made
    '01_blf': ['def get_learn():'], '02_time': [], '03_hnm': [], '04_gradients': []}

def exercises(nb):
    "(the cell with its gap and its check, the solution that follows it, the name of the check), and the cells named in NEEDS."
    cells = [(c['cell_type'], ''.join(c['source'])) for c in json.loads((lessons/f'{nb}.ipynb').read_text('utf-8'))['cells']]
    res = []
    for (kind,cell),(_,after) in zip(cells, cells[1:]):
        if kind=='code' and (check := re.search(r'^def (check_\d)\(', cell, re.M)):
            res.append((cell, re.search(r'A solution</summary>\s*```python\n(.*?)```', after, re.S)[1], check[1]))
    return res,[c for k,c in cells if k=='code' and any(o in c for o in NEEDS[nb])]

def names(nb, needed):
    import fastai.basics, blf_explore.all
    res = vars(fastai.basics) | vars(blf_explore.all) | dict(seen=losses[1:], l6=losses[0].float())
    for c in needed: exec('\n'.join(l for l in c.splitlines() if not l.startswith(('learn','assert'))), res)
    return res

@pytest.mark.parametrize('nb', NEEDS)
def test_the_check_tells_the_gap_from_the_solution(nb):
    found,needed = exercises(nb)
    assert len(found)==2
    env = names(nb, needed)
    for cell,solution,check in found:
        exec(cell, env)
        f = re.search(rf'^{check}\((\w+)\)$', cell, re.M)[1]
        assert not env[check](env[f]).startswith('Right')
        exec(solution, env)
        assert env[check](env[f]).startswith('Right'), (nb, check)
