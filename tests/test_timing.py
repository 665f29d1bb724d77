"The clock, against a clock that a test moves by hand."
import pytest
from unittest.mock import patch
from blf_explore.engine.timing import PhaseTimer, break_even, time_interleaved

class Clock:
    t = 0.
    def __call__(self): return self.t

@pytest.fixture
def clock():
    c = Clock()
    with patch('time.perf_counter', c): yield c

def test_phases_are_told_apart_and_added_up(clock):
    timer = PhaseTimer('cpu')
    timer.start('score'); clock.t += 2
    timer.next('train'); clock.t += 5
    timer.next('score'); clock.t += 1
    assert timer.seconds(timer.stop())==dict(score=3., train=5.)

def test_what_is_excluded_counts_as_nothing(clock):
    timer = PhaseTimer('cpu')
    with timer.excluded(): clock.t += 7
    assert timer.excluded_s==7

def test_functions_take_turns(clock):
    order = []
    def a(): order.append('a'); clock.t += 1
    def b(): order.append('b'); clock.t += 3
    times = time_interleaved(dict(a=a, b=b), n=3, warmup=1)
    assert {k: v.tolist() for k,v in times.items()}==dict(a=[1.]*3, b=[3.]*3)
    assert ''.join(order)=='abababab'

def test_break_even_by_hand():
    "Scoring for .3 of a step leaves .7 of the samples to train on in the same time."
    assert break_even(step=1., scoring=.3)==pytest.approx(.7)
