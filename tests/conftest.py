import pytest, torch

def pytest_collection_modifyitems(items):
    "The lessons first: of two processes one runs them, which takes as long as all the rest, and the other one the rest."
    items.sort(key=lambda o: 'test_notebooks.py' not in o.nodeid)

@pytest.fixture
def double_precision():
    "Rounding errors of double precision are far below any fault, so that 1e-9 tells the two apart."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
