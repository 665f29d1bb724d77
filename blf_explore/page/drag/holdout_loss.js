BLF.compute.holdout_loss = (data, { sample_perc, epoch }) => {
  const { color, range, count, hardest, sums, last, series, mark, panel, when } = BLF.rules(data), { fixed } = BLF;
  const losses = data.losses[epoch], { holdout, wrong } = data, n = losses.length, rho = color['RHO-LOSS'], hnm = color.HNM;
  const excess = losses.map((o, i) => o - holdout[i]), byRho = hardest(excess), byLoss = hardest(losses), k = Math.max(1, count(n, sample_perc));
  const cut = excess[byRho[k - 1]], kept = new Set(byRho.slice(0, k));
  const dots = (isKept, isWrong, label, c, more = {}) => {
    const idxs = range(0, n).filter(i => kept.has(i) === isKept && !!wrong[i] === isWrong);
    return series('points', idxs.map(i => holdout[i]), idxs.map(i => losses[i]), label, c, { size: 1.3, ...more });
  };
  const xs = range(0, 131).map(o => o / 10), wrongs = order => sums(order.map(i => wrong[i])), a = wrongs(byRho), b = wrongs(byLoss), ks = range(1, n + 1), cross = { symbol: 'cross' };
  const panels = [panel('Each image', 'holdout loss (nats)', 'loss (nats)', [series('line', xs, xs.map(o => o + cut), 'RHO-LOSS keeps what is above', rho),
      series('line', xs, xs.map(() => losses[byLoss[k - 1]]), 'HNM keeps what is above', hnm),
      dots(true, false, 'kept', rho), dots(true, true, 'kept, label wrong', rho, cross), dots(false, false, 'skipped', color.skipped),
      dots(false, true, 'skipped, label wrong', color.ink, cross)], [], [0, 9], [0, 8]),
    panel('Wrong labels among the kept', 'images kept (% of the batch)', 'wrong labels (% of the kept)', [series('line', ks.map(o => 100 * o / n), ks.map((m, i) => 100 * b[i] / m), 'HNM', hnm),
      series('line', ks.map(o => 100 * o / n), ks.map((m, i) => 100 * a[i] / m), 'RHO-LOSS', rho)],
      [mark('hline', 100 * last(a) / n, 'in the whole batch'), mark('vline', 100 * k / n, '')], [0, 100], [0, 105])];
  return { panels, say: `${when(epoch)}, of ${n} images ${k} are kept. Wrong labels among them: RHO-LOSS ${fixed(a[k - 1])}, hard-negative mining ${fixed(b[k - 1])}. The batch holds ${fixed(last(a))}.` };
};
