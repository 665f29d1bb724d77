BLF.compute.share_over_time = (data, { setting, shape, begin, end, warmup }) => {
  const { color, range, count, sums, nBlf, series, mark, panel } = BLF.rules(data), { fixed, percent, thousands } = BLF;
  const [nEpoch, nIter, n] = data.training.shape, total = nEpoch * nIter;
  const [name, c] = [['sample_perc', color.HNM], ['loss_perc', color.BLF]][setting];
  const value = pct => shape === 0 ? begin : shape === 1 ? begin + pct * (end - begin) : begin + (1 + Math.cos(Math.PI * (1 - pct))) * (end - begin) / 2; // as fastai's
  const values = range(0, total).map(i => value(i / total));
  const kept = values.map((v, i) => i < warmup * nIter ? n : setting ? nBlf(sums(data.training.subarray(i * n, (i + 1) * n)), v, 0) : Math.max(1, count(n, v)));
  const sum = vals => vals.reduce((a, b) => a + b, 0), byEpoch = range(0, nEpoch).map(e => sum(kept.slice(e * nIter, (e + 1) * nIter)) / (nIter * n));
  const share = sum(kept) / (total * n), plain = label => mark('band', warmup ? [0, warmup] : null, label);
  const panels = [panel(`${name} over training`, 'epochs', name, [series('line', values.map((_, i) => i / nIter), values, '', c)], [plain('plain')], [0, nEpoch], [0, 1.05]),
    panel('Images trained on', 'epochs', '% of each epoch', [series('bars', byEpoch.map((_, e) => e + 0.5), byEpoch.map(o => 100 * o), '', c)],
      [plain(''), mark('hline', 100 * share, `${percent(share)} in all`, color.ink)], [0, nEpoch], [0, 105])];
  return { panels, say: `${thousands(sum(kept))} of ${thousands(total * n)} images are trained on, ${percent(share)}: as many as in ${fixed(nEpoch * share, 1)} of ${nEpoch} plain epochs. ` +
    `The last epoch keeps ${percent(byEpoch[nEpoch - 1])}.` };
};
