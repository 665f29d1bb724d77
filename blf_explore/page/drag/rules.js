// What several figures share: the same as the functions of these names at the head of page/figures.py. Colours come with the figure's data.
(() => {
  const range = (a, b) => Array.from({ length: Math.max(0, b - a) }, (_, i) => a + i); // a to b-1
  const count = (n, share) => Math.ceil(Number((n * share).toFixed(6)));
  const keptCount = (mass, lossPerc, least) => { // whatif.py's, where `least` is `count` of sample_perc
    const n = mass.length, all = mass[n - 1];
    const m = lossPerc >= 1 || !Number.isFinite(all) ? n : BLF.searchsorted(mass, lossPerc * all) + 1;
    return Math.min(n, Math.max(m, least));
  };
  const hardest = scores => range(0, scores.length).sort((a, b) => scores[b] - scores[a]); // equal ones in their order
  const sums = vals => { let total = 0; return Array.from(vals, v => total += v) };
  const last = vals => vals[vals.length - 1];
  const nBlf = (mass, lossPerc, samplePerc) => keptCount(mass, lossPerc, count(mass.length, samplePerc));
  const series = (kind, x, y, label, color, more = {}) => ({ kind, x, y, label, color, ...more });
  const panel = (title, x, y, series, marks = [], xRange = null, yRange = null) =>
    ({ title, x: { title: x, range: xRange }, y: { title: y, range: yRange }, series, marks });
  const when = epoch => epoch ? `After epoch ${epoch}` : 'Before training';
  BLF.rules = ({ colors: color }) => {
    const mark = (kind, at, label, c = color.skipped) => ({ kind, at, label, color: c });
    return { color, range, count, keptCount, hardest, sums, last, nBlf, series, mark, panel, when };
  };
})();
