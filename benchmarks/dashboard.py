"""What watching costs, and how soon a moved slider shows: `python benchmarks/dashboard.py`; `--other SB` does it in a race,
`--beside FOLDER` measures an older checkout in turn with this one (with what it needs installed, Voila among it).

Needs the `dev` extra and Chromium. Serves the dashboard with `blf-dashboard`, drives it with Playwright, and prints
1. from a slider's move to a changed chart, while training at full speed: median and 95th percentile;
2. the training process's own CPU time per batch with a connected page over that without one, in paired runs. The page
   is one that answers but draws nothing, so that a browser on the same cores does not count."""
import argparse, ast, os, queue, sys, threading, time
from pathlib import Path
import numpy as np
sys.path.insert(0, str(Path(__file__).parent.parent/'tests'))
from browser import chromium, serve, until

_watch = """() => {
  const root = document.querySelector('.blf'), div = root.querySelector('.samples .plot > div'), input = root.querySelector('input[name=loss_perc]')
  window.moved = []; window.waiting = null
  input.addEventListener('input', () => { window.waiting = {value: Number(input.value).toFixed(2), t: performance.now()} })
  div.on('plotly_afterplot', () => {
    const w = window.waiting
    if (w && (div.layout.annotations || []).some(a => a.text.endsWith('→' + w.value))) { window.moved.push(performance.now() - w.t); window.waiting = null }
  })
}"""

here = Path(__file__).resolve().parent.parent

def of(folder): return dict(PYTHONPATH=str(folder), PYTHONSAFEPATH='1') # a checkout is the one that is imported, wherever this runs

def latency(n, other, folder=here):
    "Milliseconds from each of `n` moves of `loss_perc` to the chart that shows it."
    with serve('--name', 'digits', '--bs', '64', '--epochs', '1000', '--other', other, env=of(folder)) as url, chromium() as page:
        page.goto(url)
        until(page, "document.querySelector('.blf').dataset.status === 'ready'")
        page.get_by_role('button', name='Run', exact=True).click()
        until(page, "document.querySelector('.blf').dataset.batches > 60")
        page.evaluate(_watch)
        slider = page.locator('input[name=loss_perc]')
        slider.focus()
        for i in range(n):
            slider.press('ArrowLeft' if i//20%2==0 else 'ArrowRight')
            until(page, f'window.moved.length > {i}')
            page.wait_for_timeout(150+np.random.randint(200))
        return np.array(page.evaluate('window.moved'))

class Kernel:
    "A kernel that holds a dashboard, and a page that draws nothing: it answers as the real one does, without a browser's work."
    def __init__(self, epochs, other, folder=here):
        from jupyter_client.manager import start_new_kernel
        self.km,self.kc = start_new_kernel(env=os.environ | of(folder), cwd=str(folder))
        self.answer,self.lock,self.values = False,threading.Lock(),queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.ask(f"from blf_explore.page.widgets import LiveDashboard; import time; dash = LiveDashboard(name='digits', bs=64, epochs={epochs}, other={other!r}); dash.wait()")
        self.comm = ast.literal_eval(self.ask("dash.comm.comm_id"))

    def _listen(self):
        while self.kc.is_alive():
            try: msg = self.kc.get_iopub_msg(timeout=1)
            except queue.Empty: continue
            c = msg['content']
            if msg['msg_type']=='comm_msg' and self.answer and c['data'].get('content', {}).get('type')=='update': self.tell('ack')
            elif msg['msg_type']=='execute_result': self.values.put(c['data']['text/plain'])
            elif msg['msg_type']=='error': self.values.put(RuntimeError(c['evalue']))

    def tell(self, kind):
        "What the page's script sends."
        with self.lock:
            m = self.kc.session.msg('comm_msg', dict(comm_id=self.comm, data=dict(method='custom', content=dict(type=kind, view='bench'))))
            self.kc.shell_channel.send(m)

    def ask(self, code):
        with self.lock: self.kc.execute(code)
        res = self.values.get(timeout=300)
        if isinstance(res, Exception): raise res
        return res

    def run(self, watched):
        "CPU seconds of the kernel's process per batch of one whole run."
        self.answer = watched
        self.ask("dash.reset(); dash.wait()")
        if watched: self.tell('hello')
        time.sleep(1)
        t0 = float(self.ask("time.process_time()"))
        self.ask("dash.run(); dash.wait(('running',), 5)")
        while 'done' not in self.ask("dash.status"): time.sleep(.5)
        t1,n = float(self.ask("time.process_time()")),int(self.ask("dash.n_batch"))
        if watched: self.tell('bye')
        time.sleep(.5)
        return (t1-t0)/n

def watching(pairs, epochs, other, folders):
    "CPU seconds per batch, watched and not, of each pair, by folder; the order changes from pair to pair."
    ks = [Kernel(epochs, other, o) for o in folders]
    try:
        for k in ks: k.run(False) # warm up
        res = [[] for _ in ks]
        for i in range(pairs):
            order = (True,False) if i%2 else (False,True)
            for k,rows in list(zip(ks, res))[::1 if i//2%2 else -1]:
                t = {o: k.run(o) for o in order}
                rows.append((t[True],t[False]))
        return [np.array(o) for o in res]
    finally:
        for k in ks: k.km.shutdown_kernel(now=True)

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--moves', type=int, default=100)
    p.add_argument('--pairs', type=int, default=10)
    p.add_argument('--epochs', type=int, default=20)
    p.add_argument('--other', default='plain', help='what trains beside BLF')
    p.add_argument('--beside', help="an older checkout's folder, measured in turn with this one")
    a = p.parse_args()
    folders = [here, *([Path(a.beside).resolve()] if a.beside else [])]
    if a.pairs:
        for name,t in zip(('','older: '), watching(a.pairs, a.epochs, a.other, folders)):
            r = 100*(t[:,0]/t[:,1]-1)
            print(f"{name}BLF beside {a.other}: watching, {a.pairs} pairs of runs of {a.epochs} epochs: {np.median(r):+.1f}% of the process's time per batch "
                  f"(quartiles {np.percentile(r, 25):+.1f} to {np.percentile(r, 75):+.1f}%); {1000*np.median(t[:,1]):.1f} ms per batch unwatched, that of {a.other} included")
    if a.moves:
        blocks = [[latency(a.moves//2, a.other, o) for o in order] for order in (folders, folders[::-1])]
        for i,name in enumerate(('','older: ')[:len(folders)]):
            ms = np.concatenate([blocks[0][i], blocks[1][::-1][i]])
            print(f"{name}BLF beside {a.other}: slider to chart, {len(ms)} moves: median {np.median(ms):.0f} ms, 95th percentile {np.percentile(ms, 95):.0f} ms, largest {ms.max():.0f} ms")

if __name__=='__main__': main()
