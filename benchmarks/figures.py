"""How soon a moved slider shows in the what-if: python benchmarks/figures.py [--moves 200]

Opens the saved page in a headless Chromium, moves its sliders, and reads the page's own clock (performance.now(), from the move to the last
stroke drawn): for the record that comes with the package, and for a random one of 60,000 samples by 10 epochs."""
import argparse, sys, tempfile
from pathlib import Path
import numpy as np
sys.path.insert(0, str(Path(__file__).parent.parent/'tests'))
from blf_explore.engine.record import Record
from blf_explore.page.whatif import what_if_figure
from browser import chromium, until

moves = """async n => {
  const sliders = [...document.querySelectorAll('input')]
  for (let i = 0; i < n + 10; i++) {
    if (i === 10) BLF.times.length = 0 // the first ones warm up
    const s = sliders[i % sliders.length]
    s.value = (i * 0.37) % 1
    s.dispatchEvent(new Event('input'))
    await new Promise(requestAnimationFrame)
  }
  return BLF.times
}"""

def large(n=60_000, epochs=10, bs=128):
    "A record of random losses, as large as Fashion-MNIST's."
    rng,rec = np.random.default_rng(0),Record('plain', costs=dict(bs=bs, sizes=[8,bs], train=[.01,.07], methods={'BLF': dict(score=.015, select=.0004)}, device=''))
    for e in range(epochs):
        for i in range(0, n, bs):
            rec.losses.append((rng.exponential(size=min(bs, n-i))**(1+e/3)).astype(np.float16))
            rec.add('batches', epoch=e, batch=len(rec.losses)-1, n_seen=len(rec.losses[-1]), n_kept=len(rec.losses[-1]))
    return rec

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--moves', type=int, default=200)
    n = p.parse_args().moves
    for name,rec,aim in (('shipped', None, 16), ('60,000 samples by 10 epochs', large(), 50)):
        with tempfile.TemporaryDirectory() as d, chromium() as page:
            path = what_if_figure(rec).save(Path(d)/'a.html')
            size = path.stat().st_size
            page.goto(path.as_uri())
            until(page, "document.querySelectorAll('.panel canvas').length===3")
            ms = np.array(page.evaluate(moves, n))
        print(f'{name}: {size/1e6:.2f} MB, {len(ms)} moves, median {np.median(ms):.1f} ms, 95th percentile {np.quantile(ms, .95):.1f} ms (aim: below {aim})', flush=True)

if __name__=='__main__': main()
