"A served dashboard and a headless Chromium, for the tests and the benchmarks."
import os, re, shutil, signal, subprocess, sys, threading
from contextlib import contextmanager

def launch(p):
    "The first Chromium that starts: the machine's own (on Ubuntu it may be an empty shell), or that of Playwright."
    for path in (*filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None):
        try: return p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu', '--disable-background-networking',
                                                                  '--disable-component-update'])
        except Exception:
            if path is None: raise

@contextmanager
def chromium(width=1280, height=720):
    "A page of a fresh browser."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = launch(p)
        try: yield browser.new_page(viewport=dict(width=width, height=height))
        finally: browser.close()

@contextmanager
def serve(*options, env=None):
    "`blf-dashboard` with `options`, and with `env` in its environment; gives the address that it prints."
    cmd = [sys.executable, '-c', 'from blf_explore.page.cli import dashboard; dashboard()', '--no-browser', *options]
    proc = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                            env=os.environ | (env or {}))
    try:
        seen = []
        for line in proc.stdout:
            seen.append(line)
            if m := re.search(r'http://\S+', line): break
        else: raise RuntimeError(f'blf-dashboard ended with {proc.wait()}: {"".join(seen)}')
        threading.Thread(target=proc.stdout.read, daemon=True).start() # a full pipe would stop the server
        yield m[0].rstrip('.,')
    finally:
        proc.send_signal(signal.SIGINT)
        try: proc.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(proc.pid, signal.SIGKILL)
            proc.wait()

if __name__=='__main__': # exit code 0: there is a Chromium that starts
    with chromium(): pass
