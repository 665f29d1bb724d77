"""The dashboard's page without PyTorch: two recorded runs, the parts that a `Dashboard` would send of them, and a page in which a
stand-in for the model says them and notes what the page sends."""
import copy, json
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread
from blf_explore.engine.record import Record
from blf_explore.page.plots import (accuracy_spec, agreement_spec, epoch_sums, epoch_times, evidence, headlines, plain_step, run_names, samples_spec,
                                    time_spec, verdict)
from blf_explore.page.sessions import check_settings, page_choices, page_state, to_query
from blf_explore.page.widgets import plotly_js

WAYS = 'epoch','seconds','samples'

@lru_cache
def recorded(): return json.loads((Path(__file__).parent/'live_runs.json').read_text('utf-8'))

def records(which, n_batch=None):
    "The two records of a recorded run, or of its first `n_batch` batches."
    res = []
    for o in recorded()[which]['runs']:
        rec = Record(o['method'], o['settings'], **o['info'])
        for name,cols in o['tables'].items(): rec.rows[name] = [dict(zip(cols, row)) for row in zip(*cols.values())]
        if n_batch is not None:
            rec.rows = {k: [r for r in rows if r.get('batch', (r['epoch']+1)*o['info']['n_iter']-1)<n_batch] for k,rows in rec.rows.items()}
        res.append(rec)
    return res

def so_far(recs):
    def row(label, f): return [label, *(f(r) if r.rows['batches'] else '–' for r in recs)]
    res = [['', *'AB'[:len(recs)]], row('samples used', lambda r: f"{100*sum(epoch_sums(r)['n_kept'])/sum(epoch_sums(r)['n_seen']):.0f}%"),
           row('time', lambda r: f'{sum(epoch_times(r)):.1f} s')]
    if any(r.method=='plain' for r in recs): return res
    return res+[['plain, sampled', f"{plain_step(*recs)*len(recs[0].rows['batches']):.1f} s"]]

def state(which, recs, **more):
    "What a `Dashboard` would say of its state."
    run,n = recorded()[which],len(recs[0].rows['batches'])
    settings,n_iter = check_settings(**run['settings']),recs[0].info['n_iter']
    status = more.get('status') or ('ready' if not n else 'done' if n==n_iter*recs[0].info['n_epoch'] else 'running')
    named = dict(zip(run_names(*recs), recs))
    values = headlines(named, None) if n else {}
    answer = dict(answer=verdict(named, []), evidence=evidence(settings, [])) if status=='done' else dict(answer='', evidence='')
    return page_state(settings, status=status, what='Getting ready to train', progress=[6,6], auto=run['auto'], epoch=max(0, n-1)//n_iter+1,
                      n_epoch=recs[0].info['n_epoch'], batch=(n-1)%n_iter+1 if n else 0, n_iter=n_iter, n_batch=n, left='1:05' if status=='running' else '–',
                      device='CPU, 1 thread' if n else '', so_far=so_far(recs), values=values, says=run['says'], query=to_query(settings), **answer) | more

def parts(which='pays', n_batch=None, runs=(), **more):
    "{part: JSON text}: everything that the page shows of a run, or of its first `n_batch` batches; `more` goes into the state."
    recs = records(which, n_batch)
    named = dict(zip(run_names(*recs), recs))
    res = dict(state=state(which, recs, **more), samples=samples_spec(*recs), time=time_spec(*recs), agreement=agreement_spec(*recs),
               accuracy={by: accuracy_spec(named, by=by) for by in WAYS}, strip=None, batch=None, runs=list(runs))
    if recs[0].rows['batches']: res |= dict(strip=recorded()[which]['strip'], batch=copy.deepcopy(recorded()[which]['batch']))
    return {k: json.dumps(v) for k,v in res.items()}

LOADING = dict(status='loading', what='Loading PyTorch and fastai', progress=[0,6])

def loading(which='pays', **more):
    "What comes first, before there is anything to train."
    res = parts(which, 0)
    return {k: 'null' for k in res if k!='runs'} | dict(state=json.dumps(json.loads(res['state']) | LOADING | dict(n_iter=0, epoch=0, says={}) | more), runs='[]')

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>dashboard</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="live.css"><script src="plotly.js"></script><body><div id="host"></div><script type="module">
import * as live from './live.js'
const host = document.getElementById('host')
window.live = live
window.start = (conf, query) => {
  window.end?.()
  const heard = new Set()
  host.replaceChildren()
  history.replaceState(null, '', '/' + query)
  window.model = {sent: [], beats: true, get: k => conf[k], send: o => window.model.sent.push(o), on: (_, f) => heard.add(f), off: (_, f) => heard.delete(f),
    say: o => { for (const f of [...heard]) f(o, []) }}
  window.end = live.default.render({model: window.model, el: host})
}
setInterval(() => window.model?.beats && window.model.say({type: 'beat'}), 1000)
</script></body></html>"""

class Files(BaseHTTPRequestHandler):
    "The page and what it is made of."
    def do_GET(self):
        name = self.path.split('?')[0].strip('/')
        if name in ('live.js','live.css'): body = files('blf_explore.page').joinpath(name).read_bytes()
        else: body = {'': PAGE.encode(), 'plotly.js': plotly_js()}[name]
        kind = {'js': 'text/javascript', 'css': 'text/css'}.get(name.rpartition('.')[2], 'text/html')
        self.send_response(200)
        for k,v in (('Content-Type', f'{kind}; charset=utf-8'), ('Content-Length', str(len(body))), ('Cache-Control', 'max-age=999')): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass

@contextmanager
def stand_in(page):
    "The page, on which `start` opens a dashboard; `page.errors` are those of its script."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Files)
    Thread(target=server.serve_forever, daemon=True).start()
    page.errors = []
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    try:
        page.goto(f'http://127.0.0.1:{server.server_port}/')
        page.wait_for_function('window.start && window.Plotly')
        yield page
    finally:
        server.shutdown()
        server.server_close()

def start(page, query='', fill=True, role='own', **conf):
    "A dashboard with nothing shown yet, in place of the one before."
    page.evaluate('([conf, query]) => window.start(conf, query)', [dict(fill=fill, role=role, height=700, choices=page_choices()) | conf, query])

def show(page, parts):
    "Say `parts`, and wait until they are drawn: the page answers then."
    page.evaluate("parts => { window.model.sent = []; window.model.say({type: 'update', parts}) }", parts)
    page.wait_for_function("window.model.sent.some(o => o.type === 'ack')")

def sent(page, kind):
    "What the page has sent of a kind, without the kind and the page's name."
    return [{k: v for k,v in o.items() if k not in ('type','view')} for o in page.evaluate('window.model.sent') if o['type']==kind]
