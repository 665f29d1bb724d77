// The dashboard's page: it shows what Python sends and sends back what is clicked; it computes nothing.
const CHARTS = [
  ['samples', 'Samples kept', 'Drag a slider: the line moves with the very next batch, the bar of this epoch grows slower or faster.'],
  ['time', 'Time', 'Each epoch beside that of the other run. ✓: scoring, selecting and training together took less than the other; ✗: they took more.'],
  ['agreement', 'Gradient signs', 'Above the dotted line the kept samples point where all samples point, better than a random pick does.'],
  ['accuracy', 'Accuracy', 'Both runs have the same seed and their own full schedule. By seconds and by samples each run counts its own.'],
]
const BY = {epoch: 'by epoch', seconds: 'by seconds', samples: 'by samples'}
const MARGINS = {samples: [4.5, 5], time: [4.5, .8], agreement: [3.9, .8], accuracy: [3.9, .8]}  // left and right, in lines
const SETUP = [
  ['name', 'data', 'select'], ['path', 'folder', 'text'], ['network', 'network', 'select'], ['epochs', 'epochs', 'number'],
  ['lr', 'learning rate', 'text'], ['bs', 'batch size', 'number'], ['seed', 'seed', 'number'], ['redundancy', 'repeats', 'text'],
  ['label_noise', 'wrong labels', 'text'], ['pace', 'pace', 'select'],
]
const SIDES = {method: ['A', ''], other: ['B', 'other_']}  // the two methods: letter, and what their settings' names begin with
const NUMBERS = ['epochs', 'lr', 'bs', 'seed', 'redundancy', 'label_noise', 'pace']
const PACES = {0: 'full speed', 20: '20 batches/s', 5: '5 batches/s', 1: '1 batch/s'}
const el = (tag, attrs = {}, ...kids) => {
  const o = document.createElement(tag)
  for (const [k, v] of Object.entries(attrs)) k.startsWith('on') ? o.addEventListener(k.slice(2), v) : o.setAttribute(k, v)
  o.append(...kids)
  return o
}

// plotly.js comes from Python, once a page: no network is needed
function loadPlotly(model, view) {
  window.blfPlotly ??= window.Plotly ? Promise.resolve(window.Plotly) : new Promise((done, fail) => {
    const got = async (msg, buffers) => {
      if (msg.type !== 'plotly' || msg.view !== view) return
      model.off('msg:custom', got)
      // its header looks for module loaders, which some pages have for themselves
      const hide = 'const module = undefined, exports = undefined, define = undefined;\n'
      const url = URL.createObjectURL(new Blob([hide, buffers[0]], {type: 'text/javascript'}))
      try { await import(/* webpackIgnore: true */ url); done(window.Plotly) } catch (e) { window.blfPlotly = null; fail(e) } finally { URL.revokeObjectURL(url) }
    }
    model.on('msg:custom', got)
    model.send({type: 'plotly', view})
  })
  return window.blfPlotly
}

async function render({model, el: host}) {
  const view = Math.random().toString(36).slice(2)
  const send = (type, more = {}) => model.send({type, view, ...more})
  const fill = model.get('fill')
  const query = fill ? location.search : ''
  const hidden = new Set((new URLSearchParams(query).get('hide') || '').split(',').filter(Boolean))

  // ---- the page
  const button = (name, cls, type, tip) => el('button', {class: cls, title: tip, onclick: () => send(type)}, name)
  const run = el('button', {class: 'run', title: 'Train, or pause before the next batch', onclick: () => send(run.dataset.does)}, 'Run')
  run.dataset.does = 'run'
  const step = button('Step', 'step', 'step', 'Train on one batch'), stepEpoch = button('Step epoch', 'step-epoch', 'step_epoch', 'Train to the end of the epoch')
  const reset = button('Reset', 'reset', 'reset', 'Stop, and begin again with the settings below')
  const count = {}
  for (const k of ['epoch', 'batch', 'left']) count[k] = el('b', {class: 'n-' + k}, '–')
  const status = el('span', {class: 'status', role: 'status'}, 'loading')
  const header = el('header', {}, el('h1', {}, 'Does skipping easy samples pay?'), run, step, stepEpoch, reset,
    el('div', {class: 'count'}, el('span', {}, 'epoch ', count.epoch), el('span', {}, 'batch ', count.batch), el('span', {}, 'time left ', count.left), status))

  const fields = {}
  let wantsFolder = false
  const showPath = name => { setup.querySelector('[data-for=path]').style.display = model.get('choices').shipped.includes(name) ? 'none' : '' }
  const presets = el('div', {class: 'presets', role: 'group', 'aria-label': 'set-ups'})
  for (const name of model.get('choices').presets) presets.append(
    el('button', {'data-preset': name, title: 'Stop, and begin again with this set-up', onclick: () => send('preset', {settings: {name}})}, name))
  const setup = el('div', {class: 'setup'}, presets)
  const field = (k, label, kind) => {
    const f = kind === 'select' ? el('select') : el('input', {type: kind, autocomplete: 'off'})
    if (kind === 'select') for (const [v, t] of Object.entries(k === 'pace' ? PACES : model.get('choices')[k])) f.append(el('option', {value: v}, t))
    f.dataset.k = k
    f.setAttribute('aria-label', label)
    return f
  }
  for (const [k, label, kind] of SETUP) {
    const f = field(k, label, kind)
    if (k === 'path') f.placeholder = 'folder, or empty to download'
    f.addEventListener('change', () => {
      const v = !NUMBERS.includes(k) ? f.value : f.value.trim() === '' || isNaN(f.value) ? f.value : Number(f.value)
      const settings = {[k]: v}
      if (k === 'name') {  // a folder of images needs its folder first
        wantsFolder = f.value === 'folder'
        showPath(f.value)
        if (wantsFolder) return void fields.path.focus()
      }
      if (k === 'path' && wantsFolder) settings.name = 'folder'
      wantsFolder = false
      send('set', {settings})
    })
    fields[k] = f
    if (k === 'pace') reset.after(f)
    else setup.append(el('label', {'data-for': k}, label, f))
  }
  const link = el('button', {class: 'link', title: 'Copy an address that opens the dashboard with these settings'}, 'Copy link')
  if (fill) setup.append(link)

  const knobs = el('div', {class: 'knobs'})
  const lanes = {}
  let sliders = {}
  for (const [k, [letter]] of Object.entries(SIDES)) {
    const f = fields[k] = field(k, `method ${letter}`, 'select')
    f.addEventListener('change', () => send('set', {settings: {[k]: f.value}}))
    const own = el('div', {class: 'own'})
    const help = el('p', {class: 'does'}), says = el('p', {class: 'says'})
    lanes[k] = {block: el('div', {class: 'lane ' + letter.toLowerCase()}, el('label', {class: 'choose'}, el('b', {}, letter), f), says, help, own), own, help, says}
    knobs.append(lanes[k].block)
  }
  const decimals = knob => knob.step < 1 ? 2 : 0
  const slider = (k, knob) => {
    const id = `${k}-${view}`
    const out = el('output', {for: id}, '–')
    const input = el('input', {type: 'range', id, min: knob.lo, max: knob.hi, step: knob.step, 'aria-label': k, name: k})
    let wait = null, last = 0
    const fill = () => input.style.setProperty('--v', `${100 * (input.value - knob.lo) / (knob.hi - knob.lo)}%`)
    const tell = () => { wait = null; last = performance.now(); send('set', {settings: {[k]: Number(input.value)}}) }
    input.addEventListener('input', () => {  // at most 20 messages a second, the first at once and the last always
      out.textContent = Number(input.value).toFixed(decimals(knob))
      fill()
      charts.samples.value.getAnimations().forEach(o => o.cancel())
      charts.samples.value.animate([{background: '#F0E442'}, {background: 'transparent'}], 1500)  // look here
      wait ??= setTimeout(tell, Math.max(0, last + 50 - performance.now()))
    })
    const block = el('div', {class: 'knob'}, el('div', {class: 'top'}, el('label', {for: id}, knob.name), out), input, el('p', {}, knob.help))
    let auto = null
    if (knob.default === null) {
      auto = el('button', {class: 'auto', title: 'As published, whatever share is drawn'}, 'published')
      auto.addEventListener('click', () => { last = 0; send('set', {settings: {[k]: null}}) })
      out.before(auto)
    }
    sliders[k] = {busy: () => wait !== null || performance.now() - last < 400, show(v, published) {
      const shown = v ?? published
      input.value = shown
      fill()
      out.textContent = shown.toFixed(decimals(knob))
      auto?.setAttribute('aria-pressed', v === null)
    }}
    return block
  }
  const showMethods = now => {  // the sliders of the methods that train
    const {methods} = model.get('choices')
    let n = 0
    for (const [k, [, pre]] of Object.entries(SIDES)) {
      const m = methods[now[k]], {block, own, help} = lanes[k]
      n += m ? m.knobs.length : 0
      if (block.dataset.method === now[k]) continue
      block.dataset.method = now[k]
      help.textContent = block.title = m ? m.help : ''
      block.style.setProperty('--c', m ? m.color : '#767676')
      root.style.setProperty(k === 'method' ? '--a' : '--b', m ? m.color : '#767676')
      for (const o of Object.keys(sliders)) if (o.startsWith('other_') === (k === 'other')) delete sliders[o]
      own.replaceChildren(...(m ? m.knobs.map(o => slider(pre + o.name, o)) : []))
    }
    knobs.dataset.sliders = n
  }
  const device = el('p', {class: 'device'}, '')
  const far = el('table', {class: 'so-far'})
  knobs.append(far, device)

  const charts = {}
  const main = el('div', {class: 'main'}, knobs)
  for (const [k, title, tip] of CHARTS) {
    const value = el('span', {class: 'value'}), more = el('span', {class: 'more'}), plot = el('div', {class: 'plot'}, el('div'))
    const head = el('div', {class: 'head', title: tip}, el('h2', {}, title), value, more)
    if (k === 'accuracy') {
      charts.by = el('div', {class: 'by', role: 'group', 'aria-label': 'Accuracy by'})
      for (const [by, name] of Object.entries(BY)) charts.by.append(el('button', {'data-by': by, onclick: () => send('by', {by})}, name))
    }
    const legend = el('div', {class: 'legend'}), row = el('div', {class: 'row'}, legend, ...(k === 'accuracy' ? [charts.by] : []))
    charts[k] = {value, more, legend, plot: plot.firstChild}
    if (!hidden.has(k)) main.append(el('section', {class: 'chart ' + k, 'aria-label': title}, head, row, plot))
  }
  const pics = {kept: el('div', {class: 'pics'}), skipped: el('div', {class: 'pics'})}
  const picsOf = el('span'), picsScore = el('span', {}, 'loss')
  const strip = el('div', {class: 'strip'},
    el('div', {class: 'side kept'}, el('h2', {}, 'Hardest kept ', picsOf, el('small', {}, 'of the last selection: ', picsScore, ', label→prediction')), pics.kept),
    el('div', {class: 'side skipped'}, el('h2', {}, 'Easiest skipped ', el('small', {}, 'of the same batch')), pics.skipped))
  const errorText = el('span'), error = el('div', {class: 'error', role: 'alert', hidden: ''}, errorText, el('button', {onclick: () => { error.hidden = true; send('ok') }}, 'OK'))
  const veilText = el('div', {}, 'Loading'), veil = el('div', {class: 'veil'}, el('div', {}, el('div', {class: 'spin'}), veilText))
  const root = el('div', {class: 'blf' + (fill ? ' fill' : '')}, header, setup, main, strip, error)
  main.style.position = 'relative'
  main.append(veil)
  if (hidden.has('setup')) setup.remove()
  if (hidden.has('images')) strip.remove()
  if (!fill) { root.style.height = model.get('height') + 'px'; root.style.position = 'relative' }
  host.append(root)

  link.addEventListener('click', async () => {
    const q = new URLSearchParams(Object.entries(shown).filter(([, v]) => v !== null))
    if (hidden.size) q.set('hide', [...hidden].join(','))
    const address = `${location.origin}${location.pathname}?${q}`
    try { await navigator.clipboard.writeText(address); link.textContent = 'Copied' } catch { prompt('The address', address) }
    setTimeout(() => { link.textContent = 'Copy link' }, 1500)
  })

  // ---- what Python sends
  let shown = {}, lastError = ''
  const show = {
    state(s) {
      shown = s.settings
      const news = s.error !== lastError  // an error is shown once, and takes wrong fields back
      lastError = s.error
      if (news) { error.hidden = !s.error; errorText.textContent = s.error }
      showMethods(s.now)
      for (const [k, o] of Object.entries(sliders)) if (!o.busy() || (news && s.error)) o.show(s.now[k], s.auto[k])
      for (const k of Object.keys(SIDES)) {
        lanes[k].says.textContent = s.says[k] || ''
        lanes[k].block.classList.toggle('pending', s.pending.includes(k))
      }
      for (const [k, f] of Object.entries(fields)) {
        const v = s.settings[k] ?? ''
        if ((document.activeElement !== f || (news && s.error)) && !(wantsFolder && k === 'name')) {
          if (k === 'pace' && ![...f.options].some(o => o.value === String(v))) f.append(el('option', {value: v}, `${v} batches/s`))
          f.value = v
        }
      }
      if (!wantsFolder) showPath(s.settings.name)
      const on = s.status === 'running' || (s.status === 'loading' && s.queued)
      run.textContent = on ? 'Pause' : 'Run'
      run.dataset.does = on ? 'pause' : 'run'
      run.disabled = s.status === 'done' || s.status === 'error'
      step.disabled = stepEpoch.disabled = !['loading', 'ready', 'paused'].includes(s.status)
      reset.classList.toggle('pending', s.pending.length > 0)
      reset.textContent = s.pending.length ? 'Reset to apply' : 'Reset'
      status.textContent = s.status
      count.epoch.textContent = s.epoch ? `${s.epoch}/${s.n_epoch}` : '–'
      count.batch.textContent = s.n_iter ? `${s.batch}/${s.n_iter}` : '–'
      count.left.textContent = s.left
      count.batch.dataset.total = s.n_batch
      root.dataset.status = s.status
      root.dataset.batches = s.n_batch
      veil.hidden = s.status !== 'loading'
      veilText.textContent = (s.what || 'Loading') + ' …'
      device.textContent = s.device ? `Measured here: ${s.device}` : ''
      for (const o of presets.children) o.setAttribute('aria-pressed', o.dataset.preset === s.preset)
      for (const o of charts.by.querySelectorAll('button')) o.setAttribute('aria-pressed', o.dataset.by === s.by)
      far.replaceChildren(...s.so_far.map((row, i) => el('tr', {}, ...row.map((o, j) => el(i && j ? 'td' : 'th', j === 0 ? {} : row.length < s.so_far[0].length ? {colspan: 2} : {class: 'ab'[j - 1]}, i || j ? i ? o : el('b', {}, o) : 'So far')))))
      for (const [k] of CHARTS) {
        const parts = s.values[k] || []
        charts[k].value.replaceChildren(...parts.filter(([, c]) => c).map(([t, c]) => el('span', {class: c}, t)))
        charts[k].more.textContent = parts.filter(([, c]) => !c).map(([t]) => t).join('')
      }
    },
    strip(s) {
      picsOf.textContent = s ? `by ${s.name} ` : ''
      picsScore.textContent = s ? s.score : 'loss'
      for (const side of ['kept', 'skipped']) {
        const items = s ? s[side] : []
        pics[side].replaceChildren(...(items.length ? items.map(o => el('figure', {title: `${o.label}, predicted ${o.pred}, ${s.score} ${o.loss}`},
          el('img', {src: o.src, alt: o.label}), el('figcaption', {}, el('b', {}, o.loss)),
          el('figcaption', {class: o.label === o.pred ? '' : 'wrong'}, o.label === o.pred ? o.label : `${o.label}→${o.pred}`)))
          : [el('div', {class: 'none'}, s ? 'nothing was skipped' : '–')]))
      }
    },
  }
  const showLegend = (k, data) => {  // Plotly's own takes longer, and wraps where there is room
    const items = data.filter(o => o.name && o.showlegend !== false), key = JSON.stringify(items.map(o => [o.name, o.type, o.line, o.marker]))
    if (charts[k].key === key) return
    charts[k].key = key
    charts[k].legend.replaceChildren(...items.map(o => {
      const c = (o.type === 'bar' ? o.marker : o.line).color, dash = o.line?.dash
      const i = el('i', {class: o.type !== 'bar' ? dash === 'dot' ? 'dot' : dash ? 'dash' : 'line' : o.marker.pattern ? 'hatch' : 'box'})
      i.style.setProperty('--k', c)
      i.style.opacity = o.type === 'bar' && !o.marker.pattern && o.marker.opacity || 1
      return el('span', {}, i, o.name)
    }))
  }
  const draw = (Plotly, k, spec) => {
    const div = charts[k].plot
    if (!div.isConnected) return
    if (!spec) return void Plotly.purge(div)
    const fs = parseFloat(getComputedStyle(root).fontSize)
    const small = o => { o.font = {...o.font, size: fs * .92}; return o }
    const l = spec.layout
    l.font.size = fs * .92
    l.showlegend = false
    showLegend(k, spec.data)
    for (const a of l.annotations || []) small(a)
    l.autosize = true
    // fixed margins: measuring labels to make room for them would draw every chart twice
    const [left, right] = MARGINS[k]
    l.margin = {l: left * fs, r: right * fs, t: fs * .5, b: fs * 2.9}
    for (const a of ['xaxis', 'xaxis2', 'yaxis', 'yaxis2']) if (l[a]) l[a].automargin = false
    return Plotly.react(div, spec.data, l, {displayModeBar: false, responsive: false, doubleClick: false})
  }
  const specs = {}, dirty = new Set()
  let drawing = null
  const nextTask = () => new Promise(r => { const c = new MessageChannel(); c.port1.onmessage = () => { c.port1.close(); r() }; c.port2.postMessage(0) })
  const drawDirty = async () => {  // one chart a task, so that what the slider changes need not wait for the others
    const Plotly = await loadPlotly(model, view)
    while (dirty.size) {
      const [k] = CHARTS.find(([k]) => dirty.has(k))
      dirty.delete(k)
      draw(Plotly, k, specs[k])
      await nextTask()
    }
  }
  const onMsg = async msg => {
    if (msg.type !== 'update') return
    try {
      for (const [k, v] of Object.entries(msg.parts)) {
        const o = JSON.parse(v)
        if (show[k]) show[k](o)
        else { specs[k] = o; dirty.add(k) }
      }
      await (drawing ??= drawDirty().finally(() => { drawing = null }))
    } finally { send('ack') }
  }
  model.on('msg:custom', onMsg)
  const sized = new ResizeObserver(() => window.Plotly && Object.keys(specs).forEach(k => {
    const div = charts[k].plot
    if (specs[k] && div.isConnected && div.clientWidth && div.data) draw(window.Plotly, k, specs[k])
  }))
  sized.observe(main)
  const bye = () => send('bye')
  const back = e => { if (e.persisted) send('hello') }
  window.addEventListener('pagehide', bye)
  window.addEventListener('pageshow', back)
  send('hello', {query})
  loadPlotly(model, view).catch(e => { errorText.textContent = `The charts cannot be drawn: ${e}`; error.hidden = false })
  return () => {
    bye()
    sized.disconnect()
    model.off('msg:custom', onMsg)
    window.removeEventListener('pagehide', bye)
    window.removeEventListener('pageshow', back)
    if (window.Plotly) for (const [k] of CHARTS) window.Plotly.purge(charts[k].plot)
  }
}

export default {render}
