BLF.compute.beta_curve = (data, { beta, epoch }) => {
  const { color, range, hardest, sums, last, series, mark, panel } = BLF.rules(data), { fixed, percent } = BLF;
  const ps = data.percentiles[epoch], n = ps.length, sb = color.SB, chances = ps.map(o => o ** beta), expected = last(sums(chances));
  const xs = range(0, 51).map(o => o / 50), betas = range(0, 81).map(o => o / 10), order = hardest(ps);
  const group = (label, items) => ({ label, color: sb, items, notes: items.map(i => percent(chances[i])) });
  const panels = [panel('Chance to be kept', 'percentile of the loss (%)', 'chance (%)', [series('line', xs.map(o => 100 * o), xs.map(o => 100 * o ** beta), 'percentile^beta', sb),
      series('points', ps.map(o => 100 * o), chances.map(o => 100 * o), 'the batch’s images', color.ink)], [], [0, 100], [0, 105]),
    panel('Share kept on average', 'beta', '% of the images', [series('line', betas, betas.map(o => 100 / (1 + o)), '1/(1+beta)', sb),
      series('points', [beta], [100 * expected / n], 'this batch, expected', color.ink, { size: 1.6 })], [mark('vline', beta, '')], [0, 8], [0, 105]),
    { kind: 'images', title: 'The images, each above its chance', groups: [group('The 8 hardest', order.slice(0, 8)), group('The 8 easiest', [...order].reverse().slice(0, 8))] }];
  return { panels, say: `With beta = ${fixed(beta, 1)} the median image is kept with a chance of ${percent(0.5 ** beta)}. Of these ${n} about ${fixed(expected)} are kept ` +
    `(${percent(expected / n)}); 1/(1+beta) is ${percent(1 / (1 + beta))}.` };
};
