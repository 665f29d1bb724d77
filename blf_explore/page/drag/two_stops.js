BLF.compute.two_stops = (data, { loss_perc, sample_perc, epoch }) => {
  const { color, range, count, sums, last, nBlf, series, mark, panel, when } = BLF.rules(data), { fixed } = BLF;
  const n = data.losses[0].length, blf = color.BLF, hnm = color.HNM;
  const masses = data.losses.map(o => sums([...o].sort((a, b) => b - a)));
  const k = Math.max(1, count(n, sample_perc)), ms = masses.map(o => nBlf(o, loss_perc, 0));
  const held = (o, m) => 100 * o[m - 1] / last(o), byBlf = masses.map((o, i) => held(o, ms[i])), byHnm = masses.map(o => held(o, k));
  const epochs = range(0, masses.length), mass = masses[epoch], m = ms[epoch], now = [mark('vline', epoch, '')];
  const panels = [panel('One batch, hardest first', 'images kept', '% of the batch’s loss', [series('line', range(0, n + 1), [0, ...mass.map(o => 100 * o / last(mass))], '', color.ink)],
      [mark('vline', m, `BLF: ${m}`, blf), mark('vline', k, `HNM: ${k}`, hnm), mark('hline', 100 * loss_perc, 'loss_perc')], [0, n + 1], [0, 105]),
    panel('Images kept', 'epochs trained', '% of the batch', [series('line', epochs, ms.map(o => 100 * o / n), 'BLF', blf),
      series('line', epochs, ms.map(() => 100 * k / n), 'HNM', hnm)], now, [-0.3, 8.3], [0, 105]),
    panel('Loss held', 'epochs trained', '% of the batch’s loss', [series('line', epochs, byBlf, 'BLF', blf), series('line', epochs, byHnm, 'HNM', hnm)], now, [-0.3, 8.3], [0, 105])];
  return { panels, say: `${when(epoch)}: BatchLossFilter stops at ${m} of ${n} images, which hold ${fixed(byBlf[epoch])}% of the loss; ` +
    `hard-negative mining at ${k}, which hold ${fixed(byHnm[epoch])}%.` };
};
