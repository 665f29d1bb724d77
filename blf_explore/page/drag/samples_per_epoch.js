BLF.compute.samples_per_epoch = (data, { prune, delta }) => {
  const { color, range, sums, last, series, mark, panel } = BLF.rules(data), { percent, thousands } = BLF;
  const { n, below } = data, c = color.InfoBatch, nEpoch = below.length;
  const drops = range(0, nEpoch).map(e => e > 0 && e + 1 <= nEpoch * delta); // the first epoch knows no losses yet
  const kept = drops.map((drop, e) => drop ? n * (1 - prune * below[e - 1]) : n);
  const total = last(sums(kept)), whole = range(1, nEpoch).filter(e => !drops[e]).map(e => e + 1), xs = range(1, nEpoch + 1);
  const panels = [panel('Images trained on', 'epoch', 'images', [series('bars', xs, xs.map(() => n), 'dropped', color.dropped), series('bars', xs, kept, 'trained on', c)],
      [mark('vline', whole.length ? whole[0] - 0.5 : null, 'all again', color.ink)], [0.4, nEpoch + 0.6], [0, 1.15 * n]),
    panel('May be dropped', 'epoch', '% below the mean loss', [series('line', [null, ...xs.slice(1)], [null, ...below.slice(0, -1).map(o => 100 * o)], 'images below the mean, last epoch', c)], [],
      [0.4, nEpoch + 0.6], [0, 105])];
  const end = whole.length ? `From epoch ${whole[0]} on all are trained on.` : 'No epoch at the end trains on all.';
  return { panels, say: `${thousands(total)} of ${thousands(n * nEpoch)} images are trained on in ${nEpoch} epochs: ${percent(1 - total / (n * nEpoch))} are not even loaded. ${end}` };
};
