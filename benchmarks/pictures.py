"Take the dashboard's pictures in nbs/images and the example in the package anew: `python benchmarks/pictures.py`. Needs the `dev` extra and Chromium."
import sys
from pathlib import Path
root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'tests'))
from browser import chromium, serve, until

def at_least(page, n): until(page, f"document.querySelector('.blf').dataset.batches>={n}")

def begin(page, url, query):
    page.goto(f'{url}?{query}')
    page.wait_for_selector('.blf[data-status=ready]', timeout=120_000)
    page.wait_for_timeout(1000)
    page.get_by_role('button', name='Run', exact=True).click()

def end(page, n, name):
    at_least(page, n)
    page.get_by_role('button', name='Pause', exact=True).click()
    page.wait_for_selector('.blf[data-status=paused]')
    page.mouse.move(640, 715)
    page.wait_for_timeout(2500) # until the slider's mark has faded
    page.screenshot(path=root/'nbs'/'images'/name)

with serve() as url, chromium() as page:
    begin(page, url, 'name=digits&bs=64&epochs=20&pace=60')
    at_least(page, 190)
    slider = page.get_by_role('slider', name='loss_perc of A', exact=True)
    box = slider.bounding_box()
    y,x = box['y']+box['height']/2,lambda v: box['x']+8+(box['width']-16)*v
    page.mouse.move(x(.9), y)
    page.mouse.down()
    page.mouse.move(x(.3), y, steps=6)
    page.mouse.up()
    end(page, 330, 'dashboard.png')
    begin(page, url, 'name=digits&bs=64&epochs=16&method=SB&beta=1&other=BLF')
    page.get_by_role('button', name='by samples').click()
    end(page, 300, 'race.png')

# what a notebook shows where there is no kernel and nothing was trained
from PIL import Image, ImageDraw, ImageFont
shot = Image.open(root/'nbs'/'images'/'dashboard.png').convert('RGB')
im = Image.new('RGB', (shot.width, shot.height+44), '#fff8e0')
ImageDraw.Draw(im).text((12, 11), 'An example, not a run of this notebook: run the cell, and the dashboard stands here.', fill='#1c1c1c', font=ImageFont.load_default(19))
im.paste(shot, (0, 44))
im.quantize(96).save(root/'blf_explore'/'page'/'dashboard.png', optimize=True)
