(() => {
  const sq = (p, q) => (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2;

  function greedy(points) { // the order of all points, beginning with the one farthest from the mean
    const n = points.length, mean = [0, 1].map(j => points.reduce((t, p) => t + p[j], 0) / n), order = [];
    let far = points.map(p => sq(p, mean)), near = points.map(() => Infinity);
    for (let c = 0; c < n; c++) {
      const i = far.indexOf(Math.max(...far)); // the first of several
      order.push(i);
      near = near.map((d, j) => Math.min(d, sq(points[j], points[i])));
      near[i] = -1; // never again
      far = near;
    }
    return order;
  }

  function radii(points, order) { // the largest distance of a point to the first 1, 2, … of them
    let near = points.map(() => Infinity);
    return order.map(i => { near = near.map((d, j) => Math.min(d, sq(points[j], points[i]))); return Math.sqrt(Math.max(...near)) });
  }

  BLF.compute.k_center = (data, { k }) => {
    const { color, range, series, mark, panel } = BLF.rules(data), { fixed } = BLF;
    const pts = data.points, c = color['core-set'], order = greedy(pts), n = pts.length, own = radii(pts, order), others = radii(pts, data.order);
    const kept = order.slice(0, k), x = [], y = [];
    let far = 0, farD = -1;
    pts.forEach((p, i) => {
      const dists = kept.map(j => sq(p, pts[j])), d = Math.min(...dists), j = kept[dists.indexOf(d)];
      x.push(p[0], pts[j][0], null);
      y.push(p[1], pts[j][1], null);
      if (d > farD) { far = i; farD = d }
    });
    const at = (idxs, label, color, more) => series('points', idxs.map(i => pts[i][0]), idxs.map(i => pts[i][1]), label, color, more), ks = range(1, n + 1);
    const panels = [panel('The batch by the network’s features', 'first principal component', 'second principal component',
        [series('line', x, y, 'to the nearest kept one', color.links), at(range(0, n), 'skipped', color.skipped), at(kept, 'kept', c, { size: 1.6 }), at([far], 'farthest from a kept one', color.ink, { size: 1.6 })]),
      panel('How far the farthest is', 'images kept', 'distance to the nearest kept one', [series('line', ks, own, 'core-set', c), series('line', ks, others, 'random', color.random, { dash: true })],
        [mark('vline', k, '')], [0, n + 1], [0, 1.05 * Math.max(own[0], others[0])]),
      { kind: 'images', title: 'The images that were kept, in their order', groups: [{ label: `The first ${Math.min(k, 20)}`, color: c, items: kept.slice(0, 20) }] }];
    return { panels, say: `With ${k} of ${n} images kept, none is farther than ${fixed(own[k - 1], 1)} from a kept one; with ${k} random ones, one is ${fixed(others[k - 1], 1)} away.` };
  };
})();
