"What a figure's page computes, beside what Python does: in Node where there is one, else in Chromium."
import json, math, shutil, subprocess
from blf_explore.page.frame import _drag, _json

def in_page(fig, grid):
    "What the page's `compute` gives at each of `grid`, a list of {knob: value}."
    script = _drag(f'{fig.name}.js') if fig.script is None else fig.script
    code = f"{_drag('frame.js')}\n{script}\nconst data = BLF.unpack({_json(fig.data)}), at = {_json(grid)};"
    ask = f"at.map(o => BLF.compute[{json.dumps(fig.name)}](data, o))"
    if shutil.which('node'):
        code = f"globalThis.window = globalThis;\n{code}\nconsole.log(JSON.stringify({ask}))"
        res = subprocess.run(['node', '-'], input=code, capture_output=True, text=True)
        assert res.returncode==0, res.stderr
        return json.loads(res.stdout)
    from browser import chromium
    with chromium() as page: return page.evaluate(f"() => {{ {code}\nreturn {ask} }}")

def assert_same(a, b, at=''):
    "Python's answer and the page's: words exactly, numbers to 1e-9."
    if isinstance(a, dict):
        assert isinstance(b, dict) and {k for k,v in a.items() if v is not None}=={k for k,v in b.items() if v is not None}, f'{at}: {sorted(a)} {sorted(b)}'
        for k in a: assert_same(a[k], b.get(k), f'{at}.{k}')
    elif isinstance(a, (list,tuple)):
        assert len(a)==len(b), f'{at}: {len(a)} and {len(b)} long'
        for i,(x,y) in enumerate(zip(a, b)): assert_same(x, y, f'{at}[{i}]')
    elif isinstance(a, bool) or a is None or isinstance(a, str): assert a==b, f'{at}: {a!r} and {b!r}'
    else: assert math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12), f'{at}: {a!r} and {b!r}'

def assert_page_is_python(fig, grid):
    "The same at every place of a grid."
    for at,there in zip(grid, in_page(fig, grid), strict=True): assert_same(fig.show(**at), there, str(at))
