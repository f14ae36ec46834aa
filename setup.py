"Package metadata for setuptools, read from settings.ini (pyproject.toml holds only what nbdev needs to find statically)."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
licenses = dict(apache2='Apache-2.0')
statuses = {'1':'Planning', '2':'Pre-Alpha', '3':'Alpha', '4':'Beta', '5':'Production/Stable'}
extras = {k.removesuffix('_requirements'):v.split() for k,v in cfg.items() if k.endswith('_requirements')}
classifiers = [f"Development Status :: {cfg['status']} - {statuses[cfg['status']]}", f"Intended Audience :: {cfg['audience']}",
    f"Natural Language :: {cfg['language']}", 'Programming Language :: Python :: 3 :: Only', 'Topic :: Scientific/Engineering :: Artificial Intelligence']

class SourceDist(sdist):
    "A source distribution needs settings.ini too"
    def make_release_tree(self, base_dir, files): super().make_release_tree(base_dir, [*files, 'settings.ini'])

setup(name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], python_requires=f">={cfg['min_python']}",
    long_description=(root/'README.md').read_text(encoding='utf-8') if (root/'README.md').exists() else cfg['description'],
    long_description_content_type='text/markdown', keywords=cfg['keywords'].split(), author=cfg['author'],
    license_expression=licenses[cfg['license']], classifiers=classifiers, packages=find_packages(include=[f"{cfg['lib_path']}*"]), package_data={cfg['lib_path']: ['studies/*.yml']},
    install_requires=cfg['requirements'].split(), extras_require=extras, zip_safe=False, cmdclass=dict(sdist=SourceDist),
    entry_points=dict(console_scripts=cfg['console_scripts'].split(), nbdev=[f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]))
