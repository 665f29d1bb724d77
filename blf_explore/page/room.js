// A class: the teacher asks before a drag, students answer, all see how the class guessed and what came of it.
const WHAT = {samples: 'samples kept of a batch', time: 'time of the whole run so far', agreement: 'gradient signs that agree', accuracy: 'accuracy'}
const CAME = {rises: 'rose', stays: 'stayed', falls: 'fell'}
const DIRECTIONS = {rises: 'rises', stays: 'stays', falls: 'falls'}

export const percent = v => `${(+v.toFixed(1)).toString().replace('-', '−')}%`

const figure = (poll, v) => (poll.what === 'time' && v > 0 ? '+' : '') + percent(v)  // more time, or less

export function question(poll) {  // in words
  if (!poll.phase) return ''
  return poll.how === 'number' ? `${capital(poll.words)}: how many percent will it be?` : `${capital(poll.words)}: will it rise, stay or fall?`
}
const capital = s => s[0].toUpperCase() + s.slice(1)

export function cameIn(poll, label) {  // is what came of it in this row?
  if (poll.came === null || poll.came === undefined) return false
  if (poll.how === 'direction') return poll.came === label
  const [lo, hi] = label.split(' to ').map(Number)
  return lo <= poll.came && poll.came < hi
}

export function summary(poll) {  // the histogram as a sentence, for those who do not see it
  if (!poll.guesses) return ''
  const n = poll.n === 1 ? '1 answer' : `${poll.n} answers`
  const parts = poll.guesses.filter(([, n]) => n).map(([label, n]) => `${n} × ${label}${poll.how === 'number' ? '%' : ''}`)
  const middle = poll.middle === null || poll.middle === undefined ? '' : `; half of the class said ${percent(poll.middle)} or less`
  return `${n}: ${parts.join(', ') || 'none'}${middle}.`
}

export function outcome(poll) {
  if (poll.phase !== 'decided') return poll.before === null || poll.before === undefined || poll.phase !== 'closed' ? '' : `Before the drag: ${figure(poll, poll.before)}.`
  const was = poll.before === null || poll.before === undefined ? '' : `, from ${figure(poll, poll.before)}`
  if (poll.how === 'number') return `It came to ${figure(poll, poll.came)}${was}.`
  const right = poll.guesses.find(([label]) => label === poll.came)[1]
  return `It ${CAME[poll.came]}${was ? ` (it was ${figure(poll, poll.before)})` : ''}: ${right} of ${poll.n} said so.`
}

const el = (tag, attrs = {}, ...kids) => {
  const o = document.createElement(tag)
  for (const [k, v] of Object.entries(attrs)) k.startsWith('on') ? o.addEventListener(k.slice(2), v) : v === false || o.setAttribute(k, v === true ? '' : v)
  o.append(...kids)
  return o
}

function histogram() {
  const say = el('p', {class: 'say', 'aria-live': 'polite'}), came = el('p', {class: 'came', 'aria-live': 'polite'}), body = el('tbody')
  const node = el('div', {}, el('table', {'aria-hidden': 'true'}, body), came, say)
  return {node, show(poll) {
    const most = Math.max(1, ...(poll.guesses || []).map(([, n]) => n))
    body.replaceChildren(...(poll.guesses || []).map(([label, n]) => {
      const bar = el('i')
      bar.style.width = `${75 * n / most}%`
      return el('tr', {class: cameIn(poll, label) ? 'came' : ''}, el('th', {}, label + (poll.how === 'number' ? ' %' : '')), el('td', {}, bar, String(n), cameIn(poll, label) ? ' ← what came of it' : ''))
    }))
    say.textContent = summary(poll)
    came.textContent = outcome(poll)
  }}
}

function asking(tell) {  // the teacher's: what to ask
  const what = el('select', {'aria-label': 'What to ask for'}, ...Object.entries(WHAT).map(([v, t]) => el('option', {value: v}, t)))
  const how = el('select', {'aria-label': 'How to answer'}, el('option', {value: 'number'}, 'as a number'), el('option', {value: 'direction'}, 'rises, stays or falls'))
  const node = el('form', {onsubmit: e => { e.preventDefault(); tell({type: 'ask', what: what.value, how: how.value}) }},
    el('h2', {}, 'Ask before you drag:'), what, how, el('button', {class: 'main-act'}, 'Ask'))
  return {node, show(poll) { node.hidden = !!poll.phase }}
}

function steering(tell) {  // the teacher's: a question under way
  const shut = el('button', {type: 'button', class: 'main-act', onclick: () => tell({type: 'shut'})}, 'Close and show the guesses')
  const decide = el('button', {type: 'button', class: 'main-act', onclick: () => tell({type: 'decide'}), title: 'Reads the figure off the chart as it is now'}, 'I have dragged: what came of it')
  const clear = el('button', {type: 'button', onclick: () => tell({type: 'clear'})}, 'Put away')
  const words = el('h2'), node = el('div', {class: 'bar'}, words, shut, decide, clear)
  return {node, show(poll) {
    node.hidden = !poll.phase
    words.textContent = question(poll)
    shut.hidden = poll.phase !== 'open'
    decide.hidden = poll.phase !== 'closed'
  }}
}

function answering(tell) {  // a student's
  const words = el('h2', {'aria-live': 'polite'}), mine = el('span', {class: 'mine', role: 'status'})
  const number = el('input', {type: 'number', step: 'any', 'aria-label': 'Your answer, in percent', required: true})
  const form = el('form', {onsubmit: e => { e.preventDefault(); if (number.value !== '') tell({type: 'answer', value: Number(number.value)}) }},
    number, '%', el('button', {class: 'main-act'}, 'Answer'))
  const buttons = el('div', {class: 'bar', role: 'group', 'aria-label': 'Your answer'},
    ...Object.entries(DIRECTIONS).map(([v, t]) => el('button', {type: 'button', 'data-v': v, onclick: () => tell({type: 'answer', value: v})}, t)))
  const node = el('div', {class: 'bar'}, words, form, buttons, mine)
  let last = ''
  return {node, taken(v) {
    mine.textContent = `Your answer: ${typeof v === 'number' ? percent(v) : v}. You may change it until the question is closed.`
    for (const b of buttons.children) b.setAttribute('aria-pressed', b.dataset.v === v)
  }, show(poll) {
    const now = poll.phase === 'open' ? poll.what + poll.how : ''
    if (now && now !== last) { mine.textContent = ''; number.value = ''; for (const b of buttons.children) b.removeAttribute('aria-pressed') }
    last = now
    if (poll.phase !== 'open') mine.textContent = mine.textContent.replace(' You may change it until the question is closed.', '')
    words.textContent = poll.phase ? question(poll) : 'You watch one run that the whole class sees.'
    number.min = poll.lo
    number.max = poll.hi
    form.hidden = poll.phase !== 'open' || poll.how !== 'number'
    buttons.hidden = poll.phase !== 'open' || poll.how !== 'direction'
    if (!poll.phase) mine.textContent = ''
  }}
}

export function makeRoom({info, tell}) {
  const teacher = info.role === 'teacher', parts = teacher ? [asking(tell), steering(tell)] : [answering(tell)]
  const guesses = histogram(), panel = el('div', {class: 'panel', hidden: true}, guesses.node), here = el('span', {class: 'here'})
  const acts = []
  if (teacher) {
    const address = new URL(info.students, location.href).href
    const copy = el('button', {type: 'button', title: address, onclick: async () => {
      try { await navigator.clipboard.writeText(address); copy.textContent = 'Copied' } catch { prompt('The address for the class', address) }
      setTimeout(() => { copy.textContent = 'Copy the class’s link' }, 1500)
    }}, 'Copy the class’s link')
    acts.push(copy)
  }
  const top = el('div', {class: 'bar'}, ...parts.map(o => o.node), here, ...acts)
  const node = el('section', {class: 'room', 'aria-label': teacher ? 'The class' : 'The teacher’s question'}, panel, top)
  return {node, taken: v => parts[0].taken?.(v), show({here: n, poll}) {
    parts.forEach(o => o.show(poll))
    panel.hidden = !poll.guesses
    if (poll.guesses) guesses.show(poll)
    here.textContent = poll.phase === 'open' ? `${poll.n} of ${n} answered` : n === 1 ? '1 watches' : `${n} watch`
  }}
}
