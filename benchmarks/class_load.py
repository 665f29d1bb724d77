"""What a class costs: own dashboards beside one another, and watchers of one run.

Needs the `dev` extra, no browser. Serves the dashboard, and is its pages from a process of its own: websockets that answer as the page does.
Prints a table a part, and the figures as JSON with `--json FILE`.

    nice python benchmarks/class_load.py                        # own 1 5 20, watchers 1 30 100: some ten minutes on 2 cores
    nice python benchmarks/class_load.py --own 1 5 --watchers   # own dashboards alone
    nice python benchmarks/class_load.py --seconds 5 --own --watchers 30
"""
import argparse, asyncio, gzip, json, os, statistics, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
import psutil
from tornado.websocket import websocket_connect

here = Path(__file__).resolve().parent

class Stamped:
    "The dashboard, with the time at which each update was made."
    def __new__(cls, send, **kwargs):
        from blf_explore.page.widgets import Dashboard
        def stamped(msg): send(msg | dict(parts=msg['parts'] | dict(stamp=json.dumps(time.time()))) if msg['type']=='update' else msg)
        return Dashboard(stamped, **kwargs)

def serve_stamped(options):
    "The server's process."
    from blf_explore.page.serve import serve
    from blf_explore.page.sessions import check_settings
    def ready(house): print(json.dumps(dict(port=house.port, tokens=house.tokens)), flush=True)
    serve(check_settings(epochs=1000), port=8930, on_ready=ready, factory='class_load:Stamped', **options)

class Page:
    "What a page does, without drawing: it keeps the newest parts and answers."
    def __init__(self, port, role, token='', name='v'):
        self.url,self.name = f'ws://localhost:{port}/ws?as={role}&token={token}',name
        self.parts,self.late,self.t0,self.t_first,self.said = {},[],time.time(),None,None
    async def open(self):
        self.ws = await websocket_connect(self.url, max_message_size=2**26)
        await self.say('hello', query='', gz=True, who=self.name)
        self.task = asyncio.ensure_future(self.listen())
        return self
    async def say(self, kind, **more): await self.ws.write_message(json.dumps(dict(type=kind, view=self.name, **more)))
    async def listen(self):
        while (text := await self.ws.read_message()) is not None:
            msg = json.loads(gzip.decompress(text) if isinstance(text, bytes) else text)
            if msg['type']!='update':
                if msg['type'] in ('full','lost','refused'): self.said = msg['say']
                continue
            if 'stamp' in msg['parts']: self.late.append(time.time()-float(msg['parts']['stamp']))
            self.t_first = self.t_first or time.time()
            self.parts |= msg['parts']
            await self.say('ack')
    @property
    def state(self): return json.loads(self.parts.get('state', '{}')) or {}
    async def until(self, f):
        while not f(self.state):
            if self.said: raise SystemExit(f'{self.name}: {self.said}')
            await asyncio.sleep(.02)

@contextmanager
def server(**options):
    "A server of its own: (what it printed, its process, the one that trains)."
    env = os.environ | {'PYTHONPATH': os.pathsep.join([str(here), str(here.parent), os.environ.get('PYTHONPATH', '')])}
    proc = subprocess.Popen([sys.executable, __file__, '--serve', json.dumps(options)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    try:
        info = json.loads(proc.stdout.readline())
        p = psutil.Process(proc.pid)
        while not p.children(): time.sleep(.01)
        yield info,p,p.children()[0]
    finally:
        proc.terminate()
        proc.wait()

def memory(p): return p.memory_full_info().uss/2**20 # MB that are this process's alone
def cpu(p): return sum(p.cpu_times()[:2])
def quantile(xs, q): return sorted(xs)[min(len(xs)-1, int(q*len(xs)))] if xs else float('nan')

async def drag(page, values):
    "Move a slider as a hand does."
    for v in values:
        await page.say('set', settings=dict(loss_perc=v))
        await asyncio.sleep(.05)

async def own(n, seconds):
    "`n` dashboards at once: a row of figures."
    t0 = time.time()
    with server(own=n) as (info,srv,trainer):
        shown = time.time()-t0
        pages = await asyncio.gather(*[Page(info['port'], 'own', name=f'v{i}').open() for i in range(n)])
        for p in pages: await p.until(lambda s: s.get('status')=='ready')
        usable = time.time()-t0
        idle = memory(trainer)
        for p in pages: await p.say('run')
        for p in pages: await p.until(lambda s: s['n_batch']>0)
        a,t = [p.state['n_batch'] for p in pages],time.time()
        for p in pages: p.late.clear()
        await asyncio.sleep(seconds)
        rates = [(p.state['n_batch']-b)/(time.time()-t) for p,b in zip(pages, a)]
        late = [x for p in pages for x in p.late]
        await asyncio.gather(*[drag(p, [.9-.02*i for i in range(20)]) for p in pages])
        lost = 0
        for p in pages:
            try: await asyncio.wait_for(p.until(lambda s: abs(s['now']['loss_perc']-.52)<1e-9), 60)
            except asyncio.TimeoutError: lost += 1
        return dict(own=n, address_s=shown, usable_s=usable, first_s=max(p.t_first-t0 for p in pages), idle_mb=idle, mb=memory(trainer), server_mb=memory(srv),
                    rounds_s=sum(rates), slowest_s=min(rates), fastest_s=max(rates), late_p50=quantile(late, .5), late_p95=quantile(late, .95), lost=lost)

async def stretch(teacher, trainer, srv, seconds):
    "A stretch of training: (batches a second, the trainer's CPU seconds a batch, the server's CPU share)."
    n,c,s,t = teacher.state['n_batch'],cpu(trainer),cpu(srv),time.time()
    await asyncio.sleep(seconds)
    dn,dt = teacher.state['n_batch']-n,time.time()-t
    return dn/dt,(cpu(trainer)-c)/max(1, dn),(cpu(srv)-s)/dt

async def watch_apart(port, token, n, seconds):
    "The watchers' own process: says when all are there, and what they saw."
    pages = [await Page(port, 'watch', token, name=f'w{i}').open() for i in range(n)]
    while not all(p.t_first for p in pages): await asyncio.sleep(.02)
    print(json.dumps(dict(there=[p.t_first-p.t0 for p in pages])), flush=True)
    for p in pages: p.late.clear()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    print(json.dumps(dict(late=[x for p in pages for x in p.late], last=[float(p.parts['stamp']) for p in pages])), flush=True)

async def watched(n, seconds, rounds=3):
    "One run and `n` watchers, stretches with and without them in turn: a row of figures."
    with server(is_class=True) as (info,srv,trainer):
        teacher = await Page(info['port'], 'teacher', info['tokens']['teacher']).open()
        await teacher.until(lambda s: s.get('status')=='ready')
        await teacher.say('run')
        await teacher.until(lambda s: s['n_batch']>5)
        alone,beside,late,there,lost = [],[],[],[],0
        for i in range(rounds):
            alone.append(await stretch(teacher, trainer, srv, seconds))
            args = [sys.executable, __file__, '--watch', str(info['port']), info['tokens']['watch'], str(n), str(seconds)]
            crowd = await asyncio.create_subprocess_exec(*args, stdin=-1, stdout=-1, limit=2**26)
            there += json.loads(await crowd.stdout.readline())['there']
            beside.append(await stretch(teacher, trainer, srv, seconds))
            if i==rounds-1: # all have to be where the teacher's page is, once nothing moves
                await teacher.say('pause')
                await teacher.until(lambda s: s['status']=='paused')
                await asyncio.sleep(3)
            crowd.stdin.write(b'\n')
            saw = json.loads(await crowd.stdout.readline())
            late += saw['late']
            if i==rounds-1: lost = sum(o!=float(teacher.parts['stamp']) for o in saw['last'])
            await crowd.wait()
        med = lambda xs, i: statistics.median(o[i] for o in xs)
        return dict(watchers=n, there_p95=quantile(there, .95), late_p50=quantile(late, .5), late_p95=quantile(late, .95), lost=lost, server_mb=memory(srv),
                    server_cpu=med(beside, 2), server_cpu_alone=med(alone, 2), batches_s=med(beside, 0), batches_s_alone=med(alone, 0),
                    cpu_batch=med(beside, 1), cpu_batch_alone=med(alone, 1), cost_pct=100*(med(beside, 1)/med(alone, 1)-1), slower_pct=100*(med(alone, 0)/med(beside, 0)-1))

def table(rows):
    if not rows: return
    print(' | '.join(rows[0]))
    for r in rows: print(' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in r.values()), flush=True)

def main():
    if sys.argv[1:2]==['--serve']: return serve_stamped(json.loads(sys.argv[2]))
    if sys.argv[1:2]==['--watch']: return asyncio.run(watch_apart(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--own', type=int, nargs='*', default=[1, 5, 20], help='own dashboards at once')
    p.add_argument('--watchers', type=int, nargs='*', default=[1, 30, 100])
    p.add_argument('--seconds', type=float, default=15, help='length of a stretch')
    p.add_argument('--json', help='a file for the figures')
    a = p.parse_args()
    print(f'{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before', flush=True)
    rows = [[],[]]
    for n in a.own: rows[0].append(asyncio.run(own(n, a.seconds))); print(rows[0][-1], flush=True)
    for n in a.watchers: rows[1].append(asyncio.run(watched(n, a.seconds))); print(rows[1][-1], flush=True)
    for o in rows: table(o)
    if a.json: Path(a.json).write_text(json.dumps(dict(own=rows[0], watchers=rows[1]), indent=1))

if __name__=='__main__': main()
