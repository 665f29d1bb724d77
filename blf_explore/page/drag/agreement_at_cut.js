BLF.compute.agreement_at_cut = (data, { kept, epoch }) => {
  const { color, range, series, mark, panel, when } = BLF.rules(data), { percent } = BLF;
  const i = Math.floor(kept / 5) - 1, hard = color.HNM, rand = color.random, curve = data.agreement[epoch], epochs = range(0, data.agreement.length);
  const shares = data.kept.map(o => 100 * o), line80 = mark('hline', 80, '80%');
  const panels = [panel('At every cut', 'images kept (%)', 'signs that agree (%)', [series('line', shares, curve.top.map(o => 100 * o), 'the hardest', hard),
      series('line', shares, curve.random.map(o => 100 * o), 'random ones', rand)], [line80, mark('vline', shares[i], `${kept}%`)], [0, 100], [40, 102]),
    panel('At this cut', 'epochs trained', 'signs that agree (%)', [series('line', epochs, data.agreement.map(o => 100 * o.top[i]), 'the hardest', hard),
      series('line', epochs, data.agreement.map(o => 100 * o.random[i]), 'random ones', rand)], [line80, mark('vline', epoch, '')], [-0.3, 8.3], [40, 102])];
  return { panels, say: `${when(epoch)}: the hardest ${kept}% of the images keep ${percent(curve.top[i])} of the gradient’s signs, a random ${kept}% keep ${percent(curve.random[i])}.` };
};
