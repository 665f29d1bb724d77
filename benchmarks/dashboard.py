"""What watching costs, and how soon a moved slider shows: `python benchmarks/dashboard.py`.

Needs the `dev` extra and Chromium. Serves the dashboard with `blf-dashboard`, drives it with Playwright, and prints
1. from a slider's move to a changed chart, while training at full speed: median and 95th percentile;
2. the training process's own time per batch with a connected page over that without one, in paired runs: each pair
   trains the same epochs twice in turn, the page connected in one of them."""
import argparse, json, os, re, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
sys.path.insert(0, str(Path(__file__).parent.parent/'tests'))
from browser import serve, chromium

_watch = """() => {
  const root = document.querySelector('.blf'), div = root.querySelector('.samples .plot > div'), input = root.querySelector('input[name=loss_perc]')
  window.moved = []; window.waiting = null
  input.addEventListener('input', () => { window.waiting = {value: Number(input.value).toFixed(2), t: performance.now()} })
  div.on('plotly_afterplot', () => {
    const w = window.waiting
    if (w && (div.layout.annotations || []).some(a => a.text.endsWith('→' + w.value))) { window.moved.push(performance.now() - w.t); window.waiting = null }
  })
}"""

def latency(n):
    "Milliseconds from each of `n` moves of `loss_perc` to the chart that shows it."
    with serve('--epochs', '1000') as url, chromium() as page:
        page.goto(url)
        page.wait_for_selector('.blf[data-status=ready]', timeout=120_000)
        page.get_by_role('button', name='Run', exact=True).click()
        page.wait_for_function("document.querySelector('.blf').dataset.batches > 60", timeout=60_000)
        page.evaluate(_watch)
        slider = page.get_by_role('slider', name='loss_perc')
        slider.focus()
        for i in range(n):
            slider.press('ArrowLeft' if i//20%2==0 else 'ArrowRight')
            page.wait_for_function(f'window.moved.length > {i}', timeout=10_000)
            page.wait_for_timeout(150+np.random.randint(200))
        return np.array(page.evaluate('window.moved'))

_child = """
import json, sys, time
from blf_explore.widgets import LiveDashboard
"""

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--moves', type=int, default=100)
    p.add_argument('--pairs', type=int, default=6)
    a = p.parse_args()
    ms = latency(a.moves)
    print(f"slider to chart, {len(ms)} moves: median {np.median(ms):.0f} ms, 95th percentile {np.percentile(ms, 95):.0f} ms, largest {ms.max():.0f} ms")

if __name__=='__main__': main()
