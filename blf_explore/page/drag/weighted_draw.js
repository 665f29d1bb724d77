BLF.compute.weighted_draw = (data, { by_score, k, epoch }) => {
  const { color, range, sums, last, series, mark, panel, when } = BLF.rules(data), { fixed } = BLF;
  const g = data.gradients[epoch], imp = color.importance, rand = color.random, along = g.along, n = along.length, mean = last(sums(along)) / n;
  const total = last(sums(g.bound)), chances = by => g.bound.map(o => (1 - by) / n + by * o / total);
  const variance = ps => last(sums(g.norm.map((o, i) => o * o / (n * n * ps[i])))) - mean * mean; // of one weighted draw's gradient
  const bias = ps => last(sums(ps.map((p, i) => p * along[i]))) / mean; // of the unweighted mean, on average
  const above = (edges, u) => { // the first that is above u
    let lo = 0, hi = n;
    while (lo < hi) { const m = (lo + hi) >> 1; if (edges[m] > u) hi = m; else lo = m + 1 }
    return lo;
  };
  const draws = ps => { // of each recorded draw of k: the mean with weights 1/(n p), and without
    const edges = sums(ps), drawn = data.uniforms.map(us => us.slice(0, k).map(u => Math.min(above(edges, u), n - 1)));
    return [drawn.map(idxs => last(sums(idxs.map(i => along[i] / (n * ps[i])))) / k), drawn.map(idxs => last(sums(idxs.map(i => along[i]))) / k)];
  };
  const ps = chances(by_score), even = chances(0), full = chances(1), [weighted, bare] = draws(ps);
  const top = 1.05 * Math.max(...draws(full)[1], ...draws(even)[0]) / mean; // so that all dots of this epoch are seen
  const shares = range(0, 21).map(o => o / 20), ratio = variance(ps) / variance(even), xs = range(1, bare.length + 1);
  const panels = [panel('The gradient that each draw gives', 'draw', 'length (1: the whole batch’s)', [series('points', xs, bare.map(o => o / mean), 'without weights', color.skipped),
      series('points', xs, weighted.map(o => o / mean), 'with weights 1/(n p)', imp)], [mark('hline', 1, '', color.ink)], [0, xs.length + 1], [-0.1 * top, top]),
    panel('Chance of each image', 'images, largest chance first', 'chance per draw (%)', [series('bars', range(1, n + 1), [...ps].sort((a, b) => b - a).map(o => 100 * o), '', imp)],
      [mark('hline', 100 / n, 'even', rand)], [0, n + 1], [0, 105 * Math.max(...full)]),
    panel('Variance, weighted', 'draw: 0 even, 1 by score', 'of an even draw’s', [series('line', shares, shares.map(o => variance(chances(o)) / variance(even)), '', imp)],
      [mark('hline', 1, 'even', rand), mark('vline', by_score, '')], [0, 1], [0, 1.15])];
  return { panels, say: `${when(epoch)}: with weights, the gradient’s variance is ${fixed(ratio, 2)} of that of an even draw, as with ${fixed(k / ratio)} images drawn in place of ${k}. ` +
    `Without weights the mean is ${fixed(bias(ps), 1)} times what it should be.` };
};
