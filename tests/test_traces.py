"The contexts, one by one: what was changed inside is afterwards what it was."
import random, types
from collections import deque
import numpy as np, pytest, torch
from torch import nn
from blf_explore.engine.traces import (eval_mode, grads_untouched, is_known, keeps_nothing, NoDropout, rng_state, rng_untouched, set_rng_state,
                                       single_values, state_untouched, vars_untouched, worded)
from core_tools import bn_net, Data, F

class Boom(Exception): pass

def draws(): return random.random(),float(np.random.rand()),float(torch.rand(()))

@pytest.mark.parametrize('raises', [False, True])
def test_random_numbers_go_on(raises):
    "Python's, NumPy's and torch's, also after an exception; without `python` torch's alone."
    state = rng_state()
    want = draws()
    for python in (True, False):
        set_rng_state(state)
        try:
            with rng_untouched(python=python):
                if python: draws()
                else: torch.rand(3)
                if raises: raise Boom
        except Boom: pass
        assert draws()==want

def test_modes_come_back():
    net = bn_net()
    net[1].eval() # frozen by its user
    before = [o.training for o in net.modules()]
    for model in (net, list(net.modules())):
        with pytest.raises(Boom), eval_mode(model):
            assert not any(o.training for o in net.modules())
            raise Boom
        assert [o.training for o in net.modules()]==before

def test_gradients_come_back():
    net = bn_net()
    net[0].weight.grad = (g := torch.ones_like(net[0].weight))
    with grads_untouched(net):
        assert net[0].weight.grad is None
        net(torch.randn(4, 6)).sum().backward()
        assert net[0].bias.grad is not None
    assert net[0].weight.grad is g and (g==1).all() and net[0].bias.grad is None

# ---- attributes and buffers

class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('n', torch.zeros(3))
        self.register_buffer('late', None)
        self.h,self.items,self.inner,self.seen,self.last,self.array = (torch.ones(2), torch.ones(2)),[1, [2]],dict(a=[1]),{1},deque([1, 2], 3),np.zeros(3)
        self.data,self.space,self.count = Data(torch.zeros(2), [1]),types.SimpleNamespace(k=1),0
        self.gen,self.np_gen,self.py_gen = torch.Generator().manual_seed(1),np.random.default_rng(1),random.Random(1)
        self.row = torch.zeros(1, 3).expand(4, 3)
        self.net = nn.Linear(2, 2)

def told(m):
    "All that such a module keeps, as something that `==` compares."
    return (m.n.tolist(), m.late, [o.tolist() for o in m.h], repr(m.items), repr(m.inner), sorted(m.seen), list(m.last), m.last.maxlen, m.array.tolist(),
            m.data.x.tolist(), repr(m.data.more), dict(vars(m.space)), m.count, m.gen.get_state().tolist(), m.np_gen.bit_generator.state, m.py_gen.getstate(),
            m.row.tolist(), sorted(vars(m)), sorted(m._buffers))

CHANGES = dict(
    buffer_written=lambda m: m.n.add_(1), buffer_replaced=lambda m: setattr(m, 'n', m.n+1), buffer_appears=lambda m: setattr(m, 'late', torch.ones(1)),
    buffer_added=lambda m: m.register_buffer('new', torch.ones(1)), tuple_replaced=lambda m: setattr(m, 'h', (m.h[0]+1, m.h[1])),
    tensor_in_a_tuple_written=lambda m: m.h[1].zero_(), appended=lambda m: m.items.append(3), appended_within=lambda m: m.items[1].append(3),
    popped=lambda m: m.items.pop(), dict_filled=lambda m: m.inner.update(b=2), list_in_a_dict=lambda m: m.inner['a'].append(2),
    set_filled=lambda m: m.seen.add(2), deque_turned=lambda m: m.last.extend([8, 9]), array_written=lambda m: m.array.__setitem__(0, 5),
    dataclass_set=lambda m: setattr(m.data, 'x', torch.ones(2)), dataclass_written=lambda m: m.data.x.add_(1), list_in_a_dataclass=lambda m: m.data.more.append(2),
    namespace=lambda m: setattr(m.space, 'k', 2), counted=lambda m: setattr(m, 'count', m.count+1), attribute_added=lambda m: setattr(m, 'extra', 1),
    attribute_gone=lambda m: delattr(m, 'count'), torch_generator=lambda m: torch.rand(3, generator=m.gen), numpy_generator=lambda m: m.np_gen.random(3),
    python_generator=lambda m: m.py_gen.random(), expanded_written=lambda m: m.row[:1].add_(1), expanded_replaced=lambda m: setattr(m, 'row', m.row+1))

@pytest.mark.parametrize('raises', [False, True])
@pytest.mark.parametrize('name', CHANGES)
def test_what_a_module_keeps_comes_back(name, raises):
    m = Keeps()
    before,objects = told(m),{k: id(v) for k,v in vars(m).items()}
    try:
        with state_untouched([m]):
            CHANGES[name](m)
            try: assert told(m)!=before
            except AttributeError: pass
            if raises: raise Boom
    except Boom: pass
    assert told(m)==before and {k: id(v) for k,v in vars(m).items()}==objects # the same objects, not their like

def test_what_an_object_keeps_comes_back():
    "A loss that is no module, or a callback."
    o = types.SimpleNamespace(centre=torch.zeros(2), n=0)
    with state_untouched([o]):
        o.centre.add_(1); o.n += 1; o.more = 5
    assert o.centre.tolist()==[0, 0] and vars(o).keys()=={'centre','n'} and o.n==0

def test_parameters_and_modules_within_are_left_alone():
    m = Keeps()
    with state_untouched([m]):
        with torch.no_grad(): m.net.weight.add_(1)
        w = m.net.weight.clone()
        m.added = nn.Linear(2, 2)
    assert torch.equal(m.net.weight, w) and isinstance(m.added, nn.Linear)

def test_a_list_that_holds_itself():
    m = Keeps()
    m.items.append(m.items)
    with state_untouched([m]): m.items.append(4)
    assert len(m.items)==3 and m.items[2] is m.items

def test_attributes_refer_to_what_they_did():
    o = types.SimpleNamespace(a=(l := [1]), b=2)
    with pytest.raises(Boom), vars_untouched(o):
        o.a,o.c = [2],3
        del o.b
        raise Boom
    assert o.a is l and o.b==2 and not hasattr(o, 'c')

# ---- what a model cannot bear

@pytest.mark.parametrize('net,x,single', [(bn_net, (4, 6), True), (lambda: nn.BatchNorm2d(3), (4, 3, 1, 1), True), (lambda: nn.BatchNorm2d(3), (4, 3, 2, 2), False),
                                          (lambda: nn.Linear(6, 2), (4, 6), False), (lambda: nn.BatchNorm1d(6).eval(), (4, 6), False)])
def test_single_values(net, x, single):
    "As BatchNorm itself says of a batch of one."
    net = net()
    with single_values(net) as found: net(torch.randn(x))
    assert any(found)==single and not any(o._forward_pre_hooks for o in net.modules())
    if single:
        with pytest.raises(ValueError, match='more than 1 value per channel'): net(torch.randn(1, *x[1:]))
    else: net(torch.randn(1, *x[1:]))

def test_no_dropout_that_is_called():
    x = torch.ones(50)
    with NoDropout():
        assert torch.equal(F.dropout(x, .5, True), x) and torch.equal(F.alpha_dropout(x, .5, training=True), x)
        assert torch.equal(F.dropout2d(x.view(1, 50, 1, 1), .5), x.view(1, 50, 1, 1))
        assert torch.equal(torch.dropout(x, .5, True), x) and torch.equal(torch.dropout(x, p=.5, train=True), x)
        q = torch.randn(1, 2, 4, 3)
        torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q, dropout_p=.5), F.scaled_dot_product_attention(q, q, q))
    assert (F.dropout(x, .5)!=x).any()

def test_whose_layers_are_known():
    class Own(nn.Linear): pass
    assert is_known(nn.Dropout()) and not is_known(Own(2, 2)) and keeps_nothing(nn.Linear(2, 2)) and not keeps_nothing(Own(2, 2))

def test_an_exception_without_words_gets_its_name():
    assert worded(Boom()).args==('Boom',) and worded(Boom('said')).args==('said',)
