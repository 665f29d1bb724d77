"Figures of a record, against sums over its rows."
import pytest
from blf_explore.page.plots import epoch_sums, plot_accuracy, plot_agreement, plot_samples, plot_time, seconds_so_far
from blf_explore.gradients import GradientProbe
from core_tools import *

@pytest.fixture(scope='module')
def record(): return fit_quietly(make_learner(cbs=[BatchLossFilter(.6), GradientProbe(40)])).record

def test_sums_are_those_of_the_batches(record):
    by_epoch = record.batches.groupby('epoch')
    assert epoch_sums(record)['n_kept']==by_epoch.n_kept.sum().tolist()
    times = record.batches[['t_score_s','t_select_s','t_train_s']].sum(axis=1).groupby(record.batches.epoch).sum().cumsum()
    assert seconds_so_far(record)==pytest.approx(times.tolist())

def test_samples_kept_are_drawn_epoch_by_epoch(record):
    bars = next(o for o in plot_samples(record).data if o.type=='bar' and list(o.y)==epoch_sums(record)['n_kept'])
    assert len(bars.x)==3

@pytest.mark.parametrize('plot', [plot_samples, plot_time, plot_agreement])
def test_every_figure_has_an_axis_with_a_name_and_a_trace(record, plot):
    fig = plot(record)
    assert fig.layout.xaxis.title.text and fig.layout.yaxis.title.text and any(o.y is not None and len(o.y) for o in fig.data)

def test_accuracy_is_the_records(record):
    fig = plot_accuracy({'BLF': record}, metric='accuracy_')
    assert [list(o.y) for o in fig.data if o.y is not None and len(o.y)==3][0]==pytest.approx((100*record.epochs.accuracy_).tolist()) # percent
