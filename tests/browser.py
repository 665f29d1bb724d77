"A served dashboard and a headless Chromium, for the tests and the benchmarks."
import os, re, shutil, signal, subprocess, sys, threading
from contextlib import contextmanager
import psutil
from waits import gone, wait_until

# Playwright's own limit for a click or a key, in milliseconds. What a page has to become first is waited for with a reason (`until`,
# `appears`), so that this is reached only where an element is not there at all.
ACTION = 900_000

def launch(p):
    "The first Chromium that starts: the machine's own (on Ubuntu it may be an empty shell), or that of Playwright."
    for path in (*filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None):
        try: return p.chromium.launch(executable_path=path, timeout=0, args=['--no-sandbox', '--disable-gpu', '--disable-background-networking',
                                                                             '--disable-component-update'])
        except Exception:
            if path is None: raise

@contextmanager
def open_page(browser, width=1280, height=720):
    "A page that waits as long as it takes."
    page = browser.new_page(viewport=dict(width=width, height=height))
    page.set_default_timeout(ACTION)
    try: yield page
    finally: page.close()

@contextmanager
def chromium(width=1280, height=720):
    "A page of a fresh browser."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = launch(p)
        try:
            with open_page(browser, width, height) as page: yield page
        finally: browser.close()

# ---- what is waited for on a page

serving = [] # the servers that run: where one has ended, its pages wait in vain

def shown_error(page):
    "The sentence that the dashboard shows, or None."
    o = page.locator('.blf .error')
    return o.locator('span').inner_text() if o.count() and o.is_visible() else None

def _no_more(page):
    "Why a page will not get any further."
    for o in serving:
        if o.poll() is not None: return f'the server has ended with {o.returncode}'
    if said := shown_error(page): return f'the page says: {said}'

def until(page, js):
    "Wait until `js` is true on the page. A browser that is gone raises Playwright's own error."
    wait_until(lambda: page.evaluate(f'() => {{ try {{ return !!({js}) }} catch {{ return false }} }}'), lambda: _no_more(page), js)

def appears(page, selector):
    "Wait until an element is there and to be seen."
    wait_until(lambda: any(o.is_visible() for o in page.locator(selector).all()), lambda: _no_more(page), selector)

def says(page, text):
    "Wait for the dashboard's error, and that it is the one expected."
    said = wait_until(lambda: shown_error(page), what=f'the sentence {text!r}')
    assert text in said, said

# ---- the server

def stop(proc):
    "Ctrl-C, and the exit code; whatever then still runs of it is ended."
    below = psutil.Process(proc.pid).children(recursive=True) if proc.poll() is None else []
    if proc.poll() is None: proc.send_signal(signal.SIGINT)
    try:
        wait_until(lambda: proc.poll() is not None, what='the end of the server after Ctrl-C')
        gone(below)
    finally:
        for o in below:
            try: o.kill()
            except psutil.NoSuchProcess: pass
        if proc.poll() is None: proc.kill()
    return proc.wait()

@contextmanager
def serve(*options, env=None):
    "`blf-dashboard` with `options`, and with `env` in its environment; gives the address that it prints."
    cmd = [sys.executable, '-c', 'from blf_explore.page.cli import dashboard; dashboard()', '--no-browser', *options]
    proc = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                            env=os.environ | (env or {}))
    serving.append(proc)
    try:
        seen = []
        for line in proc.stdout:
            seen.append(line)
            if m := re.search(r'http://\S+', line): break
        else: raise RuntimeError(f'blf-dashboard ended with {proc.wait()}: {"".join(seen)}')
        threading.Thread(target=proc.stdout.read, daemon=True).start() # a full pipe would stop the server
        yield m[0].rstrip('.,')
    finally:
        serving.remove(proc)
        stop(proc)

if __name__=='__main__': # exit code 0: there is a Chromium that starts
    with chromium(): pass

@contextmanager
def jupyterlab(folder, env=None):
    "JupyterLab on `folder`, with `env` in its environment; gives its address."
    cmd = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ServerApp.token=', '--ServerApp.password=', '--port=0',
           '--ServerApp.port_retries=0', f'--ServerApp.root_dir={folder}', '--LabApp.news_url=', '--LabApp.extension_manager=readonly']
    env = os.environ | {f'JUPYTER_{o}_DIR': str(folder/o.lower()) for o in ('CONFIG','RUNTIME')} | (env or {}) | {'JUPYTERLAB_SETTINGS_DIR': str(folder/'settings'), 'JUPYTERLAB_WORKSPACES_DIR': str(folder/'workspaces')}
    log = (folder/'log').open('w+')
    proc = subprocess.Popen(cmd, stdout=log, stderr=log, env=env)
    try:
        yield wait_until(lambda: re.search(r'http://(localhost|127\.0\.0\.1):\d+', (folder/'log').read_text()),
                         lambda: proc.poll() is not None and f'JupyterLab has ended: {(folder/"log").read_text()}', "JupyterLab's address")[0]
    finally:
        ours = [*psutil.Process(proc.pid).children(recursive=True), psutil.Process(proc.pid)] if proc.poll() is None else []
        for p in ours: p.terminate()
        for p in psutil.wait_procs(ours, timeout=10)[1]: p.kill() # JupyterLab's own way out is not what is tested
        proc.wait()
