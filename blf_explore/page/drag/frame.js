// The frame of every figure to drag: sliders, panels, the sentence. A figure's own file sets BLF.compute.<name> = (data, knobs) => ({panels, say}),
// which gives the same numbers and the same words as Python's `compute`.
window.BLF = { compute: {}, times: [] }; // times: milliseconds from each move to its drawing

(() => {
  const font = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';

  // ---- the same words and numbers as in Python

  BLF.fixed = (x, digits = 0) => { const k = 10 ** digits; return (Math.floor(x * k + 0.5) / k).toFixed(digits) };
  BLF.percent = (x, digits = 0) => BLF.fixed(100 * x, digits) + '%';
  BLF.thousands = x => Math.floor(x + 0.5).toLocaleString('en-US');

  BLF.interp = (x, xs, ys) => { // NumPy's: xs rise, the ends go on
    const n = xs.length;
    if (x <= xs[0]) return ys[0];
    if (x >= xs[n - 1]) return ys[n - 1];
    let j = 1;
    while (xs[j] <= x) j++;
    return (ys[j] - ys[j - 1]) / (xs[j] - xs[j - 1]) * (x - xs[j - 1]) + ys[j - 1];
  };

  BLF.searchsorted = (a, v, lo = 0, hi = a.length) => { // the first place from `lo` to `hi` whose value is not below v, as a position in `a`
    while (lo < hi) { const m = (lo + hi) >> 1; if (a[m] < v) lo = m + 1; else hi = m }
    return lo;
  };

  // ---- data that Python packed

  const bytes = s => Uint8Array.from(atob(s), c => c.charCodeAt(0));
  const types = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array, float64: Float64Array };

  const half = h => { // one float16
    const e = (h >> 10) & 31, f = h & 1023, s = h & 32768 ? -1 : 1;
    return s * (e === 0 ? f * 2 ** -24 : e === 31 ? (f ? NaN : Infinity) : (1 + f / 1024) * 2 ** (e - 15));
  };

  const unpack = o => {
    if (Array.isArray(o)) return o.map(unpack);
    if (o === null || typeof o !== 'object') return o;
    if (!('__array__' in o)) return Object.fromEntries(Object.entries(o).map(([k, v]) => [k, unpack(v)]));
    const raw = bytes(o.base64).buffer;
    const flat = o.__array__ === 'float16' ? Float64Array.from(new Uint16Array(raw), half) : new types[o.__array__](raw);
    flat.shape = o.shape;
    return flat;
  };

  BLF.unpack = unpack;

  // ---- small pieces of the page

  const el = (tag, props = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };
  const write = (node, text) => { if (node.textContent !== text) node.textContent = text };
  const number = v => v === null || v === undefined ? '' : v.toLocaleString('en-US', { maximumFractionDigits: 6 });
  const given = v => v !== null && v !== undefined && isFinite(v);

  const digits = step => { const s = String(step); return s.includes('e-') ? +s.split('e-')[1] : (s.split('.')[1] || '').length };
  const shown = (knob, v) => knob.names && knob.names.length ? knob.names[Math.round((v - knob.lo) / knob.step)] : v.toFixed(digits(knob.step)) + (knob.unit ? (knob.unit === '%' ? '' : '\u00a0') + knob.unit : '');

  function slider(knob, moved) {
    const input = el('input', { type: 'range', min: knob.lo, max: knob.hi, step: knob.step, id: 'knob-' + knob.name, name: knob.name });
    input.value = knob.value;
    const out = el('output', { htmlFor: input.id });
    const show = () => { const s = shown(knob, input.valueAsNumber); write(out, s); input.setAttribute('aria-valuetext', s) };
    input.addEventListener('input', () => { show(); moved() });
    show();
    return { node: el('div', { className: 'knob' }, el('label', { htmlFor: input.id, textContent: knob.label }), out, input), value: () => input.valueAsNumber };
  }

  // ---- a panel with axes

  const spread = (lo, hi) => lo < hi ? [lo, hi] : [lo - (Math.abs(lo) || 1) / 2, hi + (Math.abs(hi) || 1) / 2];

  function extent(panel, axis) { // of what is drawn, where no range is given
    let lo = Infinity, hi = -Infinity, whole = axis === 'x';
    const see = v => { if (given(v)) { lo = Math.min(lo, v); hi = Math.max(hi, v); whole = whole && Number.isInteger(v) } };
    for (const s of panel.series || []) { s[axis].forEach(see); if (axis === 'y' && s.kind === 'bars') see(0) }
    for (const m of panel.marks || []) {
      if (m.kind === (axis === 'x' ? 'vline' : 'hline')) see(m.at);
      if (m.kind === 'band' && axis === 'x' && m.at) m.at.forEach(see);
    }
    return lo > hi ? [0, 1, false] : [...spread(lo, hi), whole];
  }

  function gap(xs) { // between neighbours: how wide a bar may be
    let res = Infinity;
    for (let i = 1; i < xs.length; i++) if (xs[i] > xs[i - 1]) res = Math.min(res, xs[i] - xs[i - 1]);
    return isFinite(res) ? res : 1;
  }

  function limits(panel, axis, before) { // they only grow, so that nothing jumps
    const { range, log } = panel[axis];
    if (range) return range;
    let [lo, hi] = extent(panel, axis);
    if (!log && axis === 'y') { const pad = 0.06 * (hi - lo); hi += pad; if (lo !== 0) lo -= pad }
    if (!log && axis === 'x') {
      const bars = (panel.series || []).filter(s => s.kind === 'bars' && s.x.length);
      const pad = bars.length ? Math.max(...bars.map(s => gap(s.x))) / 2 : 0.02 * (hi - lo);
      lo -= pad; hi += pad;
    }
    if (log) { const k = (hi / lo) ** 0.03; lo /= k; hi *= k }
    return before ? [Math.min(lo, before[0]), Math.max(hi, before[1])] : [lo, hi];
  }

  const kinds = {
    line(c, s, X, Y, w) {
      c.beginPath();
      let pen = false;
      for (let i = 0; i < s.x.length; i++) {
        if (!given(s.y[i]) || !given(s.x[i])) { pen = false; continue }
        if (pen) c.lineTo(X(s.x[i]), Y(s.y[i])); else c.moveTo(X(s.x[i]), Y(s.y[i]));
        pen = true;
      }
      c.stroke();
      if (s.x.length <= 20 && !s.dash) kinds.points(c, s, X, Y, 0.8 * w);
    },
    steps(c, s, X, Y) {
      c.beginPath();
      let pen = false;
      for (let i = 0; i < s.x.length; i++) {
        if (!given(s.y[i]) || !given(s.x[i])) { pen = false; continue }
        if (pen) { c.lineTo(X(s.x[i]), Y(s.y[i - 1])); c.lineTo(X(s.x[i]), Y(s.y[i])) } else c.moveTo(X(s.x[i]), Y(s.y[i]));
        pen = true;
      }
      c.stroke();
    },
    bars(c, s, X, Y, w, floor) {
      const half = 0.4 * gap(s.x);
      for (let i = 0; i < s.x.length; i++) {
        if (!given(s.y[i])) continue;
        const a = X(s.x[i] - half), b = X(s.x[i] + half), y = Y(s.y[i]);
        c.fillRect(a, Math.min(y, floor), Math.max(b - a, 1), Math.abs(floor - y));
      }
    },
    points(c, s, X, Y, w) {
      const r = (s.x.length > 200 ? 1.2 : 2) * w * (s.size || 1), cross = s.symbol === 'cross';
      c.beginPath();
      for (let i = 0; i < s.x.length; i++) if (given(s.y[i]) && given(s.x[i])) {
        const x = X(s.x[i]), y = Y(s.y[i]);
        if (cross) { c.moveTo(x - r, y - r); c.lineTo(x + r, y + r); c.moveTo(x - r, y + r); c.lineTo(x + r, y - r) }
        else { c.moveTo(x + r, y); c.arc(x, y, r, 0, 7) }
      }
      if (cross) c.stroke(); else c.fill();
    },
  };

  const apart = (a, b) => a.x + a.w <= b.x || b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y;

  function covers(box, drawn) { // how many drawn points a label would hide
    let res = 0;
    for (const [x, y, isBar] of drawn) if (x > box.x - 3 && x < box.x + box.w + 3 && y < box.y + box.h + 3 && (isBar || y > box.y - 3)) res++;
    return res;
  }

  function label(c, m, places, taken, drawn, r) { // at the first place where it covers no other label, and the fewest points
    const w = c.measureText(m.label).width + 6 * r, h = 18 * r;
    const boxes = places(w, h).map(([x, y]) => ({ x, y, w, h })), free = boxes.filter(o => taken.every(t => apart(o, t)));
    const hidden = free.map(o => covers(o, drawn)), box = free.length ? free[hidden.indexOf(Math.min(...hidden))] : boxes[0];
    taken.push(box);
    c.fillStyle = 'rgba(255,255,255,.85)';
    c.fillRect(box.x, box.y, box.w, box.h);
    c.fillStyle = m.color || '#222';
    c.fillText(m.label, box.x + 3 * r, box.y + h / 2);
  }

  const rows = [0, 1, 2, 3, 4, 5, 6, 7];

  function places(m, b, X, Y, r) { // of a mark's label, best first
    const inside = (x, w) => Math.min(Math.max(x, b.left), b.left + b.width - w);
    if (m.kind === 'hline') {
      const y = Y(m.at);
      return (w, h) => [b.left + b.width - w, b.left, b.left + (b.width - w) / 2].flatMap(x => [[x, y - h - 2 * r], [x, y + 2 * r]])
        .filter(([, y]) => y >= b.top - h && y + h <= b.top + b.height + h / 2);
    }
    const mid = m.kind === 'band' ? (X(m.at[0]) + X(m.at[1])) / 2 : X(m.at);
    return (w, h) => rows.flatMap(i => (m.kind === 'band' ? [mid - w / 2] : [mid + 3 * r, mid - w - 3 * r])
      .map(x => [inside(x, w), b.top + 2 * r + i * h, inside(x, w) !== x]))
      .sort((p, q) => p[1] - q[1] || p[2] - q[2]);
  }

  function paint(u, panel) {
    const c = u.ctx, b = u.bbox, r = devicePixelRatio || 1, floor = u.valToPos(Math.max(0, u.scales.y.min), 'y', true);
    const X = v => u.valToPos(v, 'x', true), Y = v => u.valToPos(v, 'y', true);
    const marks = (panel.marks || []).filter(m => m.kind === 'band' ? m.at && m.at.every(given) : given(m.at));
    c.save();
    c.beginPath();
    c.rect(b.left, b.top, b.width, b.height);
    c.clip();
    c.lineJoin = 'round';
    for (const m of marks) if (m.kind === 'band') {
      c.fillStyle = m.color || '#999'; c.globalAlpha = 0.15;
      c.fillRect(X(m.at[0]), b.top, X(m.at[1]) - X(m.at[0]), b.height); c.globalAlpha = 1;
    }
    for (const s of panel.series || []) {
      c.strokeStyle = c.fillStyle = s.color || '#222'; c.lineWidth = 2.5 * r; c.setLineDash(s.dash ? [7 * r, 5 * r] : []);
      kinds[s.kind](c, s, X, Y, 2 * r, floor);
    }
    for (const m of marks) if (m.kind !== 'band') {
      c.strokeStyle = m.color || '#222'; c.lineWidth = 2 * r; c.setLineDash([]);
      c.beginPath();
      if (m.kind === 'vline') { c.moveTo(X(m.at), b.top); c.lineTo(X(m.at), b.top + b.height) }
      else { c.moveTo(b.left, Y(m.at)); c.lineTo(b.left + b.width, Y(m.at)) }
      c.stroke();
    }
    c.restore();
    c.save();
    c.font = `${14 * r}px ${font}`; c.textBaseline = 'middle'; c.textAlign = 'left';
    const taken = [], drawn = [];
    if (marks.some(m => m.label)) for (const s of panel.series || []) if (s.x.length <= 500)
      s.x.forEach((x, i) => { if (given(x) && given(s.y[i])) drawn.push([X(x), Y(s.y[i]), s.kind === 'bars']) });
    for (const m of marks) if (m.label) label(c, m, places(m, b, X, Y, r), taken, drawn, r);
    c.restore();
  }

  function axis(log, whole) {
    return { font: `14px ${font}`, stroke: '#444', grid: { stroke: '#e8e8e8', width: 1 }, ticks: { stroke: '#bbb', width: 1, size: 4 }, gap: 4,
      values: (u, vs) => vs.map(number), ...(whole && !log ? { incrs: [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10000] } : {}) };
  }

  function legend(node, series) {
    const key = JSON.stringify(series.map(s => [s.label, s.color, s.kind, s.dash, s.symbol]));
    if (node.key === key) return;
    node.key = key;
    node.replaceChildren(...series.filter(s => s.label).map(s => {
      const i = el('i', { className: s.kind + (s.dash ? ' dash' : '') + (s.symbol ? ' ' + s.symbol : '') });
      i.style.color = i.style.borderColor = s.color || '#222';
      return el('span', {}, i, el('b', { textContent: s.label }));
    }));
  }

  function chart(first) {
    const title = el('h2'), key = el('div', { className: 'legend' }), ytitle = el('div', { className: 'ytitle' }), xtitle = el('div', { className: 'xtitle' });
    const plot = el('div', { className: 'plot' });
    const node = el('div', { className: 'panel' }, title, key, ytitle, plot, xtitle);
    const range = { x: null, y: null };
    let panel = first, u = null;
    const width = () => Math.max(plot.clientWidth, 120);
    const update = p => {
      panel = p;
      write(title, p.title || ''); write(ytitle, (p.y && p.y.title) || ''); write(xtitle, (p.x && p.x.title) || '');
      legend(key, p.series || []);
      for (const a of ['x', 'y']) range[a] = limits(p, a, range[a]);
    };
    update(first);
    const draw = () => {
      if (u) return u.setData([range.x, [null, null]]);
      u = new uPlot({ width: width(), height: plot.clientHeight || 250, legend: { show: false }, cursor: { show: false }, padding: [8, 22, 0, 0],
        scales: { x: { time: false, distr: first.x.log ? 3 : 1, range: () => range.x }, y: { distr: first.y.log ? 3 : 1, range: () => range.y } },
        axes: [{ ...axis(first.x.log, extent(first, 'x')[2]), size: 28, space: 48 }, { ...axis(first.y.log, false), size: 58, space: 34 }],
        series: [{}, { show: false }], hooks: { draw: [u => paint(u, panel)] } }, [range.x, [null, null]], plot);
      new ResizeObserver(() => { if (Math.abs(u.width - width()) > 1) u.setSize({ width: width(), height: plot.clientHeight || 250 }) }).observe(plot);
    };
    return { node, show: p => { update(p); draw() } };
  }

  // ---- a panel of images

  function pixels(images, i) { // grey levels of one image
    if (Array.isArray(images)) return { width: images[i][0].length, height: images[i].length, grey: images[i].flat() };
    const [, height, width] = images.shape;
    return { width, height, grey: images.subarray(i * width * height, (i + 1) * width * height) };
  }

  function picture(images, i) {
    const { width, height, grey } = pixels(images, i), k = Math.max(1, Math.round(44 / width));
    const canvas = el('canvas', { width, height }), c = canvas.getContext('2d'), img = c.createImageData(width, height);
    for (let j = 0; j < grey.length; j++) { img.data[4 * j] = img.data[4 * j + 1] = img.data[4 * j + 2] = grey[j]; img.data[4 * j + 3] = 255 }
    c.putImageData(img, 0, 0);
    canvas.style.width = k * width + 'px'; canvas.style.height = k * height + 'px';
    return canvas;
  }

  function strips(first, data) {
    const title = el('h2'), groups = el('div', { className: 'groups' }), node = el('div', { className: 'panel images' }, title, groups);
    const drawn = new Map(); // each image is drawn once
    let tallest = 0;
    const get = i => { if (!drawn.has(i)) drawn.set(i, picture(data.images, i)); return drawn.get(i) };
    const group = g => {
      const key = el('i'), strip = el('div', { className: 'strip' });
      key.style.background = g.color;
      g.items.forEach((i, j) => {
        const c = get(i);
        c.style.borderColor = g.color;
        strip.append(el('figure', {}, c, ...(g.notes && g.notes[j] !== undefined ? [String(g.notes[j])] : [])));
      });
      return el('div', { className: 'group' }, el('h3', {}, key, g.label), strip);
    };
    let key = null;
    return { node, show: p => {
      write(title, p.title || '');
      if (key === (key = JSON.stringify(p.groups))) return;
      groups.replaceChildren(...p.groups.map(group));
      requestAnimationFrame(() => { // the page is laid out then anyway
        tallest = Math.max(tallest, groups.offsetHeight);
        groups.style.minHeight = tallest + 'px';
      });
    } };
  }

  // ---- the figure

  const host = () => { try { return window.frameElement } catch { return null } };

  function fit(main) { // the frame around the page is as high as the page
    const f = host();
    if (!f) return;
    const h = Math.ceil(main.getBoundingClientRect().height);
    if (h && Math.abs(parseFloat(f.style.height || 0) - h) > 1) f.style.height = h + 'px';
    document.documentElement.style.overflow = 'hidden';
    const still = f.parentElement && f.parentElement.querySelector('img'); // stands where no script runs
    if (still) still.style.display = 'none';
  }

  BLF.start = spec => {
    const data = unpack(spec.data), compute = BLF.compute[spec.name];
    const say = el('p', { className: 'say' }), panels = el('div', { className: 'panels' });
    say.setAttribute('aria-live', 'polite');
    const state = () => Object.fromEntries(knobs.map(([name, k]) => [name, k.value()]));
    let parts = null;
    const draw = () => {
      const t = performance.now(), res = compute(data, state());
      if (!parts) {
        parts = res.panels.map(p => p.kind === 'images' ? strips(p, data) : chart(p));
        panels.replaceChildren(...parts.map(p => p.node));
        panels.style.setProperty('--least', 90 / res.panels.filter(p => p.kind !== 'images').length + '%'); // so many charts side by side, no more
      }
      res.panels.forEach((p, i) => parts[i].show(p));
      write(say, res.say);
      BLF.shown = res;
      queueMicrotask(() => queueMicrotask(() => BLF.times.push(performance.now() - t))); // uPlot draws in the first
    };
    const knobs = spec.knobs.map(k => [k.name, slider(k, draw)]);
    const main = el('main', { className: 'blf-figure' }, el('h1', { textContent: spec.title }), el('div', { className: 'knobs' }, ...knobs.map(([, k]) => k.node)),
      panels, say, el('p', { className: 'caption', textContent: spec.caption }));
    document.body.replaceChildren(main);
    draw();
    new ResizeObserver(() => fit(main)).observe(main);
    fit(main);
  };
})();
