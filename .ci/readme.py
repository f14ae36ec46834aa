"README.md from nbs/index.ipynb, in the shape nbdev-readme gives it but without Quarto; --check compares and writes nothing."
import difflib, json, re, sys, tomllib
from pathlib import Path

root = Path(__file__).resolve().parents[1]
nb_path,md_path = root/'nbs/index.ipynb',root/'README.md'
note = '<!-- Generated from nbs/index.ipynb by `make readme`: edit the notebook, not this file -->'

def directives(
    src, # Source of a code cell
): # Its `#|` lines as a dict, and the rest
    "Split the directives from the code."
    lines = src.strip('\n').splitlines()
    n = next((i for i,l in enumerate(lines) if not l.startswith('#|')), len(lines))
    return dict((*re.split(r':?\s+', l[2:].strip(), maxsplit=1), '')[:2] for l in lines[:n] if l[2:].strip()), '\n'.join(lines[n:]).strip('\n')

def out2md(
    o, # One output of a code cell
): # Markdown, or an empty string for what a README cannot show
    "Text is indented, Markdown and tables of progress bars go in as they are, pictures stay on the docs site."
    data = o.get('data', {})
    txt = lambda k: ''.join(data.get(k, ''))
    if o['output_type']=='stream': plain = ''.join(o['text']) if o['name']=='stdout' else ''
    elif o['output_type']=='error': plain = f"{o['ename']}: {o['evalue']}"
    elif 'text/markdown' in data: return txt('text/markdown').strip()
    elif any(k.startswith('image/') for k in data): return ''
    elif txt('text/plain').startswith('<IPython.'):
        html = re.sub(r'<style>.*?</style>|<progress.*?</progress>', '', txt('text/html'), flags=re.S).strip()
        return html if '<table' in html else ''
    else: plain = txt('text/plain')
    lines = re.sub(r'\x1b\[[\d;]*m', '', plain).strip('\n').splitlines()
    return '\n'.join(f'    {l}'.rstrip() for l in lines) if any(l.strip() for l in lines) else ''

def code2md(
    c, # A code cell
): # List of Markdown blocks
    "Fenced code and its outputs, less what the directives hide."
    d,src = directives(''.join(c['source']))
    if {'hide','default_exp'} & d.keys() or d.get('include')=='false': return []
    show = dict(echo='hide_input' not in d and d.get('echo')!='false', output='hide_output' not in d and d.get('output')!='false')
    res = [f'```python\n{src}\n```'] if src and show['echo'] else []
    return res + [out2md(o) for o in c.get('outputs', []) if show['output']]

def text2md(
    src,     # Source of a Markdown cell
    doc_url, # Address of the docs site
): # Markdown that reads well without Quarto
    "Links to notebooks become links to their pages, callouts become quotes."
    src = re.sub(r'\]\((?!\w+:|[#/])([^)#\s]+)\.(?:ipynb|html)(#[^)]*)?\)', lambda m: f"]({doc_url}/{m[1]}.html{m[2] or ''})", src)
    res,quote = [],False
    for l in src.strip('\n').splitlines():
        if m := re.match(r':::+\s*\{\.callout-(\w+)', l): res,quote = res + [f'> [!{m[1].upper()}]', '>'],True
        elif re.match(r':::+\s*(\{.*\})?\s*$', l): quote = False
        else: res.append(f'> {l}'.rstrip() if quote else l)
    return '\n'.join(res)

def readme(
    nb,      # Notebook as a dict
    doc_url, # Address of the docs site
): # Text of README.md
    "All cells of the notebook as one Markdown text."
    blocks = [note]
    for c in nb['cells']:
        if c['cell_type']=='markdown': blocks.append(text2md(''.join(c['source']), doc_url))
        elif c['cell_type']=='code': blocks += code2md(c)
    return '\n\n'.join(b for b in blocks if b) + '\n'

if __name__=='__main__':
    if not nb_path.exists(): sys.exit('nbs/index.ipynb is missing, and README.md is made from it')
    doc_url = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']['Documentation'].rstrip('/')
    new = readme(json.loads(nb_path.read_text(encoding='utf-8')), doc_url)
    if '--check' not in sys.argv: md_path.write_text(new, encoding='utf-8')
    else:
        old = md_path.read_text(encoding='utf-8') if md_path.exists() else ''
        diff = list(difflib.unified_diff(old.splitlines(), new.splitlines(), 'README.md', 'made from nbs/index.ipynb', lineterm='', n=1))
        sys.exit('\n'.join(diff[:60]) or None)
