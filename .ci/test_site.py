"The built site in a real browser: `python -m pytest .ci/test_site.py`, after `make docs`; screenshots go to the folder SHOTS names."
import functools, http.server, json, os, shutil, threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin
import pytest
from playwright.sync_api import sync_playwright

site = Path(__file__).resolve().parents[1]/'_docs'
pages = sorted(p.name for p in site.glob('*.html'))
browser_path = os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)
# without the last three, the browser looks for updates of its own
flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
shots = os.environ.get('SHOTS')

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='session')
def url():
    "The site on a port of this machine"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

@pytest.fixture(scope='session')
def browser():
    with sync_playwright() as p:
        res = p.chromium.launch(executable_path=browser_path, args=flags)
        yield res
        res.close()

@pytest.fixture
def page(browser, url):
    "A page that keeps what goes wrong in `page.faults`"
    context = browser.new_context(viewport=dict(width=1280, height=900))
    res = context.new_page()
    res.faults = []
    res.on('console', lambda m: m.type in ('error','warning') and res.faults.append(f'console: {m.text}'))
    res.on('pageerror', lambda e: res.faults.append(f'script: {e}'))
    res.on('requestfailed', lambda r: res.faults.append(f'failed: {r.url}'))
    res.on('response', lambda r: r.status>=400 and res.faults.append(f'{r.status}: {r.url}'))
    res.on('request', lambda r: r.url.startswith(('http:','https:')) and not r.url.startswith(url) and res.faults.append(f'from elsewhere: {r.url}'))
    yield res
    context.close()

def shot(page, name):
    if shots:
        Path(shots).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f'{shots}/{name}.png')

@pytest.mark.parametrize('name', pages)
def test_page(page, url, name):
    "Loads without faults, all that it has is its own, images have words, maths is drawn, and it fits a phone"
    page.goto(url+name, wait_until='load')
    page.wait_for_timeout(150)
    assert page.faults==[]
    assert page.title().strip() and page.locator('h1.title').count()==1
    blind = page.eval_on_selector_all('img', "os => os.filter(o => !(o.getAttribute('alt') || '').trim()).map(o => o.outerHTML.slice(0, 80))")
    assert blind==[], f'images without alt text: {blind}'
    broken = page.eval_on_selector_all('img', 'os => os.filter(o => !o.complete || !o.naturalWidth).map(o => o.src.slice(0, 80))')
    assert broken==[]
    assert page.locator('.katex-error').count()==0
    prose = "o => { const c = o.cloneNode(true); c.querySelectorAll('code, .katex').forEach(e => e.remove()); return c.textContent }" # code shows its dollars, drawn maths keeps its source
    raw = page.evaluate(f"() => [...document.querySelectorAll('main p, main li, main td')].map({prose})"
        +".filter(o => /\\\\[(\\[]|\\$[^$ ][^$]*\\$/.test(o)).map(o => o.slice(0, 80))")
    assert raw==[], f'maths that was not drawn: {raw}'
    shot(page, f'{name[:-5]}.light')
    page.set_viewport_size(dict(width=390, height=844))
    page.wait_for_timeout(100)
    over = page.evaluate('() => document.documentElement.scrollWidth-window.innerWidth')
    assert over<=0, f'{over} pixels wider than a phone'
    shot(page, f'{name[:-5]}.phone')

@pytest.fixture(scope='session')
def graph(browser, url):
    "Links, and names that links can lead to, of every page, as the browser has them"
    res,tab = {},browser.new_page()
    for name in pages:
        tab.goto(url+name, wait_until='load')
        res[name] = tab.evaluate("() => [[...document.querySelectorAll('a[href]')].map(o => o.getAttribute('href')), [...document.querySelectorAll('[id],a[name]')].map(o => o.id || o.name)]")
    tab.close()
    return res

@pytest.mark.parametrize('name', pages)
def test_links_lead_somewhere(graph, name):
    "Every link within the site has a file, and an anchor if it names one"
    bad = []
    for href in graph[name][0]:
        target,anchor = urldefrag(urljoin(f'http://site/{name}', href))
        if not target.startswith('http://site/'): continue
        path = unquote(target.removeprefix('http://site/')) or 'index.html'
        if not (site/path).is_file(): bad.append(f'{href}: no such file')
        elif anchor and path in graph and unquote(anchor) not in graph[path][1]: bad.append(f'{href}: no such anchor')
    assert bad==[]

def test_parameters_stand_in_tables(page, url):
    page.goto(url+'mixup.html')
    rows = page.locator('main table tr:has(td:text-is("alpha"))')
    assert rows.count() and 'NoneType' not in page.locator('main').inner_text()
    assert rows.locator('.katex').count() # its maths is drawn

def test_search_finds_the_callback(page, url):
    page.goto(url+'index.html')
    box = page.locator('.smalldocs-search input').first
    box.fill('BalancedMixUp')
    hits = page.locator('.smalldocs-search-results.show a.search-result')
    hits.first.wait_for()
    hrefs = [o.get_attribute('href') for o in hits.all()]
    assert any('mixup.html' in o for o in hrefs[:5]), hrefs
    shot(page, 'search')
    hits.first.click()
    page.wait_for_load_state()
    assert page.faults==[] and 'BalancedMixUp' in page.locator('main').inner_text()

def luminance(page):
    rgb = [int(o) for o in page.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)")]
    return sum(a*b for a,b in zip((.299,.587,.114), rgb))

def test_theme_switch(page, url):
    "The switch changes the theme, and the next page keeps it"
    page.goto(url+'index.html')
    assert luminance(page)>200
    page.locator('.quarto-color-scheme-toggle:visible').first.click()
    page.wait_for_timeout(200)
    assert luminance(page)<80
    page.goto(url+'mixup.html')
    page.wait_for_timeout(200)
    assert luminance(page)<80 and page.faults==[]

@pytest.mark.parametrize('name', pages if shots else ['index.html','mixup.html','show.html'])
def test_text_can_be_read_in_the_dark(browser, url, name):
    "Code and text have contrast with what lies behind them (WCAG 2.1, AA: 4.5)"
    context = browser.new_context(viewport=dict(width=1280, height=900), color_scheme='dark')
    page = context.new_page()
    page.goto(url+name, wait_until='load')
    page.wait_for_timeout(150)
    faint = page.evaluate(contrast)
    shot(page, f'{name[:-5]}.dark')
    context.close()
    assert faint==[]

contrast = """() => {
    const parse = s => s.match(/[\\d.]+/g).map(Number);
    const lum = ([r,g,b]) => [r,g,b].map(v => (v /= 255) <= .03928 ? v/12.92 : ((v+.055)/1.055)**2.4).reduce((a, v, i) => a+v*[.2126,.7152,.0722][i], 0);
    const behind = o => { const stack = [];
        for (let e=o; e; e=e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length==3 || c[3]>0) { stack.push(c); if (c.length==3 || c[3]==1) break; } }
        return stack.reverse().reduce((b, c) => { const a = c.length==3 ? 1 : c[3]; return [0,1,2].map(i => a*c[i]+(1-a)*b[i]); }, [255,255,255]); };
    const found = new Set();
    for (const o of document.querySelectorAll('main p, main li, main td, main th, main pre code, main pre span, main h1, main h2, main h3')) {
        if (![...o.childNodes].some(n => n.nodeType==3 && n.textContent.trim()) || o.closest('.katex') || !o.checkVisibility()) continue;
        const b = lum(behind(o)), f = lum(parse(getComputedStyle(o).color)), r = (Math.max(b, f)+.05)/(Math.min(b, f)+.05);
        if (r<4.5) found.add(`${o.tagName}.${o.className}: ${r.toFixed(1)} for ${getComputedStyle(o).color}`);
    }
    return [...found].slice(0, 8); }"""

def test_copies_for_machines():
    "llms.txt lists a Markdown copy of every page, and the search index knows them all"
    txt = (site/'llms.txt').read_text()
    for name in pages: assert f'{name[:-5]}.llms.md' in txt and (site/f'{name[:-5]}.llms.md').stat().st_size>200
    assert {o['href'].split('#')[0] for o in json.loads((site/'search.json').read_text())}>=set(pages)
