"""Set everything up and run every test: python3 tests/run.py [pytest's arguments]
The fast ones alone, no lesson and no browser, in under two minutes: python3 tests/run.py fast [pytest's arguments]

Needs Python 3.10 or newer with pip, and the network for packages. Installs into the virtual environment it is run in, or else
into .venv, and makes sure that a Chromium exists (not for the fast ones). The last line is pytest's, the exit code not 0 if anything failed."""
import hashlib, os, shutil, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def say(s): print(f'--- {s}', flush=True)

def venv_python(folder): return Path(folder)/('Scripts/python.exe' if os.name=='nt' else 'bin/python')

def python():
    "The Python to test with: of the active virtual environment, else of .venv, which is made if need be."
    if sys.prefix!=sys.base_prefix: return Path(sys.executable)
    if 'VIRTUAL_ENV' in os.environ: return venv_python(os.environ['VIRTUAL_ENV'])
    res = venv_python(root/'.venv')
    if not res.exists():
        say('making .venv')
        subprocess.run([sys.executable, '-m', 'venv', root/'.venv'], check=True)
    return res

def install(py):
    "pip install -e .[dev], unless that was done since the requirements changed."
    prefix = subprocess.run([py, '-c', 'import sys; print(sys.prefix)'], check=True, capture_output=True, text=True).stdout.strip()
    wanted = str(root) + hashlib.sha256(b''.join((root/o).read_bytes() for o in ('settings.ini','setup.py','pyproject.toml'))).hexdigest()
    done = Path(prefix)/'blf_explore-dev.txt'
    if done.exists() and done.read_text()==wanted: return
    say('installing the package with its development tools')
    subprocess.run([py, '-m', 'pip', 'install', '--quiet', '-e', f'{root}[dev]'], check=True)
    done.write_text(wanted)

def ensure_chromium(py):
    "Chromium from this machine, else from Playwright, else from the Debian packages."
    def found(): return subprocess.run([py, root/'tests'/'browser.py'], capture_output=True).returncode==0
    if found(): return
    say('installing Chromium')
    sudo = ['sudo'] if hasattr(os, 'geteuid') and os.geteuid() and shutil.which('sudo') else []
    apt = [*sudo, 'apt-get']
    for cmds in ([[py, '-m', 'playwright', 'install', '--with-deps', 'chromium']],
                 [[*apt, 'update', '-qq'], [*apt, 'install', '-y', '-qq', 'chromium']]):
        try: ok = all(subprocess.run(o).returncode==0 for o in cmds)
        except OSError: ok = False
        if ok and found(): return
    sys.exit('No Chromium: neither on the PATH (chromium, chromium-browser, google-chrome), nor from Playwright, nor from apt-get')

def main():
    if sys.version_info<(3,10): sys.exit(f'Python 3.10 or newer is needed, this is {sys.version.split()[0]}')
    py = python()
    try: install(py)
    except subprocess.CalledProcessError as e: sys.exit(f'{" ".join(map(str, e.cmd))} failed')
    args = sys.argv[1:]
    if args[:1]==['fast']: args[:1] = ['-m', 'not (lesson or browser or slow)']
    else: ensure_chromium(py)
    say('testing')
    # two processes, a lesson or a file of tests each at a time; threads of both on the same cores would wait for each other
    env = {'OMP_NUM_THREADS': '1'} | os.environ | {'PATH': f'{py.parent}{os.pathsep}{os.environ["PATH"]}', 'VIRTUAL_ENV': str(py.parent.parent)}
    cmd = [py, '-m', 'pytest', '-q', '-n', '2', '--dist', 'loadgroup', '--no-loadscope-reorder', *args]
    sys.exit(subprocess.run(cmd, cwd=root, env=env).returncode)

if __name__=='__main__': main()
