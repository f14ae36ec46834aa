"Build the docs site into _docs/ with smalldocs, from the pages nbdev stages for Quarto in _proc/; --strict fails on a warning."
import hashlib, inspect, io, os, re, shutil, subprocess, sys, tarfile, tempfile, textwrap
from contextlib import redirect_stdout
from pathlib import Path
from fastcore.docments import DocmentTbl
from nbdev import doclinks, showdoc
from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.check import check
from smalldocs.layout import KATEX
from smalldocs.site import build

root = Path(__file__).resolve().parents[1]
known = 'format-links','commonmark','keep-md','output-file' # keys that only Quarto reads
katex = 'katex@0.16.11','8c5494c5f7d8e8bf73ff3fe64d4bd09a340e4878b7eec9bbd9ef8d8f3e24193f' # the version that smalldocs asks for, and its tarball's SHA-256

class NoKatex(Exception): pass

class WithTable(showdoc.BasicMarkdownRenderer):
    "A signature without comments, and the parameters in a table, where maths is drawn and lines break on a phone"
    def _repr_markdown_(self):
        doc,table = super()._repr_markdown_(),DocmentTbl(self.sym)._repr_markdown_()
        m = re.search(r'```python\n.*?\n```', doc, re.S)
        if not table or not m: return doc
        sig = inspect.signature(self.sym)
        params = [p.replace(annotation=p.empty) for p in sig.parameters.values() if p.name!='self']
        call = f"{self.nm}{sig.replace(parameters=params, return_annotation=sig.empty)}"
        code = '\n'.join(textwrap.wrap(call, 78, subsequent_indent='    ', break_long_words=False, break_on_hyphens=False))
        return f"{doc[:m.start()]}```python\n{code}\n```{doc[m.end():]}\n\n{table.replace(' NoneType |', '  |').replace(chr(92)+'^', '^')}\n"

showdoc.BasicMarkdownRenderer = WithTable

def katex_dist(): # Folder with katex.min.js, katex.min.css, contrib/ and fonts/
    "KaTeX from its npm package, fetched once and kept in the environment"
    dest = Path(sys.prefix)/'share'/katex[0].replace('@', '-')
    if dest.is_dir(): return dest
    if not shutil.which('npm'): raise NoKatex('KaTeX, which draws the maths, comes from npm: install Node.js with npm')
    with tempfile.TemporaryDirectory() as d:
        p = subprocess.run(['npm', 'pack', '--silent', katex[0]], cwd=d, capture_output=True, text=True)
        if p.returncode: raise NoKatex(f'`npm pack {katex[0]}` failed: {p.stderr.strip() or p.stdout.strip()}')
        tar = next(Path(d).glob('*.tgz'))
        if hashlib.sha256(tar.read_bytes()).hexdigest()!=katex[1]: raise NoKatex(f'{tar.name} is not the file that was reviewed: its SHA-256 differs')
        with tarfile.open(tar) as t: t.extractall(d, filter='data')
        dist,new = Path(d)/'package/dist',Path(d)/'new'
        for p in ['katex.min.js', 'katex.min.css', 'contrib/auto-render.min.js', *[f'fonts/{o.name}' for o in dist.glob('fonts/*.woff2')]]:
            (new/p).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(dist/p, new/p)
        shutil.copy(Path(d)/'package/LICENSE', new)
        dest.parent.mkdir(exist_ok=True)
        shutil.copytree(new, dest)
    return dest

def serve_katex(
    site, # Folder of the built site
):
    "Point the pages to a KaTeX of the site's own"
    for p in site.rglob('*.html'):
        txt = p.read_text(encoding='utf-8')
        if KATEX not in txt: continue
        if not (site/'site_libs/katex').exists(): shutil.copytree(katex_dist(), site/'site_libs/katex')
        p.write_text(txt.replace(KATEX, '../'*(len(p.relative_to(site).parts)-1)+'site_libs/katex'), encoding='utf-8')

def own_fonts(
    site, # Folder of the built site
):
    "Leave out the themes' web fonts: the next in their list are those of the reader's system"
    for p in site.rglob('*.css'):
        txt = p.read_text(encoding='utf-8')
        new = re.sub(r'@import\s+url\(["\']?https://fonts\.googleapis\.com/[^)]*\);', '', txt)
        if new!=txt: p.write_text(new, encoding='utf-8')

def remote_assets(
    site, # Folder of the built site
): # Addresses
    "Scripts, styles, fonts and pictures that a page would fetch from elsewhere."
    pats = r'<(?:script|img)[^>]*\ssrc="(https?://[^"]+)', r'<link[^>]*rel="stylesheet"[^>]*href="(https?://[^"]+)', r'(?:@import\s*|url\()[^)]{0,5}(https?://[^)"\']+)'
    files = [p for p in site.rglob('*') if p.suffix in ('.html','.css')]
    return sorted({m for p in files for pat in pats for m in re.findall(pat, p.read_text(encoding='utf-8'))})

def main(
    strict=False, # Fail on a warning?
): # Exit status
    "Stage, render and check the site."
    os.chdir(root)
    # nbdev-proc-nbs would first download Quarto, so this calls the same steps without it
    refresh_quarto_yml()
    doclinks._build_modidx()
    nbdev_sidebar.__wrapped__()
    cfg,cache = get_config(),proc_nbs(force=True)
    build(cache, quiet=True)
    with redirect_stdout(io.StringIO()) as out: check(cache)
    bad = [l for l in out.getvalue().splitlines() if re.search(r'\.(ipynb|md|yml)\b', l) and not any(k in l for k in known)]
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(cache/cfg.doc_path.name, cfg.doc_path)
    own_fonts(cfg.doc_path)
    try: serve_katex(cfg.doc_path)
    except NoKatex as e: bad.append(f'{e}; pages with maths fetch it from elsewhere')
    bad += [f'fetched from elsewhere by a page: {o}' for o in remote_assets(cfg.doc_path)]
    for l in bad: print(f'warning: {l}')
    print(f'The site is in {cfg.doc_path.name}/: {len(list(cfg.doc_path.rglob("*.html")))} pages')
    return int(strict and bool(bad))

if __name__=='__main__': sys.exit(main('--strict' in sys.argv))
