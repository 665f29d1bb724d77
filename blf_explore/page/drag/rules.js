// What several figures share: the same as the functions of these names at the head of page/figures.py.
(() => {
  const color = { BLF: '#0072B2', HNM: '#D55E00', SB: '#009E73', importance: '#AA3377', coreSet: '#003355', RHO: '#0000DD', InfoBatch: '#660099',
    random: '#BB8833', scoring: '#4499CC', grey: '#8A8A8A', black: '#222222' };
  const range = (a, b) => Array.from({ length: Math.max(0, b - a) }, (_, i) => a + i); // a to b-1
  const count = (n, share) => Math.ceil(Math.round(n * share * 1e6) / 1e6);
  const hardest = scores => range(0, scores.length).sort((a, b) => scores[b] - scores[a]); // equal ones in their order
  const sums = vals => { let total = 0; return Array.from(vals, v => total += v) };
  const last = vals => vals[vals.length - 1];
  const nBlf = (mass, lossPerc, samplePerc) => {
    const n = mass.length, i = lossPerc >= 1 ? n - 1 : mass.findIndex(o => o >= lossPerc * mass[n - 1]);
    return Math.min(n, Math.max(i < 0 ? n : i + 1, count(n, samplePerc)));
  };
  const series = (kind, x, y, label, color, more = {}) => ({ kind, x, y, label, color, ...more });
  const mark = (kind, at, label, c = color.grey) => ({ kind, at, label, color: c });
  const panel = (title, x, y, series, marks = [], xRange = null, yRange = null) =>
    ({ title, x: { title: x, range: xRange }, y: { title: y, range: yRange }, series, marks });
  const when = epoch => epoch ? `After epoch ${epoch}` : 'Before training';
  BLF.rules = { color, range, count, hardest, sums, last, nBlf, series, mark, panel, when };
})();
