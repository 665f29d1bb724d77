import pytest, torch

@pytest.hookimpl(tryfirst=True) # xdist reads its groups off the marks
def pytest_collection_modifyitems(items):
    "The lessons first, each for whichever process is free; of the other tests a file at a time, for its tests share what they set up."
    for o in items:
        if not o.get_closest_marker('lesson'): o.add_marker(pytest.mark.xdist_group(o.nodeid.split('::')[0]))
    items.sort(key=lambda o: o.get_closest_marker('lesson') is None)

@pytest.fixture
def double_precision():
    "Rounding errors of double precision are far below any fault, so that 1e-9 tells the two apart."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
