def pytest_collection_modifyitems(items):
    "The lessons first: of two processes one runs them, which takes as long as all the rest, and the other one the rest."
    items.sort(key=lambda o: 'test_notebooks.py' not in o.nodeid)
