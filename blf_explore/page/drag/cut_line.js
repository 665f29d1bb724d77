BLF.compute.cut_line = (data, { loss_perc, sample_perc, epoch }) => {
  const { color, range, hardest, sums, last, nBlf, series, mark, panel, when } = BLF.rules(data), { percent } = BLF;
  const losses = data.losses[epoch], order = hardest(losses), n = losses.length;
  const vals = order.map(i => losses[i]), mass = sums(vals), m = nBlf(mass, loss_perc, sample_perc), blf = color.BLF;
  const held = [0, ...mass.map(o => 100 * o / last(mass))];
  const bars = [series('bars', range(1, m + 1), vals.slice(0, m), 'kept', blf), series('bars', range(m + 1, n + 1), vals.slice(m), 'skipped', color.skipped)];
  const few = order.slice(0, m).slice(0, 10), rest = order.slice(m).reverse().slice(0, 10);
  const groups = [{ label: `Kept: the ${few.length} hardest of ${m}`, color: blf, items: few, notes: few.map(i => data.labels[i]) },
    { label: `Skipped: the ${rest.length} easiest of ${n - m}`, color: color.skipped, items: rest, notes: rest.map(i => data.labels[i]) }];
  const panels = [panel('Each image’s loss', 'images, hardest first', 'loss (nats)', bars, [mark('vline', m + 0.5, 'the cut', blf)], [0, n + 1], [0, 1.05 * vals[0]]),
    panel('Loss held by the hardest', 'images kept', '% of the batch’s loss', [series('line', range(0, n + 1), held, '', color.ink)],
      [mark('vline', m, `${m} kept`, blf), mark('hline', 100 * loss_perc, 'loss_perc')], [0, n + 1], [0, 105]),
    { kind: 'images', title: 'The images, each above its label', groups }];
  return { panels, say: `${when(epoch)}: ${m} of ${n} images (${percent(m / n)}) hold ${percent(mass[m - 1] / last(mass))} of the loss.` };
};
