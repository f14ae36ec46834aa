"Build the docs site into _docs/ with smalldocs, from the pages nbdev stages for Quarto in _proc/; --strict fails on a warning."
import io, os, re, shutil, sys
from contextlib import redirect_stdout
from pathlib import Path
from nbdev import doclinks
from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.check import check
from smalldocs.site import build

root = Path(__file__).resolve().parents[1]
known = 'format-links','commonmark','keep-md','output-file' # keys that only Quarto reads

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
    bad = [l for l in out.getvalue().splitlines() if not any(k in l for k in known)]
    for l in bad: print(f'warning: {l}')
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(cache/cfg.doc_path.name, cfg.doc_path)
    remote = remote_assets(cfg.doc_path)
    for o in remote: print(f'fetched from elsewhere by a page: {o}')
    print(f'The site is in {cfg.doc_path.name}/: {len(list(cfg.doc_path.rglob("*.html")))} pages')
    return int(strict and bool(bad))

if __name__=='__main__': sys.exit(main('--strict' in sys.argv))
