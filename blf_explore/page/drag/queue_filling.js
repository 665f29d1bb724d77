BLF.compute.queue_filling = (data, { share, bs }) => {
  const { color, range, last, series, mark, panel } = BLF.rules(data), { fixed } = BLF;
  const n = data.batches, sb = color.SB, xs = range(0, n + 1);
  const steps = xs.map(i => Math.floor(i * share / 100)); // full batches that so many kept ones fill
  const was = i => steps[Math.max(0, i - 1)], waits = (i, s) => bs * (i * share - 100 * s) / 100, after = xs.map(i => waits(i, steps[i]));
  const x = [], y = [];
  for (const i of xs) {
    if (steps[i] > was(i)) { x.push(i, i); y.push(waits(i, was(i)), after[i]) } else { x.push(i); y.push(after[i]) }
  }
  const panels = [panel('Images that wait', 'batches seen', 'images in the queue', [series('line', x, y, 'waiting', sb)], [mark('hline', bs, 'a full batch')], [0, n], [0, 2 * bs]),
    panel('Steps taken', 'batches seen', 'steps', [series('steps', xs, steps, 'with a queue: full batches', sb), series('line', xs, xs, 'without: a small step each', color.skipped, { dash: true })],
      [], [0, n], [0, n + 1])];
  const left = last(after);
  const end = left > 0 ? `${fixed(left)} still wait, and the epoch’s end trains on them in one more step.` : 'None wait at the end.';
  return { panels, say: `Of ${n} batches of ${bs} images ${share}% are kept: they fill ${last(steps)} whole batches, so ${last(steps)} steps are taken in place of ${n} ` +
    `small ones of ${fixed(bs * share / 100)}. ${end}` };
};
