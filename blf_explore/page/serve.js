// The served page's connection: it looks to live.js like a notebook's model, and comes back by itself when it was cut.
const QUIET = 4000  // ms without a word after which the connection counts as cut; the server says something every 2 s
const YOUNG = 4000  // ms that a click may wait for the connection to come back

export const whole = settings =>  // a set-up as an address's query, nothing left to anybody's defaults
  '?' + new URLSearchParams(Object.entries(settings || {}).filter(([, v]) => v !== null && v !== undefined))

export const pause = n => Math.min(5000, 250 * 2 ** n)  // ms before the n-th new try

// what this tab knows of its run survives a reload
const memory = name => ({
  get() { try { return JSON.parse(sessionStorage.getItem(name)) || {} } catch { return {} } },
  set(o) { try { sessionStorage.setItem(name, JSON.stringify(o)) } catch { /* private window: a reload begins anew */ } },
})

async function unpack(data) {  // watchers get their charts packed
  if (typeof data === 'string') return JSON.parse(data)
  return new Response(data.stream().pipeThrough(new DecompressionStream('gzip'))).json()
}

export function connect(info, {onOwn = () => {}, onCut = () => {}, Socket = WebSocket, here = location} = {}) {
  const kept = memory('blf-' + info.role + here.pathname), listeners = new Set(), waiting = []
  let ws = null, hello = null, greeted = false, lost = null, tries = 0, heard = 0, timer = null, order = Promise.resolve(), run = kept.get(), ended = false, seen = false
  if (run.query !== here.search) run = {who: run.who, query: here.search}  // another address in the same tab: another run
  if (!run.who) run.who = Math.random().toString(36).slice(2)
  kept.set(run)

  const url = () => {
    const u = new URL('ws', here.href)
    u.protocol = u.protocol.replace('http', 'ws')
    u.search = new URLSearchParams({as: info.role, ...(info.token ? {token: info.token} : {})})
    u.hash = ''
    return u.href
  }
  const remember = more => { run = {...run, ...more}; kept.set(run) }
  const put = msg => ws.send(JSON.stringify(msg))
  const greet = () => {
    if (!hello || ws?.readyState !== 1) return
    put({...hello, ...(run.run ? {run: run.run} : {}), who: run.who, gz: typeof DecompressionStream === 'function'})
    greeted = true
    lost = null
    const now = performance.now()
    for (const [t, msg] of waiting.splice(0)) if (now - t < YOUNG) put(msg)
  }
  const over = say => { for (const f of [...listeners]) f({type: 'lost', say}, []) }
  const own = {
    run(m) { remember({run: m.run}); onOwn(m) },
    lost(m) {
      const why = {...m, trained: seen && !!run.trained}  // nothing was seen of it: nothing that one would miss
      if (info.role !== 'watch') { greeted = false; lost = why }  // who watches stays in the class, and answers what comes next
      over(m.say)
      onOwn(why)
    },
    patience(m) { if (seen) over(m.say); onOwn(m) },  // what is still to be seen is of a run that is gone
  }
  const take = msg => {
    if (own[msg.type]) return own[msg.type](msg)
    if (['full', 'refused', 'room', 'taken'].includes(msg.type)) return onOwn(msg)
    if (msg.type === 'update' && msg.parts.state) {
      const s = JSON.parse(msg.parts.state)
      if (s) { seen = true; remember({trained: s.n_batch > 0, settings: s.settings}); onOwn({type: 'state'}) }
    }
    if (lost && msg.type === 'beat') return  // the server is alive, but nothing of this page's run
    for (const f of [...listeners]) f(msg, [])
  }
  const open = () => {
    clearTimeout(timer)
    const mine = ws = new Socket(url())
    mine.binaryType = 'blob'
    heard = performance.now()
    mine.onopen = () => { tries = 0; heard = performance.now(); onCut(false); greet() }
    mine.onmessage = e => {
      heard = performance.now()
      order = order.then(async () => { if (ws === mine) take(await unpack(e.data)) }).catch(e => console.error(e))
    }
    mine.onclose = () => { if (ws === mine) again() }
  }
  const again = silent => {
    if (ended) return
    ws = null
    greeted = false
    onCut(true, silent)
    clearTimeout(timer)
    timer = setTimeout(open, pause(tries++))
  }
  const look = setInterval(() => {  // a cable that was pulled closes nothing
    if (ws && performance.now() - heard > QUIET) { const old = ws; ws = null; try { old.close() } catch { /* it was never open */ } again(true) }
  }, 250)
  const hurry = () => { if (!ws && !ended) { tries = 0; open() } }
  addEventListener('online', hurry)
  document.addEventListener('visibilitychange', () => { if (!document.hidden) hurry() })
  open()

  return {
    get: k => ({choices: info.choices, role: info.role, fill: true, height: 700})[k],
    on: (name, f) => listeners.add(f), off: (name, f) => listeners.delete(f),
    send(msg) {
      if (msg.type === 'hello') { hello = msg; return lost ? undefined : greet() }  // a run that is gone is not asked for again and again
      if (greeted && ws?.readyState === 1) return put(msg)
      if (lost && !['ack', 'bye'].includes(msg.type)) return onOwn(lost)
      if (msg.type !== 'ack' && msg.type !== 'bye') waiting.push([performance.now(), msg])
    },
    renew(query = run.settings ? whole(run.settings) : hello?.query) {  // the same set-up in a new run
      remember({run: null, trained: false})
      if (hello) hello = {...hello, query}
      greet()
    },
    again: greet,
    share(query) {  // an address for others: by which they reach the server, with what differs from the defaults
      const u = new URL(info.address || here.href.split(/[?#]/)[0])
      if (info.token) u.searchParams.set('token', info.token)
      if (info.role !== 'watch') for (const [k, v] of new URLSearchParams(query)) u.searchParams.set(k, v)
      return u.href
    },
    tell: msg => { if (ws?.readyState === 1) put({view: hello?.view || 'page', ...msg}) },
    close() { ended = true; clearInterval(look); clearTimeout(timer); ws?.close() },
  }
}

function notices(node) {  // one sentence at the top of the page, with what can be done about it
  let why = ''
  return {
    show(name, text, ...acts) {
      why = name
      node.replaceChildren(Object.assign(document.createElement('span'), {textContent: text}), ...acts.map(([label, f]) => {
        const b = Object.assign(document.createElement('button'), {type: 'button', textContent: label})
        b.addEventListener('click', f)
        return b
      }))
      node.hidden = false
    },
    hide(name) { if (!name || why === name) { node.hidden = true; why = '' } },
    shows: name => why === name,
  }
}

const script = src => new Promise((done, fail) => {
  document.head.append(Object.assign(document.createElement('script'), {src, onload: done, onerror: () => fail(new Error(src + ' did not come'))}))
})

async function main() {
  const info = JSON.parse(document.getElementById('info').textContent)
  const asked = new URLSearchParams(location.search)
  if (asked.has('token')) {  // not in the address line, which a class may read; a reload is let in by a cookie
    asked.delete('token')
    history.replaceState(null, '', location.pathname + (asked.size || [...asked].length ? '?' + asked : '') + location.hash)
  }
  window.blfPlotly ??= script(info.files['plotly.js']).then(() => window.Plotly)
  const notice = notices(document.getElementById('notice')), low = notices(document.getElementById('low'))
  let room = null, cut = null
  const onOwn = m => ({
    run() { for (const k of ['lost', 'full', 'patience']) notice.hide(k) },
    state() { for (const k of ['lost', 'patience']) notice.hide(k) },
    lost() {
      if (m.final) return notice.show('lost', m.say)
      if (info.role === 'watch') return notice.show('lost', m.say + ' The teacher begins anew.')
      const anew = () => { notice.hide('lost'); model.renew() }
      if (!m.trained) return anew()
      notice.show('lost', m.say, ['Open the same set-up', anew])
    },
    full() {
      const acts = [['Try again', () => { notice.hide('full'); model.again() }]]
      if (m.watch) acts.push(['Watch the class', () => { location.href = m.watch }])
      notice.show('full', m.say, ...acts)
    },
    refused() { if (!notice.shows('lost')) notice.show('refused', m.say, ['OK', () => notice.hide('refused')]) },
    patience() { notice.show('patience', m.say) },
    room() { room?.show(m) },
    taken() { room?.taken(m.value) },
  })[m.type]?.()
  const onCut = (gone, silent) => {
    if (room) room.node.inert = gone
    if (!gone) { clearTimeout(cut); cut = null; return low.hide('cut') }
    if (silent) clearTimeout(cut)
    if (silent || !cut) cut = setTimeout(() => low.show('cut', 'No connection to the server: this page comes back by itself when there is one.'), silent ? 0 : 1500)
  }
  const model = connect(info, {onOwn, onCut})
  if (info.is_class && info.role !== 'own') {
    const {makeRoom} = await import(new URL(info.files['room.js'], document.baseURI))
    room = makeRoom({info, tell: model.tell})
    document.body.classList.add('class')
    document.body.append(room.node)
  }
  const {default: live} = await import(new URL(info.files['live.js'], document.baseURI))
  await live.render({model, el: document.getElementById('page')})
}

if (typeof document !== 'undefined' && document.getElementById('info')) main()
