"A dashboard that trains nothing: quick, and it says what it was told. `serve` takes it as `made_up:Dashboard`."
import json, os, sys, threading, time
from urllib.parse import parse_qsl
from blf_explore.page.sessions import page_state, to_query

def number(s):
    try: return float(s)
    except ValueError: return s

class Dashboard:
    "`state` is what a page of `live.js` needs, and `told`, the messages so far."
    def __init__(self, send, allow=None, **settings):
        self.send,self.settings,self.n,self.told,self.views,self.running,self.open = send,settings,0,[],set(),False,True
        self.base = dict(settings)
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while self.open:
            time.sleep(.05)
            if self.running:
                self.n += 1
                self.show()

    def take(self, msg):
        if msg['type']=='ack': return
        self.told.append([msg['type'], msg['view'], msg.get('query')])
        if msg['type']=='hello' and not self.n:
            self.settings |= {k: number(v) for k,v in parse_qsl((msg.get('query') or '').lstrip('?')) if k in self.settings}
        if msg['type']=='set':
            if 'blow' in msg['settings'].values(): raise RuntimeError('as was asked for')
            if 'die' in msg['settings'].values(): os._exit(3)
            self.settings |= msg['settings']
        if msg['type'] in ('run','pause'): self.running = msg['type']=='run'
        if msg['type']=='file': return self.send(dict(type='file', view=msg['view'], name='run.csv', mime='text/csv', data='YQ=='))
        (self.views.discard if msg['type']=='bye' else self.views.add)(msg['view'])
        if not self.views: self.running = False
        self.show()

    def show(self):
        print('a line that nobody reads') # libraries print, too
        kept = round(128*float(self.settings.get('loss_perc') or 0))
        state = page_state(self.settings, status='running' if self.running else 'paused' if self.n else 'ready', epoch=1, batch=self.n, n_iter=94, n_batch=self.n,
                           query=to_query(self.settings, self.base), values=dict(samples=[[f'{kept} of 128', 'a'], ['in the last batch', '']]) if self.n else {})
        state |= dict(told=self.told)
        self.send(dict(type='update', parts=dict(state=json.dumps(state), **{o: 'null' for o in ('samples','time','agreement','accuracy','strip','batch')}, runs='[]')))

    def close(self): self.open = False

if __name__=='__main__': # python made_up.py PORT [OPTION=VALUE …]: served without PyTorch; prints the addresses
    from blf_explore.page.serve import serve
    from blf_explore.page.sessions import check_settings
    def ready(house): print('at', house.port, *(house.address(p) for p in house.roles), flush=True)
    serve(check_settings(), port=int(sys.argv[1]), on_ready=ready, factory='made_up:Dashboard', loads=(), **{k: json.loads(v) for k,v in (o.split('=', 1) for o in sys.argv[2:])})
