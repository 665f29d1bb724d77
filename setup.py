"Reads settings.ini, the only place where the package's metadata lives."
from configparser import ConfigParser
from pathlib import Path
import re
from setuptools import setup, find_packages

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

def version():
    "nbdev keeps `__version__` in `__init__.py`; that is the version that is built."
    return re.search(r'__version__\s*=\s*"([^"]+)"', (here/cfg['lib_name']/'__init__.py').read_text())[1]

extras = {o: cfg[f'{o}_requirements'].split() for o in ('dashboard', 'dev', 'bench')}
extras['dev'] += extras['dashboard']

setup(name=cfg['lib_name'], version=version(), description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license=cfg['license'],
    url=f"https://github.com/{cfg['user']}/{cfg['repo']}",
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_name'], cfg['lib_name']+'.*']),
    package_data={cfg['lib_name']: ['records/*.json', 'records/*.xz', 'records/*.npz'], cfg['lib_name']+'.page': ['*.js', '*.png', '*.css', '*.html', 'drag/*'], cfg['lib_name']+'.engine': ['*.xz']},
    license_files=['LICENSE', 'NOTICE'],
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points=dict(console_scripts=cfg['console_scripts'].split()), zip_safe=False,
    classifiers=['Development Status :: 4 - Beta', 'Intended Audience :: Education', 'Framework :: Jupyter',
                 'Programming Language :: Python :: 3'] +
                [f'Programming Language :: Python :: 3.{o}' for o in (10, 11, 12, 13)])
