// The mission's three charts from a record: blf_explore/whatif.py's arithmetic and page/whatif.py's words.
(() => {
  function sortedMass(losses) { // of one batch; null where one is not finite
    const vals = Float64Array.from(losses).sort().reverse();
    if (!vals.every(Number.isFinite)) return vals.fill(NaN);
    let sum = 0;
    return vals.map(v => sum += Math.max(v, 0));
  }

  function trainS(n, { sizes: xs, train: ys }) {
    const k = xs.length - 1;
    if (n <= 0) return 0;
    if (n <= xs[k]) return BLF.interp(n, xs, ys);
    return ys[k] + (n - xs[k]) * (ys[k] - ys[k - 1]) / (xs[k] - xs[k - 1]);
  }

  function masses(data) { // sorted once
    let at = 0;
    return Array.from(data.lens, n => sortedMass(data.losses.subarray(at, at += n)));
  }

  function epochs(data, lossPerc, samplePerc) {
    const { count, keptCount } = BLF.rules(data), p = data.prices, n = data.n_epoch, zeros = () => new Array(n).fill(0), whole = trainS(p.bs, p);
    const steps = data.steps = data.steps || [], step = n => steps[n] ??= trainS(n, p), counts = [], least = n => counts[n] ??= count(n, samplePerc); // worked out once
    const res = { n_seen: zeros(), n_kept: zeros(), t_score_s: zeros(), t_select_s: zeros(), t_train_s: zeros(), t_plain_s: zeros() };
    data.mass = data.mass || masses(data);
    data.mass.forEach((mass, i) => {
      const e = data.epoch[i], seen = data.n_seen[i], m = mass.length ? keptCount(mass, lossPerc, least(mass.length)) : seen, plain = step(seen);
      res.n_seen[e] += seen;
      res.n_kept[e] += m;
      if (mass.length) { res.t_score_s[e] += p.score * plain / whole; res.t_select_s[e] += p.select }
      res.t_train_s[e] += step(m);
      res.t_plain_s[e] += plain;
    });
    res.t_s = res.t_score_s.map((v, e) => v + res.t_select_s[e] + res.t_train_s[e]);
    const shares = res.n_kept.map((k, e) => k / res.n_seen[e]);
    const agreement = key => shares.map((s, e) => e < data.agreement.length ? BLF.interp(s, data.agreement[e].kept, data.agreement[e][key]) : null);
    return { ...res, sign_agreement: agreement('top'), random_sign_agreement: agreement('random') };
  }

  function paysBack(t, plain) {
    let spent = 0;
    for (let e = 0; e < t.length; e++) { spent += t[e] - plain[e]; if (spent <= 0) return e + 1 }
    return null;
  }

  const sum = a => a.reduce((x, y) => x + y, 0);

  BLF.compute.what_if = (data, { loss_perc, sample_perc }) => {
    const r = epochs(data, loss_perc, sample_perc), n = data.n_epoch, x = r.n_seen.map((_, e) => e + 1), { colors } = data;
    const plain = sum(r.t_plain_s) / n, ratio = r.t_s.map(t => t / plain), overhead = r.t_score_s.map((t, e) => (t + r.t_select_s[e]) / plain);
    const back = paysBack(r.t_s, r.t_plain_s), shares = r.n_kept.map((k, e) => k / r.n_seen[e]), range = [0.5, n + 0.5], axis = { title: 'epoch', range };
    const signs = r.sign_agreement, last = data.agreement.length - 1;
    let say = `Of all samples ${BLF.percent(sum(r.n_kept) / sum(r.n_seen))} are kept: ${BLF.percent(shares[0])} in the first epoch, ${BLF.percent(shares[n - 1])} in the last. ` +
      `Training takes ${BLF.fixed(sum(r.t_s) / sum(r.t_plain_s), 2)} times as long as plainly, `;
    if (back === null) say += 'and the overhead is not paid back.';
    else say += back === 1 ? 'and pays from the first epoch on.' : `and the overhead is paid back by the end of epoch ${back}.`;
    if (last >= 0) say += ` In epoch ${last + 1} the kept samples agree with ${BLF.percent(signs[last])} of the signs, as many random ones with ${BLF.percent(r.random_sign_agreement[last])}.`;
    return { say, panels: [
      { title: 'Samples per epoch', x: axis, y: { title: 'samples trained on', range: [0, 1.12 * Math.max(...r.n_seen)] },
        series: [{ kind: 'bars', x, y: r.n_kept, label: 'kept', color: colors.BLF }], marks: [{ kind: 'hline', at: Math.max(...r.n_seen), label: 'all samples', color: colors.whole }] },
      { title: 'Time per epoch', x: axis, y: { title: 'time, a plain epoch = 1', range: [0, data.top] },
        series: [{ kind: 'bars', x, y: ratio, label: 'training on the kept', color: colors.training }, { kind: 'bars', x, y: overhead, label: 'scoring, choosing', color: colors.scoring }],
        marks: [{ kind: 'hline', at: 1, label: 'plain', color: colors.plain }, { kind: 'vline', at: back, label: 'paid back', color: colors['paid back'] }] },
      { title: 'Sign agreement', x: axis, y: { title: 'signs as the whole batch’s, %', range: [0, 105] },
        series: [{ kind: 'line', x, y: signs.map(v => v === null ? null : 100 * v), label: 'kept: the hardest', color: colors.BLF },
          { kind: 'line', x, y: r.random_sign_agreement.map(v => v === null ? null : 100 * v), label: 'as many at random', color: colors.random, dash: true }],
        marks: [{ kind: 'hline', at: 50, label: 'tossing a coin', color: colors.coin }] }] };
  };
})();
