// The dashboard's page: it shows what Python sends and sends back what is clicked. Each part is a function that makes a node and
// returns it with `show`, which puts what is known into it. Of the arithmetic it knows one rule, that of the cut, so that the cut
// line moves with the slider; the next batch says what is really kept.
const CHARTS = {samples: 'Samples kept', time: 'Time', agreement: 'Gradient signs', accuracy: 'Accuracy'}
const MARGINS = {samples: [4.5, 5], time: [4.5, .8], agreement: [3.9, .8], accuracy: [3.9, .8]}  // left and right, in lines
const BY = {epoch: 'by epoch', seconds: 'by seconds', samples: 'by samples'}
const SETUP = [
  ['name', 'data', 'select'], ['path', 'folder', 'text'], ['network', 'network', 'select'], ['epochs', 'epochs', 'number'],
  ['lr', 'learning rate', 'text'], ['bs', 'batch size', 'number'], ['seed', 'seed', 'number'], ['redundancy', 'repeats', 'text'],
  ['label_noise', 'wrong labels', 'text'],
]
const SIDES = {method: ['A', ''], other: ['B', 'other_']}  // the two methods: letter, and what their settings' names begin with
const PACES = {0: 'full speed', 20: '20 batches/s', 5: '5 batches/s', 1: '1 batch/s'}
const QUIET = 4400, QUIET_LOADING = 20000  // milliseconds without a word after which the page says so; beats come every 2 s
const WORDS = {
  'epoch': 'Once through the training set.',
  'batch': 'The samples that are trained on together, in one step.',
  'loss': 'How wrong the network is on a sample: 0 is right and sure.',
  'score': 'What a method judges a sample by. Most take its loss.',
  'kept, skipped': 'The samples of a batch that are trained on, and those that are not.',
  'plain': 'The same training without any selection.',
  'scoring, selecting': 'What it costs to find out which samples to keep.',
  'overhead': 'Scoring and selecting, in percent of the other run’s time (in the CSV: of plain steps that were sampled).',
  '✓ ≈ ✗': 'Above an epoch: A took less time than B, about as much (within 5%), or more. If A is plain, it is B that is judged.',
  '±': 'How far the saving varies from epoch to epoch: the range that holds in 95 of 100 such runs.',
  'too close to call': 'The saving is within that range, or there are fewer than five seeds.',
  'sign agreement': 'For how many weights the kept samples push the same way, up or down, as all samples would.',
  '80% claimed': 'Jiang and others (2019) say that the hardest samples keep 80% of the signs.',
  'random pick': 'As many samples of the same batch, drawn without looking.',
  'validation loss': 'The loss on images that the network is never trained on. Accuracy is of the same images.',
  'by seconds, by samples': 'What each run had spent when it got there: training time, or samples trained on.',
  'label→taken for': 'What an image is, and what the network says.',
  'seed': 'Where all chance begins: the split, the weights, the shuffling. Both runs share it.',
  'repeats': 'How much of the training set is other images of it once more: what a filter can skip without loss.',
  'wrong labels': 'How many training labels are false. A filter finds those hard, and keeps them.',
  'learning rate': 'The highest step of a schedule that rises and then falls to nothing at the last epoch.',
  'pace': 'Slower than the machine can, so that one can watch.',
}

// ---- pure parts

// How many of a batch's losses, the hardest first, the settings keep; null: not by a rule that this page knows
export function cutOf(method, losses, settings) {
  const n = losses.length, count = share => Math.ceil(Math.round(n * share * 1e6) / 1e6)
  if (!n || losses.some(o => !Number.isFinite(o))) return null
  if (method === 'HNM') return Math.min(n, Math.max(1, count(settings.sample_perc)))
  if (method !== 'BLF') return null
  const mass = []
  losses.reduce((sum, o, i) => mass[i] = sum + o, 0)
  const i = settings.loss_perc >= 1 ? n - 1 : mass.findIndex(o => o >= settings.loss_perc * mass[n - 1])
  const hold = settings.loss_perc > 0 ? (i < 0 ? n : i + 1) : 0
  return Math.min(n, Math.max(1, hold, count(settings.sample_perc)))
}

// An address's query that opens a set-up, and the page as it looks
export function withLooks(query, looks) {
  const more = new URLSearchParams(Object.entries(looks).filter(([, v]) => v)).toString()
  return [query, more].filter(Boolean).join('&')
}

// What to say and do about silence: 'fine', 'lost', or 'asleep' where this page itself did not run for a while
export function silence(now, heard, looked, loading = false) {
  if (now - looked > 3500) return 'asleep'
  return now - heard > (loading ? QUIET_LOADING : QUIET) ? 'lost' : 'fine'
}

// Whether all that select here do so before an epoch begins, so that a slider waits for the next one
export function waits(s, methods = {}) {
  const selecting = Object.keys(SIDES).map(k => s.now?.[k]).filter(m => m && !['plain', 'none'].includes(m))
  return selecting.length > 0 && selecting.every(m => methods[m]?.each === 'epoch')
}

// The line that says how things stand
export function newsOf(s, watches = false, methods = {}) {
  const both = s.settings?.other !== 'none'
  if (s.status === 'done') return s.answer || 'Compare the curves: which run got there with less?'
  if (watches) return {loading: 'The run is being prepared.', ready: 'The run has not begun.', running: 'The sliders are moved elsewhere: watch what follows.', paused: 'It goes on when it is let.',
    error: 'It was stopped by an error.'}[s.status] || ''
  if (s.pending?.length) return 'What you changed waits: Reset begins again with it.'
  return {
    loading: s.queued ? 'It will run as soon as everything is loaded.' : 'Run may be pressed already.',
    ready: both ? 'Run trains A and B in turn, batch by batch, from the same seed.' : 'Run trains A.',
    running: waits(s, methods) ? 'Drag a slider: it holds from the next epoch on.' : 'Drag a slider: it holds from the very next batch.',
    paused: 'Run goes on, Step trains on one batch, Reset begins again.',
    error: 'Change the set-up, or Reset.',
  }[s.status] || ''
}

// What to look for in a chart now
export function lookFor(chart, s, by = 'epoch', methods = {}) {
  const selecting = Object.keys(SIDES).filter(k => s.now?.[k] && !['plain', 'none'].includes(s.now[k]))
  const begun = s.n_batch > 0, done = s.status === 'done'
  if (!selecting.length) return {samples: 'Plain training keeps all.', time: 'Plain training spends all on training.',
    agreement: 'All samples always agree with themselves.', accuracy: 'Choose a method for A to have something to compare.'}[chart]
  return {
    samples: !begun ? 'How many samples will it need? The bar fills batch by batch.'
      : done ? 'Did the share fall while the network learned?'
      : `Where a slider is moved, the line follows with the next ${waits(s, methods) ? 'epoch' : 'batch'}.`,
    time: !begun ? 'Guess first: will A’s bars be lower than B’s?'
      : done ? 'In which epochs is the mark ✓, and is the first one of them?' : 'Is what scoring adds less than what skipping saves?',
    agreement: !begun ? 'Is the hardest half of a batch a better choice than any half?'
      : 'Is the line above the dotted one? Then the choice beats chance.',
    accuracy: !begun ? 'Guess first: which curve will end higher?'
      : by === 'epoch' ? 'Do the curves run together? Then nothing was lost by skipping.'
      : by === 'seconds' ? 'Which curve is further left at the same height? It was quicker.'
      : 'Which curve is further left at the same height? It needed fewer samples.',
  }[chart]
}

// What a legend shows of a Plotly trace
export function legendItem(trace) {
  if (trace.fill) return {kind: 'box', color: trace.fillcolor, opacity: trace.opacity || 1}
  if (trace.type === 'bar') return {kind: trace.marker.pattern ? 'hatch' : 'box', color: trace.marker.color, opacity: trace.marker.pattern ? 1 : trace.marker.opacity || 1}
  const dash = trace.line?.dash
  return {kind: dash === 'dot' ? 'dot' : dash ? 'dash' : 'line', color: trace.line.color, opacity: trace.opacity || 1}
}

// A spec's layout at a type size (pixels), with margins that stay: measuring labels to make room would draw every chart twice
export function fitted(layout, chart, size, width = 600, height = 400) {
  const [left, right] = MARGINS[chart].map(o => o * size), small = size * (width < 32 * size ? .75 : .92), room = width - left - right, [x0, x1] = layout.xaxis.range
  const inside = a => {  // words beside an upright line end where the axis does
    if (a.xref || a.xanchor !== 'left') return a
    const at = room * (a.x - x0) / (x1 - x0), over = at + .56 * small * a.text.length - room
    return over > 0 ? {...a, xshift: -Math.min(over, at)} : a
  }
  const l = {...layout, font: {...layout.font, size: size * .92}, showlegend: false, autosize: true,
    margin: {l: left, r: right, t: size * .5, b: size * 2.75}}
  if (l.annotations) l.annotations = l.annotations.map(o => inside({...o, font: {...o.font, size: small}}))
  for (const a of ['xaxis', 'xaxis2', 'yaxis', 'yaxis2'])
    if (l[a]) l[a] = {...l[a], automargin: false, ...(height < 11 * size ? {title: {...l[a].title, font: {size: size * .78}}} : {})}
  return l
}

// A bar a sample, as one path: those for which `which(i)` holds, in a box of `n` by 100
export function barsPath(losses, which) {
  const top = Math.max(...losses.filter(Number.isFinite), 1e-9), step = Math.max(1, losses.length / 512)
  let d = ''
  for (let j = 0; j < losses.length; j += step) {
    const i = Math.floor(j)
    if (which(i)) d += `M${i} 100V${(100 - 100 * (Number.isFinite(losses[i]) ? losses[i] : top) / top).toFixed(1)}h${(.8 * step).toFixed(2)}V100z`
  }
  return d
}

// ---- small helpers

const el = (tag, attrs = {}, ...kids) => {
  const o = document.createElement(tag)
  for (const [k, v] of Object.entries(attrs)) {
    if (k.startsWith('on')) o.addEventListener(k.slice(2), v)
    else if (v !== null && v !== undefined && v !== false) o.setAttribute(k, v === true ? '' : v)
  }
  o.append(...kids)
  return o
}
const svg = (tag, attrs = {}, ...kids) => {
  const o = document.createElementNS('http://www.w3.org/2000/svg', tag)
  for (const [k, v] of Object.entries(attrs)) o.setAttribute(k, v)
  o.append(...kids)
  return o
}
const text = (node, s) => { if (node.textContent !== s) node.textContent = s }  // a reader is not told what has not changed
const remembered = (k, v) => {  // some pages may not remember anything
  try { return v === undefined ? localStorage.getItem(`blf-${k}`) : localStorage.setItem(`blf-${k}`, v) } catch { return null }
}
const calm = () => matchMedia('(prefers-reduced-motion: reduce)').matches
const nextTask = () => new Promise(r => { const c = new MessageChannel(); c.port1.onmessage = () => { c.port1.close(); r() }; c.port2.postMessage(0) })
const decimals = knob => knob.step < 1 ? 2 : 0

function download(name, href) {
  el('a', {href, download: name}).click()
}

// ---- the parts of the page; `page` holds what they share: `send`, `choices`, `role`, `hidden`, and what it is told of a slider

function header(page) {
  const button = (name, cls, type, tip) => el('button', {class: cls, title: tip, onclick: () => page.send(type)}, name)
  const run = el('button', {class: 'run', 'data-does': 'run', title: 'Train, or pause before the next batch', onclick: () => page.send(run.dataset.does)}, 'Run')
  const step = button('Step', 'step', 'step', 'Train on one batch'), stepEpoch = button('Step epoch', 'step-epoch', 'step_epoch', 'Train to the end of the epoch')
  const reset = button('Reset', 'reset', 'reset', 'Stop, and begin again with the settings below')
  const pace = el('select', {'data-k': 'pace', 'aria-label': 'pace', onchange: () => page.send('set', {settings: {pace: Number(pace.value)}})})
  for (const [v, t] of Object.entries(PACES)) pace.append(el('option', {value: v}, t))
  const fold = el('button', {class: 'fold', 'aria-expanded': 'false', onclick: () => {
    fold.setAttribute('aria-expanded', page.root.classList.toggle('unfolded'))
  }}, 'Set-up')
  const count = {}
  for (const k of ['epoch', 'batch', 'left']) count[k] = el('b', {class: 'n-' + k}, '–')
  const controls = el('fieldset', {class: 'controls', 'aria-label': 'training'}, run, step, stepEpoch, reset, pace, fold)
  const node = el('header', {}, ...(page.hidden.has('title') ? [] : [el('h1', {}, 'Does skipping easy samples pay?')]), ...(page.watches ? [] : [controls]),
    el('div', {class: 'count'}, el('span', {}, 'epoch ', count.epoch), el('span', {}, 'batch ', count.batch), el('span', {}, 'time left ', count.left)), tools(page).node)
  if (page.hidden.has('setup')) fold.remove()
  return {node, controls, show(s) {
    const on = s.status === 'running' || (s.status === 'loading' && s.queued)
    text(run, on ? 'Pause' : 'Run')
    run.dataset.does = on ? 'pause' : 'run'
    run.disabled = s.status === 'done' || s.status === 'error'
    step.disabled = stepEpoch.disabled = !['loading', 'ready', 'paused'].includes(s.status)
    reset.classList.toggle('pending', s.pending.length > 0)
    const v = String(s.settings.pace ?? 0)
    if (document.activeElement !== pace) {
      if (![...pace.options].some(o => o.value === v)) pace.append(el('option', {value: v}, `${v} batches/s`))
      pace.value = v
    }
    text(count.epoch, s.epoch ? `${s.epoch}/${s.n_epoch}` : '–')
    text(count.batch, s.n_iter ? `${s.batch}/${s.n_iter}` : '–')
    text(count.left, s.left)
    count.batch.dataset.total = s.n_batch
  }}
}

// What is the viewer's own: explanations, size, files, the link
function tools(page) {
  const toggle = (name, cls, tip, on, f) => {
    const o = el('button', {class: cls, title: tip, 'aria-pressed': String(on), onclick: () => {
      const now = o.getAttribute('aria-pressed') !== 'true'
      o.setAttribute('aria-pressed', now)
      f(now)
    }}, name)
    return o
  }
  const set = {
    explain: on => { page.root.classList.toggle('explain', on); remembered('explain', on ? 'yes' : 'no') },
    big: on => { on ? page.root.dataset.size = 'projector' : delete page.root.dataset.size },
  }
  const explain = remembered('explain') !== 'no', big = page.query.get('size') === 'projector'
  set.explain(explain)
  set.big(big)
  const link = el('button', {class: 'link', onclick: async () => {
    const query = page.setup(), address = page.model.share ? page.model.share(query) : `${location.origin + location.pathname}?${query}`
    try { await navigator.clipboard.writeText(address); text(link, 'Copied') } catch { prompt('The address', address) }
    setTimeout(() => text(link, 'Copy link'), 1500)
  }}, 'Copy link')
  const file = (name, what) => el('button', {onclick: () => page.send('file', {what})}, name)
  const menu = el('details', {class: 'menu'}, el('summary', {}, 'More'), el('div', {},
    ...(page.model.get('fill') ? [link] : []),
    el('button', {onclick: () => page.picture()}, 'Charts as a picture (PNG)'),
    ...(page.watches ? [] : [file('Epochs as a table (CSV)', 'csv'), file('Record (npz)', 'npz')]),
    el('button', {class: 'ask', onclick: () => { menu.open = false; page.words.toggle() }}, 'What the words mean')))
  menu.addEventListener('keydown', e => { if (e.key === 'Escape') { menu.open = false; menu.firstChild.focus() } })
  menu.lastChild.addEventListener('click', () => { menu.open = false })
  page.root.addEventListener('pointerdown', e => { if (!menu.contains(e.target)) menu.open = false })
  menu.addEventListener('focusout', e => { if (e.relatedTarget && !menu.contains(e.relatedTarget)) menu.open = false })
  return {node: el('div', {class: 'tools', role: 'group', 'aria-label': 'view'},
    toggle('Explain', 'explains', 'What the sliders and the charts mean, on the page', explain, set.explain),
    toggle('A+', 'bigger', 'Bigger, for a projector', big, set.big), menu)}
}

function words(page) {
  const close = el('button', {onclick: () => node.hidden = true}, 'Close')
  const node = el('section', {class: 'words', 'aria-label': 'What the words mean', hidden: ''}, el('h2', {}, 'What the words mean', close),
    el('dl', {}, ...Object.entries(WORDS).flatMap(([k, v]) => [el('dt', {}, k), el('dd', {}, v)])))
  node.addEventListener('keydown', e => { if (e.key === 'Escape') node.hidden = true })
  return {node, show() {}, toggle() { node.hidden = !node.hidden; if (!node.hidden) close.focus() }}
}

// How things stand, what came out, and what is to be done about it; at its right what each run has used
function news(page) {
  const state = el('b', {class: 'status'}, 'loading'), says = el('span', {class: 'answer'}), more = el('span', {class: 'evidence'})
  const act = {
    more: el('button', {class: 'more-seeds', title: 'Train the same set-up once more, with the next seed', hidden: true, onclick: () => page.send('more')}, 'One more seed'),
    go_on: el('button', {class: 'go-on', hidden: true, onclick: () => page.send('go_on')}, 'Go on'),
    anew: el('button', {class: 'anew', hidden: true, onclick: () => page.anew()}, 'Open it anew'),
  }
  const line = el('p', {role: 'status'}, state, ' ', says, ' ', more), far = el('table', {class: 'so-far', 'aria-label': 'so far'})
  const node = el('div', {class: 'news'}, el('div', {class: 'line'}, line, ...(page.watches ? [act.anew] : Object.values(act))), far)
  let last = null, whole = ''
  const fit = () => {  // the answer of many seeds and what was measured before are long
    const now = `${line.innerText} ${line.clientWidth}`
    if (now === whole) return
    whole = now
    for (const size of ['', 'small', 'smaller']) { line.dataset.fit = size; if (line.scrollHeight <= line.clientHeight + 2) break }
    line.title = line.innerText
  }
  const table = rows => far.replaceChildren(...(rows || []).slice(1).map(row => el('tr', {}, el('th', {scope: 'row'}, row[0]),
    ...row.slice(1).map((v, j) => el('td', row.length < rows[0].length ? {colspan: 2} : {class: 'ab'[j]},
      row.length < rows[0].length ? v : el('span', {}, el('i', {}, rows[0][j + 1]), v))))))
  const show = s => {
    last = s
    const away = page.watches ? '' : s.away  // it is the teacher's page that was away
    node.dataset.kind = page.lost ? 'lost' : away ? 'away' : s.status
    text(state, page.told ? 'Ended' : page.lost ? 'No answer' : s.status === 'done' ? 'Done' : s.status)
    text(says, page.lost || away || newsOf(s, page.watches, page.choices.methods))
    text(more, page.lost || s.status !== 'done' ? '' : s.evidence || '')
    act.more.hidden = page.lost || s.status !== 'done'
    act.go_on.hidden = page.lost || !away
    act.anew.hidden = !page.lost || !page.model.get('fill') || page.told  // where the server said why, it offers that, too
    table(s.so_far)
    fit()
  }
  return {node, show, again() { show(last || {status: 'loading'}) }}
}

function setup(page) {
  const {choices} = page, fields = {}, notes = {}
  let wantsFolder = false
  const presets = el('div', {class: 'presets', role: 'group', 'aria-label': 'set-ups'}, ...choices.presets.map(name =>
    el('button', {'data-preset': name, title: 'Stop, and begin again with this set-up', onclick: () => { wantsFolder = false; page.send('preset', {settings: {name}}) }}, name)))
  const node = el('fieldset', {class: 'setup', 'aria-label': 'set-up'}, presets)
  const showPath = name => { fields.path.parentNode.hidden = choices.shipped.includes(name) }
  const changed = (k, f) => {
    const settings = {[k]: f.value}  // as it was written: Python reads it
    if (k === 'name') {  // a folder of images needs its folder first
      wantsFolder = f.value === 'folder'
      showPath(f.value)
      if (wantsFolder) return void fields.path.focus()
    }
    if (k === 'path' && wantsFolder) settings.name = 'folder'
    wantsFolder = false
    page.send('set', {settings})
  }
  for (const [k, label, kind] of SETUP) {
    const id = `${k}-note-${page.view}`
    const f = fields[k] = kind === 'select' ? el('select') : el('input', {type: 'text', inputmode: kind === 'number' ? 'numeric' : k === 'path' ? 'text' : 'decimal', autocomplete: 'off'})
    if (kind === 'select') for (const [v, t] of Object.entries(choices[k])) f.append(el('option', {value: v}, t))
    if (k === 'path') f.placeholder = 'folder, or empty to download'
    f.dataset.k = k
    f.setAttribute('aria-label', label)
    f.setAttribute('aria-describedby', id)
    f.addEventListener('change', () => changed(k, f))
    notes[k] = el('span', {class: 'note', id, hidden: true})
    node.append(el('label', {'data-for': k}, el('b', {}, label), f, notes[k]))
  }
  return {node, fields, show(s, news) {
    for (const [k, f] of Object.entries(fields)) {
      if ((document.activeElement !== f || news) && !(wantsFolder && k === 'name')) f.value = s.fields[k]
      const note = s.notes?.[k] || ''
      text(notes[k], note)
      notes[k].hidden = !note
    }
    if (!wantsFolder) showPath(s.settings.name)
    for (const o of presets.children) o.setAttribute('aria-pressed', o.dataset.preset === s.preset)
  }}
}

// One slider: at most 20 messages a second, the first at once and the last always
function slider(page, k, letter, knob) {
  const id = `${k}-${page.view}`, out = el('output', {for: id}, '–'), help = el('p', {id: `${id}-help`}, knob.help)
  const input = el('input', {type: 'range', id, min: knob.lo, max: knob.hi, step: knob.step, name: k,
    'aria-label': `${knob.name} of ${letter}`, 'aria-describedby': `${id}-help`})
  let wait = null, last = -1e9
  const paint = v => {
    input.style.setProperty('--v', `${100 * (v - knob.lo) / (knob.hi - knob.lo)}%`)
    text(out, Number(v).toFixed(decimals(knob)))
  }
  const tell = () => { wait = null; last = performance.now(); page.send('set', {settings: {[k]: Number(input.value)}}) }
  input.addEventListener('input', () => {
    paint(input.value)
    page.slid(k, Number(input.value))
    wait ??= setTimeout(tell, Math.max(0, last + 50 - performance.now()))
  })
  const node = el('div', {class: 'knob'}, el('label', {for: id}, knob.name), help, input, out)
  let auto = null
  if (knob.default === null) {  // its method finds a value
    auto = el('button', {class: 'auto', title: 'As published, whatever share is drawn', onclick: () => { last = -1e9; page.send('set', {settings: {[k]: null}}) }}, 'published')
    node.append(auto)
  }
  return {node, busy: () => wait !== null || performance.now() - last < 400, show(v, published) {
    input.value = v ?? published
    paint(v ?? published)
    auto?.setAttribute('aria-pressed', v === null)
  }}
}

// The two methods with their sliders, the runs before, and the machine
function lanes(page) {
  const {choices} = page, lane = {}
  const node = el('fieldset', {class: 'knobs', 'aria-label': 'methods'})
  for (const [k, [letter, pre]] of Object.entries(SIDES)) {
    const choose = el('select', {'data-k': k, 'aria-label': `method ${letter}`, onchange: () => page.send('set', {settings: {[k]: choose.value}})})
    for (const [v, t] of Object.entries(choices[k])) choose.append(el('option', {value: v}, t))
    const own = el('div', {class: 'own'}), does = el('p', {class: 'does'}), says = el('p', {class: 'says'})
    const block = el('div', {class: 'lane ' + letter.toLowerCase()}, el('label', {class: 'choose'}, el('b', {}, letter), choose), says, does, own)
    lane[k] = {letter, pre, choose, own, does, says, block, sliders: {}}
    node.append(block)
  }
  const past = el('ul', {class: 'runs', 'aria-label': 'past runs'}), device = el('p', {class: 'device'})
  node.append(past, device)
  const showMethod = (k, now) => {
    const o = lane[k], m = choices.methods[now[k]]
    if (o.block.dataset.method === now[k]) return
    o.block.dataset.method = now[k]
    text(o.does, m ? m.help : '')
    const color = m ? m.color : '#767676'
    o.block.style.setProperty('--c', color)
    page.root.style.setProperty(k === 'method' ? '--a' : '--b', color)
    o.sliders = Object.fromEntries((m ? m.knobs : []).map(knob => [o.pre + knob.name, slider(page, o.pre + knob.name, o.letter, knob)]))
    o.own.replaceChildren(...Object.values(o.sliders).map(x => x.node))
    node.dataset.sliders = Object.values(lane).reduce((n, x) => n + Object.keys(x.sliders).length, 0)
  }
  const fit = () => {  // many sliders: first in a row each, then without what the methods do
    for (const how of ['', 'rows', 'sliders']) { node.dataset.fit = how; if (node.scrollHeight <= node.clientHeight + 1) break }
  }
  const sized = new ResizeObserver(fit)
  sized.observe(node)
  return {node, end: () => sized.disconnect(), show(s, news) {
    const before = node.textContent
    for (const [k, o] of Object.entries(lane)) {
      showMethod(k, s.now)
      for (const [name, x] of Object.entries(o.sliders)) if (!x.busy() || news) x.show(s.now[name], s.auto[name])
      if (document.activeElement !== o.choose || news) o.choose.value = s.settings[k]
      const trouble = s.diverged?.[k]
      text(o.says, trouble || s.says[k] || '')
      o.says.classList.toggle('trouble', !!trouble)
      o.block.classList.toggle('pending', s.pending.includes(k))
    }
    text(device, s.device ? `Measured here: ${s.device}` : '')
    if (node.textContent !== before) fit()
  }, runs(list) {
    past.replaceChildren(...(list || []).map(o => {
      const name = /(^|, )seed /.test(o.differs) ? o.differs : [`seed ${o.seed}`, o.differs].filter(Boolean).join(', '), what = `${(o.names || []).join(' and ')}, ${name}`
      return el('li', {title: what}, ...(o.colors || []).map(c => el('i', {style: `--k:${c}`})), el('span', {}, name),
        ...(page.watches ? [] : [el('button', {'aria-label': `Take the run with ${what} off the chart`, onclick: () => page.send('forget', {run: o.id})}, '×')]))
    }))
  }}
}

// One of the four charts: what it is, what it says now, what to look for, the legend, the plot
function chart(page, k) {
  const value = el('span', {class: 'value'}), more = el('span', {class: 'more'}), hint = el('p', {class: 'hint'})
  const legend = el('div', {class: 'legend', 'aria-hidden': 'true'}), plot = el('div', {role: 'img', 'aria-label': CHARTS[k]})
  const row = el('div', {class: 'row'}, legend, ...(k === 'accuracy' ? [page.by.node] : []))
  const node = el('section', {class: 'chart ' + k, 'aria-label': CHARTS[k]}, el('div', {class: 'head'}, el('h2', {}, CHARTS[k]), value, more), hint, row, el('div', {class: 'plot'}, plot))
  let spec = null, key = ''
  const chosen = o => k === 'accuracy' && o ? o[page.by.now] : o
  const spoken = said => {
    const words = chosen(spec)?.say || said
    if (words) plot.setAttribute('aria-label', `${CHARTS[k]}: ${words}`)
  }
  const showLegend = data => {  // Plotly's own takes longer, and wraps where there is room
    const items = data.filter(o => o.name && o.showlegend !== false).map(o => [o.name, legendItem(o)]), now = JSON.stringify(items)
    if (key === now) return
    key = now
    legend.replaceChildren(...items.map(([name, {kind, color, opacity}]) => el('span', {}, el('i', {class: kind, style: `--k:${color};opacity:${opacity}`}), name)))
  }
  let said = ''
  return {node, plot, take(o) { spec = o }, spec: () => chosen(spec), says: () => [value.textContent, more.textContent], flash() {  // look here
    if (calm()) return
    value.getAnimations().forEach(o => o.cancel())
    value.animate([{background: '#F0E442'}, {background: 'transparent'}], 1500)
  }, show(s) {
    const parts = chosen(s.values[k]) || []
    value.replaceChildren(...parts.filter(([, c]) => c).map(([t, c]) => el('span', {class: c}, t)))
    text(more, parts.filter(([, c]) => !c).map(([t]) => t).join(''))
    text(hint, lookFor(k, s, page.by.now, page.choices.methods))
    said = parts.map(([t]) => t).join(' ')
    spoken(said)
  }, draw(Plotly) {
    const now = chosen(spec)
    if (!plot.isConnected || !plot.clientWidth) return
    if (!now) { key = ''; legend.replaceChildren(); return void Plotly.purge(plot) }
    showLegend(now.data)
    spoken(said)
    return Plotly.react(plot, now.data, fitted(now.layout, k, parseFloat(getComputedStyle(page.root).fontSize), plot.clientWidth, plot.clientHeight), {displayModeBar: false, responsive: false, doubleClick: false})
  }, clear(Plotly) { Plotly.purge(plot) }}
}

// What accuracy is counted by: each page's own choice
function byButtons(changed) {
  const res = {now: 'epoch', node: el('div', {class: 'by', role: 'group', 'aria-label': 'Accuracy by'})}
  const press = () => { for (const o of res.node.children) o.setAttribute('aria-pressed', o.dataset.by === res.now) }
  res.node.append(...Object.entries(BY).map(([by, name]) => el('button', {'data-by': by, onclick: () => { res.now = by; press(); changed() }}, name)))
  press()
  return res
}

function charts(page) {
  const node = el('div', {class: 'charts'}), all = {}, dirty = new Set()
  let drawing = null, state = null
  page.by = byButtons(() => { if (state) all.accuracy?.show(state); redraw(['accuracy']) })
  for (const k of Object.keys(CHARTS)) if (!page.hidden.has(k)) node.append((all[k] = chart(page, k)).node)
  node.dataset.n = Object.keys(all).length
  const what = el('div', {}, 'Loading'), bar = el('progress', {'aria-label': 'loading'}), veil = el('div', {class: 'veil'}, el('div', {}, what, bar))
  node.append(veil)
  const drawDirty = async () => {  // one chart a task, so that what the slider changes need not wait for the others
    const Plotly = await loadPlotly(page)
    while (dirty.size) {
      const k = Object.keys(all).find(o => dirty.has(o))
      dirty.delete(k)
      all[k].draw(Plotly)
      await nextTask()
    }
  }
  const redraw = names => {
    names.forEach(k => all[k] && dirty.add(k))
    if (dirty.size) return drawing ??= drawDirty().finally(() => { drawing = null })
  }
  const sized = new ResizeObserver(() => { if (window.Plotly) redraw(Object.keys(all).filter(k => all[k].spec())) })
  sized.observe(node)
  return {node, redraw, flash() { all.samples?.flash() }, take(k, spec) { all[k]?.take(spec) }, show(s) {
    state = s
    veil.hidden = s.status !== 'loading'
    text(what, (s.what || 'Loading') + ' …')
    const [i, n] = s.progress || []
    if (n) { bar.max = n; bar.value = i } else bar.removeAttribute('value')
    for (const o of Object.values(all)) o.show(s)
  }, titled: () => Object.entries(all).filter(([, o]) => o.spec()).map(([k, o]) => [CHARTS[k], o.spec(), k, ...o.says()]),
  end() { sized.disconnect(); if (window.Plotly) for (const o of Object.values(all)) o.clear(window.Plotly) }}
}

// The idea of every filter: one batch's losses, the hardest first, and where they are cut
function idea(page, marked) {
  const kept = svg('path', {class: 'kept'}), skipped = svg('path', {class: 'skipped'}), at = svg('path', {class: 'at'})
  const plot = svg('svg', {preserveAspectRatio: 'none', 'aria-hidden': 'true'}, skipped, kept, at)
  const top = el('span', {class: 'top'}), line = el('div', {class: 'cut', hidden: ''}), curve = el('div', {class: 'curve', role: 'img'}, plot, top, line)
  const pics = el('div', {class: 'pics-at'}), title = el('span', {}, 'One batch'), says = el('small')
  const node = el('section', {class: 'idea', 'aria-label': 'One batch, the hardest first'}, el('h2', {}, title, ' ', says), curve, pics)
  let batch = null, now = null, moved = {}, told = ''
  const side = () => page.choices.methods[now?.method]?.knobs.length ? 'method' : 'other'
  const guess = () => {  // where the sliders as they stand would cut this batch, once they have been moved
    const pre = SIDES[side()][1], keys = ['loss_perc', 'sample_perc']
    if (!now || !keys.some(k => pre + k in moved)) return null
    return cutOf(now[side()], batch.losses, Object.fromEntries(keys.map(k => [k, moved[pre + k] ?? now[pre + k]])))
  }
  const draw = () => {
    node.classList.toggle('empty', !batch)
    pics.hidden = curve.hidden = !batch
    if (!batch) {
      text(title, 'One batch')
      return text(says, now && waits({now}, page.choices.methods) ? `There is none to show: ${page.choices.methods[now[side()]].label} chooses before an epoch begins.`
        : 'After the first step: its samples sorted by what they were judged by, and where the method cuts.')
    }
    const n = batch.losses.length, would = guess(), is = would === null ? i => batch.kept[i] : i => i < would
    const count = would ?? batch.kept.filter(Boolean).length, cut = would ?? batch.cut
    kept.setAttribute('d', barsPath(batch.losses, is))
    skipped.setAttribute('d', barsPath(batch.losses, i => !is(i)))
    line.hidden = cut === null || cut === undefined || cut >= n
    line.style.left = `${100 * cut / n}%`
    for (const o of pics.children) for (const c of ['kept', 'skipped']) o.classList.toggle(c, is(Number(o.dataset.i)) === (c === 'kept'))
    told = would === null ? `it kept ${count} of ${n}` : `here it would keep ${count} of ${n}; the next batch shows`
    curve.setAttribute('aria-label', `${n} samples, the hardest first: ${batch.score} ${losses(0)} to ${losses(n - 1)}; ${told}`)
    mark()
  }
  const losses = i => Number.isFinite(batch.losses[i]) ? String(batch.losses[i]) : 'not finite'
  const take = o => {
    batch = o
    moved = {}
    marked.at = null
    if (batch) {
      const n = batch.losses.length
      plot.setAttribute('viewBox', `0 0 ${n} 100`)
      text(title, `One batch of ${batch.name}, sorted by ${batch.score}`)
      text(top, `${batch.score} up to ${losses(0)}`)
      pics.replaceChildren(...(batch.images || []).map(o => {
        const b = picture(o, batch.score, batch.kept[o.i] ? 'kept' : 'skipped', marked)
        b.style.left = `clamp(1.4em, ${100 * (o.i + .5) / n}%, 100% - 1.4em)`
        return b
      }))
    }
    draw()
  }
  const mark = () => {
    const i = marked.at
    at.setAttribute('d', batch && i !== null && i < batch.losses.length ? barsPath(batch.losses, j => j === i) || `M${i} 100V0` : '')
    curve.style.setProperty('--at', `${100 * ((i ?? 0) + .5) / (batch?.losses.length || 1)}%`)
    curve.classList.toggle('marked', !!batch && i !== null)
    let what = ''
    for (const o of page.root.querySelectorAll('.pic')) {
      const on = i !== null && o.dataset.i === String(i)
      o.setAttribute('aria-pressed', on)
      if (on) what = o.title
    }
    if (batch) text(says, what ? `▲ ${what}` : told)
  }
  marked.tell.push(mark)
  return {node, take, show(s) {
    const other = now?.method !== s.now.method || now?.other !== s.now.other
    now = s.now
    if (!other) return
    node.style.setProperty('--c', `var(--${side() === 'method' ? 'a' : 'b'})`)
    draw()
  }, slid(k, v) { moved[k] = v; if (batch) draw() }}
}

// A sample; a click marks it on the curve
function picture(o, score, cls, marked) {
  const what = `${o.label}${o.label === o.pred ? '' : `, taken for ${o.pred}`}, ${score} ${o.loss}, ${cls}`
  return el('button', {class: `pic ${cls}`, title: what, 'aria-label': what, 'data-i': o.i ?? '', 'aria-pressed': 'false',
    onclick: () => { marked.at = marked.at === o.i ? null : o.i ?? null; marked.tell.forEach(f => f()) }}, el('img', {src: o.src, alt: ''}))
}

// The hardest that were kept and the easiest that were not
function strip(page, marked) {
  const pics = {kept: el('div', {class: 'pics'}), skipped: el('div', {class: 'pics'})}, score = el('small')
  const node = el('div', {class: 'strip'}, el('div', {class: 'side kept'}, el('h2', {}, 'Hardest kept ', score), pics.kept),
    el('div', {class: 'side skipped'}, el('h2', {}, 'Easiest skipped'), pics.skipped))
  return {node, show() {}, take(s) {
    text(score, s ? 'label→taken for' : '')
    for (const [side, box] of Object.entries(pics)) {
      const items = s ? s[side] : []
      box.replaceChildren(...(items.length ? items.map(o => el('figure', {}, picture(o, s.score, side, marked), el('figcaption', {}, el('b', {}, o.loss)),
        el('figcaption', {class: o.label === o.pred ? '' : 'wrong'}, ...(o.label === o.pred ? [o.label] : [`${o.label}→`, el('wbr'), o.pred]))))
        : [el('div', {class: 'none'}, s ? 'nothing was skipped' : '–')]))
    }
  }}
}

function errors(page) {
  const says = el('span'), ok = el('button', {onclick: () => { node.hidden = true; page.send('ok') }}, 'OK')
  const node = el('div', {class: 'error', role: 'alert', hidden: ''}, says, ok)
  let last = [0, '']
  const say = s => { node.hidden = !s; says.textContent = s }
  return {node, say, news(s) {  // each error speaks once, and takes wrong fields back
    const now = [s.error_id ?? 0, s.error], news = now.some((o, i) => o !== last[i])
    last = now
    const field = SETUP.find(([k]) => s.error.startsWith(k + '='))  // as it is called on the page
    if (news) say(field && field[0] !== field[1] ? `${field[1]}: ${s.error}` : s.error)
    return news && !!s.error
  }}
}

// ---- what goes to Python and comes from it

// plotly.js comes from the server, or from Python, whom each dashboard asks for itself: the one before may be gone before its answer comes
function loadPlotly(page) {
  const {model, view} = page
  page.plotly ??= window.blfPlotly ?? (window.Plotly ? Promise.resolve(window.Plotly) : new Promise((done, fail) => {
    const got = async (msg, buffers) => {
      if (msg.type !== 'plotly' || msg.view !== view) return
      model.off('msg:custom', got)
      // its header looks for module loaders, which some pages have for themselves
      const hide = 'const module = undefined, exports = undefined, define = undefined;\n'
      const url = URL.createObjectURL(new Blob([hide, buffers[0]], {type: 'text/javascript'}))
      try { if (!window.Plotly) await import(/* webpackIgnore: true */ url); done(window.Plotly) } catch (e) { page.plotly = null; fail(e) } finally { URL.revokeObjectURL(url) }
    }
    model.on('msg:custom', got)
    model.send({type: 'plotly', view})
  }))
  return page.plotly
}

// Takes messages, answers each update once it is drawn, says hello and good-bye, and notices silence
function protocol(page, take, lost) {
  const {model, send} = page
  const slow = () => !model.get('fill') && page.state?.status === 'loading'  // a kernel that loads PyTorch may say nothing for a while; a server does
  let heard = performance.now(), looked = heard, gone = false, asked = 0
  const hello = () => { asked = performance.now(); send('hello', {query: page.state ? '?' + page.state.query : page.search}) }
  const back = () => { gone = false; lost(false) }
  const onMsg = async msg => {
    if (msg.type === 'lost') { gone = true; return lost(true, msg.say) }  // the server is there and says why this run is not
    if (!['update', 'beat', 'file'].includes(msg.type)) return
    heard = performance.now()
    if (page.told && msg.type !== 'update') return
    if (gone) { back(); if (msg.type === 'beat') hello() }  // it may be another one: ask for everything
    if (msg.type === 'file' && msg.view === page.view) download(msg.name, `data:${msg.mime};base64,${msg.data}`)
    if (msg.type === 'update') try { await take(msg.parts) } finally { send('ack') }
  }
  const look = () => {
    const now = performance.now(), what = silence(now, heard, looked, slow())
    looked = now
    if (what === 'asleep') { heard = now; hello() }
    if (what === 'lost' && !gone) { gone = true; lost(true) }
    if (gone && !page.told && now - asked > QUIET) hello()
  }
  const bye = () => send('bye'), again = e => { if (e.persisted) hello() }
  const timer = setInterval(look, 500)
  model.on('msg:custom', onMsg)
  window.addEventListener('pagehide', bye)
  window.addEventListener('pageshow', again)
  hello()
  return {end() {
    bye()
    clearInterval(timer)
    model.off('msg:custom', onMsg)
    window.removeEventListener('pagehide', bye)
    window.removeEventListener('pageshow', again)
  }}
}

// What was trained, for who sees the picture alone
export function setupOf(s, choices) {
  const o = s.now, sides = Object.entries(SIDES).filter(([k]) => o[k] !== 'none').map(([k, [, pre]]) => [choices.methods[o[k]].label,
    ...choices.methods[o[k]].knobs.map(({name}) => `${name} ${o[pre + name] ?? 'published'}`)].join(' '))
  const rest = SETUP.filter(([k]) => k !== 'path' && k in s.fields && (o[k] || !['redundancy', 'label_noise'].includes(k)))
    .map(([k, label, kind]) => kind === 'select' ? choices[k][s.fields[k]] || s.fields[k] : `${label} ${s.fields[k]}`)
  return [sides.join(' beside '), ...rest].join(', ')
}

// All charts in one PNG, with what was trained beneath
async function asPicture(page, titled) {
  const Plotly = await loadPlotly(page), [w, h, top] = [880, 460, 44], n = titled.length, cols = n > 1 ? 2 : 1
  const canvas = el('canvas', {width: cols * w, height: Math.ceil(n / cols) * (h + top) + 40}), g = canvas.getContext('2d')
  const write = (s, x, y, font, color = '#1c1c1c') => {
    g.fillStyle = color
    g.font = `${font} system-ui, sans-serif`
    g.fillText(s, x, y)
    return x + g.measureText(s).width + 14
  }
  g.fillStyle = '#fff'
  g.fillRect(0, 0, canvas.width, canvas.height)
  for (const [i, [title, spec, k, value, more]] of titled.entries()) {
    const layout = {...fitted(spec.layout, k, 17), showlegend: true}, [x, y] = [i % cols * w, Math.floor(i / cols) * (h + top)]
    layout.margin.t = 40
    const img = el('img', {src: await Plotly.toImage({data: spec.data, layout}, {format: 'png', width: w, height: h})})
    await img.decode()
    g.drawImage(img, x, y + top, w, h)
    const said = write(value, write(title, x + 16, y + 32, '600 24px'), y + 32, '600 24px', '#00558a')
    write(more, said, y + 32, '18px', '#555')
  }
  write(setupOf(page.state, page.choices), 16, canvas.height - 14, '18px', '#555')
  return canvas.toDataURL('image/png')
}

// For a notebook that is opened without its kernel: the charts as they were when all stood still. The notebook shows it in an output of its
// own, before this one, where it is hidden while there is a page to look at
function stillPicture(page, host, charts) {
  const {model} = page, notebook = !model.get('fill')
  let of = '', still = model.get('picture'), watched = null
  const keep = async () => {
    const {status, n_batch} = page.state || {}, now = `${status} ${n_batch}`
    if (!['paused', 'done'].includes(status)) { of = ''; return }  // the next run may end with the same batch
    if (!notebook || page.watches || now === of) return
    of = now
    try {
      still = await asPicture(page, charts.titled())
      page.send('picture', {data: still})
    } catch { of = '' }
  }
  const hide = () => {  // it is put there anew with every picture sent
    for (let o = notebook ? host : null; o && o !== document.body; o = o.parentElement) {
      const before = o.previousElementSibling, img = before?.querySelector('img')
      if (!img || ![still, model.get('picture')].includes(img.src)) continue
      before.style.display = 'none'
      if (!watched) (watched = new MutationObserver(hide)).observe(o.parentElement, {childList: true})
      return
    }
  }
  setTimeout(hide)  // once this is part of the notebook
  return {keep, end() { watched?.disconnect() }}
}

// The parts in their places, but for those that the address hides
function assemble({root, hidden, watches, words}, parts) {
  const shown = (name, o) => hidden.has(name) ? [] : [o.node], {charts} = parts
  const main = el('div', {class: 'main'}, ...shown('sliders', parts.lanes), ...(charts.node.dataset.n === '0' ? [] : [charts.node]))
  const band = el('div', {class: 'band'}, ...shown('batch', parts.idea), ...shown('images', parts.strip))
  root.append(parts.header.node, ...(watches ? [] : shown('setup', parts.setup)), ...shown('news', parts.news),
    ...[main, band].filter(o => o.childElementCount), parts.errors.node, words.node)
}

function render({model, el: host}) {
  const view = Math.random().toString(36).slice(2), fill = !!model.get('fill'), search = fill ? location.search : ''
  const query = new URLSearchParams(search), hidden = new Set((query.get('hide') || '').split(',').filter(Boolean))
  const watches = model.get('role') === 'watch', root = el('div', {class: ['blf', ...(fill ? ['fill'] : []), ...(watches ? ['watches'] : [])].join(' ')})
  const page = {model, view, root, search, query, hidden, choices: model.get('choices'), watches, state: null, lost: '',
    send: (type, more = {}) => model.send({type, view, ...more}),
    setup: () => withLooks(page.state.query, {hide: [...hidden].join(','), size: root.dataset.size}),
    anew: () => model.renew ? model.renew() : location.reload(),
    picture: async () => { try { download('blf-explore.png', await asPicture(page, parts.charts.titled())) } catch (e) { parts.errors.say(`The picture could not be made: ${e}`) } },
    slid: (k, v) => { parts.charts.flash(); parts.idea.slid(k, v) }}
  const marked = {at: null, tell: []}
  page.words = words(page)
  const parts = {header: header(page), setup: setup(page), news: news(page), lanes: lanes(page), charts: charts(page), idea: idea(page, marked), strip: strip(page, marked), errors: errors(page)}
  const controls = [parts.header.controls, parts.setup.node, parts.lanes.node]
  parts.lanes.node.disabled = page.watches

  assemble(page, parts)
  const fit = () => { root.style.height = root.clientWidth > 1000 ? model.get('height') + 'px' : 'auto' }, high = new ResizeObserver(fit)  // a narrow notebook scrolls itself
  host.append(root)
  if (!fill) { fit(); high.observe(root) }

  const showState = s => {
    page.state = s
    const wrong = parts.errors.news(s)
    for (const o of ['header', 'news', 'setup', 'lanes', 'charts', 'idea']) parts[o].show(s, wrong)
    root.dataset.status = s.status
    root.dataset.batches = s.n_batch
  }
  const take = async all => {
    const specs = []
    for (const [k, v] of Object.entries(all)) {
      const o = JSON.parse(v)
      if (k === 'state') showState(o)
      else if (k in CHARTS) { parts.charts.take(k, o); specs.push(k) }
      else if (k === 'batch') parts.idea.take(o)
      else if (k === 'strip') parts.strip.take(o)
      else if (k === 'runs') parts.lanes.runs(o)
    }
    await parts.charts.redraw(specs)
    still.keep()
  }
  const lost = (gone, say = '') => {
    page.told = !!say
    page.lost = !gone ? '' : say ? say : fill ? 'Nothing of this run has come from the server for 5 s: it is shown as it was last seen.'
      : 'Nothing has come from the kernel for 5 s. If it was stopped, run the cell again.'
    root.toggleAttribute('data-lost', gone)
    for (const o of controls) o.disabled = gone || page.watches
    parts.news.again()
  }
  const still = stillPicture(page, host, parts.charts), talk = protocol(page, take, lost)
  loadPlotly(page).catch(e => parts.errors.say(`The charts cannot be drawn: ${e}`))
  return () => { talk.end(); parts.charts.end(); parts.lanes.end(); still.end(); high.disconnect() }
}

export {render}
export default {render}
