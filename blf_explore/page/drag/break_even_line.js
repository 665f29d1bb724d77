BLF.compute.break_even_line = (data, { share, F, score, B }) => {
  const { color, range, series, mark, panel } = BLF.rules(data), { fixed, percent } = BLF;
  const step = F + B, ratio = score / step, cost = ratio + share / 100, even = 1 - ratio, scoring = color.scoring, pays = even > 0;
  const xs = range(0, 51).map(i => 2 * i), big = { size: 1.6 };
  const withIt = series('line', xs, xs.map(x => ratio + x / 100), 'a step with selection', color.BLF);
  const marks = [mark('hline', 1, 'a plain step', color.ink), mark('band', pays ? [0, 100 * even] : null, 'saves time'),
    mark('vline', pays ? 100 * even : null, `break-even ${percent(even)}`, scoring)];
  const known = data.times.map(t => series('points', [t.ratio], [100 * (1 - t.ratio)], t.label, t.color, big));
  const panels = [panel('What a step costs', 'images kept (% of the batch)', 'time (plain steps)', [withIt, series('points', [share], [cost], 'here', color.ink, big)], marks, [0, 100], [0, 2]),
    panel('Where it breaks even', 'scoring time / plain step', 'kept share at break-even (%)',
      [series('line', xs.map(x => x / 100), xs.map(x => 100 - x), '', color.skipped), ...known, series('points', [ratio], [100 * even], 'here', color.ink, big)], [], [0, 1], [0, 105])];
  const say = `A plain step takes ${fixed(step, 1)} ms; scoring, and a step on ${share}% of the batch, ${fixed(score + share / 100 * step, 1)} ms: ${fixed(cost, 2)} of it. ` +
    (pays ? `Selecting saves time while less than ${percent(even)} of the images are kept.` : 'Scoring alone takes longer than a plain step: selecting never saves time.');
  return { panels, say };
};
