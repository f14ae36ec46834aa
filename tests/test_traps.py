"reading what others made: each row of the table of damaged and hostile files, read with 200 MB of memory and ten seconds; limits and how they are raised."
import bz2, gzip, io, json, os, pickle, re, socket, struct, subprocess, sys, time, zipfile, zlib
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from balmix_fastai import datasets as data
from balmix_fastai.datasets import ImageSet, OpenImage, OverLimit, from_csv, from_folder, from_npz, limits, open_image
from balmix_fastai.layouts import cifar_lt

# What makes the files

def _pic(path, i=0, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (side,side,3), dtype=np.uint8)).save(path)

def _folder(d):
    "Two classes of two images"
    for i,n in enumerate(('a/0', 'a/1', 'b/2', 'b/3')): _pic(d/f'{n}.png', i)
    return d

def _png(w, h, extra=b'', data=b''):
    chunk = lambda k,d: struct.pack('>I', len(d))+k+d+struct.pack('>I', zlib.crc32(k+d))
    text = b''.join(chunk(k, d) for k,d in extra) if extra else b''
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0))+text+chunk(b'IDAT', data or zlib.compress(bytes((w+1)*h)))+chunk(b'IEND', b'')

def _with(content, name='a/x.png'):
    "A folder with one more image file of this content"
    def make(d):
        (_folder(d)/name).write_bytes(content)
        return d
    return make

def _huge_pngs(d):
    for i in range(4): (_folder(d)/f'a/x{i}.png').write_bytes(_png(13000, 13000, data=zlib.compress(bytes(10**7))))
    return d

def _tiles(d):
    "A TIFF of 16x16 pixels whose only tile has 40,000x20,000"
    tags = [(256,3,16), (257,3,16), (258,3,8), (259,3,8), (262,3,1), (277,3,1), (322,4,40000), (323,4,20000), (324,4,8), (325,4,100)]
    ifd = struct.pack('<H', len(tags))+b''.join(struct.pack('<HHII', t, k, 1, v) for t,k,v in tags)+bytes(4)
    return _with(b'II*\0'+struct.pack('<I', 108)+zlib.compress(bytes(10**5))[:100].ljust(100, b'\0')+ifd, 'a/x.tif')(d)

def _webp(d):
    side = (16382).to_bytes(3, 'little')
    return _with(b'RIFF'+struct.pack('<I', 44)+b'WEBPVP8X'+struct.pack('<I', 10)+bytes([2,0,0,0])+side+side+b'ANIM'+struct.pack('<I', 6)+bytes(6), 'a/x.webp')(d)

def _sparse(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'wb') as f: f.truncate(size)
    return path

def _pipe(d):
    os.mkfifo(_folder(d)/'a/x.png')
    return d

def _socket(d):
    here = os.getcwd()
    os.chdir(_folder(d)/'a') # the name of a socket is at most 108 bytes
    with socket.socket(socket.AF_UNIX) as s: s.bind('x.png')
    os.chdir(here)
    return d

def _link(target, name='a/x.png'):
    def make(d):
        (_folder(d)/name).symlink_to(target)
        return d
    return make

def _webbed(d):
    "Twelve folders that link to each other: 12! ways through them"
    _folder(d)
    for i in range(12):
        _pic(d/f'a/f{i}/x.png', i)
        for j in range(12): (d/f'a/f{i}/to{j}').symlink_to(d/f'a/f{j}')
    return d

def _deep(d):
    _folder(d)
    here = os.getcwd()
    os.chdir(d/'a')
    for i in range(1500):
        os.mkdir('n')
        os.chdir('n')
    os.chdir(here)
    return d

def _up(d):
    _pic(d/'in/test/a/0.png')
    (d/'in/train').symlink_to('/')
    return d/'in'

def _csv(rows, head='image,label'):
    def make(d):
        _folder(d)
        os.mkfifo(d/'a/pipe.png')
        (d/'t.csv').write_bytes(rows if isinstance(rows, bytes) else '\n'.join([head, 'a/0.png,a', 'b/2.png,b', *rows]).encode())
        return d/'t.csv'
    return make

def _csv_pipe(d):
    d.mkdir()
    os.mkfifo(d/'t.csv')
    return d/'t.csv'

def _head(shape, descr='|u1', fortran=False):
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, dict(descr=descr, fortran_order=fortran, shape=shape))
    return f.getvalue()

def _npy(a):
    f = io.BytesIO()
    np.save(f, a)
    return f.getvalue()

images,labels = np.zeros((6,4,4), np.uint8),np.arange(6)%2

def _npz(change=(), lie=None, **arrays):
    "An archive, in which `arrays` are arrays or bytes, or (bytes, number of zero bytes behind them); `lie` changes bytes"
    def make(d):
        d.mkdir()
        with zipfile.ZipFile(d/'x.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
            for k,v in {**dict(train_images=images, train_labels=labels), **arrays}.items():
                with z.open(f'{k}.npy', 'w', force_zip64=True) as f:
                    start,n = v if isinstance(v, tuple) else (v if isinstance(v, bytes) else _npy(v), 0)
                    f.write(start)
                    for i in range(0, n, 10**6): f.write(bytes(min(10**6, n-i)))
        if lie: (d/'x.npz').write_bytes(lie((d/'x.npz').read_bytes()))
        return d/'x.npz'
    return make

def _says_4_gb(raw):
    "The directory says that the first member has 4 GB"
    i = raw.index(b'PK\1\2')
    return raw[:i+24]+struct.pack('<I', 2**32-2)+raw[i+28:]

def _zip(*members, method=zipfile.ZIP_DEFLATED, **attrs):
    def make(d):
        d.mkdir()
        with zipfile.ZipFile(d/'x.zip', 'w') as z:
            for name,content in members:
                info = zipfile.ZipInfo(name)
                for k,v in attrs.items(): setattr(info, k, v)
                z.writestr(info, content, method)
        return d/'x.zip'
    return make

def _encrypted(d):
    f = _zip(('train/cat/x.png', b''))(d)
    raw = bytearray(f.read_bytes())
    for i in (6, raw.index(b'PK\1\2')+8): raw[i] |= 1 # the flag of a password
    f.write_bytes(raw)
    return f

def _bz2_bomb(d):
    "A member of 45 bytes says that it has 100, and unpacks to 250 MB"
    raw = bz2.compress(bytes(250*10**6), 9)
    f = _zip(('train/cat/x.png', bytes(100)), method=zipfile.ZIP_BZIP2)(d)
    old = bz2.compress(bytes(100), 9)
    data = f.read_bytes()
    i = data.index(old)
    new = bytearray(data[:i]+raw+data[i+len(old):])
    struct.pack_into('<I', new, 18, len(raw))
    j = new.index(b'PK\1\2')
    struct.pack_into('<I', new, j+20, len(raw))
    k = new.index(b'PK\5\6')
    struct.pack_into('<I', new, k+16, j)
    f.write_bytes(new)
    return f

def _many_members(d):
    "400,000 empty members, as a directory alone"
    d.mkdir()
    one = lambda i: struct.pack('<4s6H3I5H2I', b'PK\1\2', 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)+b'%08d' % i
    raw = b''.join(map(one, range(400_000)))
    (d/'x.zip').write_bytes(raw+struct.pack('<4s4H2IH', b'PK\5\6', 0, 0, 2**16-1, 2**16-1, len(raw), 0, 0))
    return d/'x.zip'

def _many_classes(d): return _zip(*((f'{part}/c{i}/x.png', b'') for part in ('train', 'test') for i in range(30_000)))(d)

def _isic(dic=None, names=None, json_text=None):
    def make(d):
        lists = d/'8-class'
        lists.mkdir(parents=True)
        for part in ('train', 'val', 'test'): np.save(lists/f'{part}_100.npy', np.array(['a.jpg']))
        if names: (lists/'train_100.npy').write_bytes(names)
        (lists/('dic.json' if json_text else 'dic.npy')).write_bytes(json_text or _head((), '|O')+dic)
        return d
    return make

class _Call:
    def __reduce__(self): return os.system, ('touch evil',)

_doubling = b'\x80\x02}('+b'K\1K\1\x86q\0'+b''.join(b'h%ch%c\x86q%c' % (i, i, i+1) for i in range(60))+b'K\1u.'

def _torch(d):
    _sparse(d/'cifar-10-batches-py/data_batch_1', 10**12)
    return d

folder,csv_,npz,isic = 'from_folder(p).check(workers=2, progress=False)','from_csv(p)','from_npz(p)','isic2019_lt(p)'
whole = 'not a whole array'

rows = { # trap: (what makes the file, what reads it, what is said: an error, or the result in words)
    # images
    'a header of 60,000 x 60,000 pixels': (_with(_png(60000, 60000, data=b'x')), folder, r'a/x\.png has 3,600,000,000 pixels, and 89,478,485 is'),
    'four PNGs of 169 million pixels at once': (_huge_pngs, folder, r'a/x0\.png \(.*13000x13000 pixels, and 89,478,485 is the limit.*a/x3\.png'),
    'a TIFF whose tile is larger than its picture': (_tiles, folder, r'a/x\.tif \(.* has tiles of 40000x20000 pixels, and'),
    'a WebP canvas of 16,383 x 16,383': (_webp, folder, r'a/x\.webp \('),
    'a GIF of 65,535 x 65,535': (_with(b'GIF89a\xff\xff\xff\xff\0\0\0,'+bytes(9)+b'\x02\0;', 'a/x.gif'), folder, r'a/x\.gif has 4,294,836,225 pixels, and'),
    'a PNG text chunk that unpacks to 100 MB': (_with(_png(4, 4, [(b'zTXt', b'a\0\0'+zlib.compress(bytes(10**8)))])), folder, r'a/x\.png \(ValueError: Decompressed data too large'),
    'a PNG colour profile that unpacks to 100 MB': (_with(_png(4, 4, [(b'iCCP', b'a\0\0'+zlib.compress(bytes(10**8)))])), folder, r'a/x\.png \(ValueError: Decompressed data too large'),
    'PostScript that is called .png': (_with(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n'), folder, r'a/x\.png \(UnidentifiedImageError'),
    'no pixels (0 x 5)': (_with(_png(0, 5)), folder, r'a/x\.png \(UnidentifiedImageError'),
    'cut off': (_with(_png(50, 50)[:60]), folder, r'a/x\.png \('),
    'empty': (_with(b''), folder, r'a/x\.png \(UnidentifiedImageError'),
    'a terabyte long': (lambda d: _sparse(_folder(d)/'a/x.png', 10**12).parents[1], folder, r'a/x\.png has 1,000,000,000,000 bytes, and 536,870,912 is the limit'),
    'gone since the folder was listed': (_folder, '(lambda s: (s.items[0].unlink(), s.check(progress=False)))(from_folder(p))', r'a/0\.png \(FileNotFoundError'),
    # names in folders
    'a pipe': (_pipe, folder, r'no files: .*a/x\.png \(a pipe\)\. Remove'),
    'a socket': (_socket, folder, r'a/x\.png \(a socket\)'),
    'a link to /dev/zero': (_link('/dev/zero'), folder, r'a/x\.png \(a device\)'),
    'a link to itself': (_link('x.png'), folder, r'a/x\.png \(OSError'),
    'a link to a folder above': (_link('/', 'a/up'), folder, 'OK 4 images, .*1 link to a folder above'),
    'twelve folders that link to each other': (_webbed, folder, 'OK 16 images, .*link to a folder that is there'),
    'folders 1,500 deep': (_deep, folder, 'OK 4 images'),
    'train/ is a link to a folder above': (_up, folder, r'Splits of .* that are links to a folder above: train/'),
    # CSV
    'three gigabytes in one line': (lambda d: _sparse(d/'t.csv', 3*10**9), csv_, r't\.csv has 3,000,000,000 bytes, and 268,435,456 is the limit'),
    'a line of two million characters': (_csv(['x'*2*10**6]), csv_, r'line 4 of .*t\.csv has 1,048,577 characters or more, and'),
    'a cell of 200,000 characters': (_csv([f'b/3.png,{"x"*2*10**5}']), csv_, r't\.csv has a cell of more than 131,072 characters in row 4: .*csv.field_size_limit'),
    '6,000 columns': (_csv([], 'image,label,'+','.join(f'c{i}' for i in range(6000))), csv_, r't\.csv has 6,002 columns, and 5,000 is the limit'),
    'gzip that is called .csv': (_csv(gzip.compress(bytes(10**6))), csv_, r't\.csv is not a UTF-8 text file'),
    'the CSV is a pipe': (_csv_pipe, 'read_images(p)', r"t\.csv' is a pipe; pass"),
    'a row names a pipe': (_csv(['a/pipe.png,a']), csv_, r'row 4 \(a/pipe\.png, which is a pipe\)'),
    'a row names a device': (_csv(['/dev/zero,a']), csv_, r'row 4 \(/dev/zero, which is a device\)'),
    'an image name of 5,000 characters': (_csv([f'{"x"*5000}.png,a']), csv_, r'missing below .*row 4 \(xxx'),
    'a group of 100,000 characters': (_csv([f'b/3.png,b,{"g"*10**5}'], 'image,label,patient'), "from_csv(fill(p), group_col='patient')", r'Groups of more than 500 characters: b/3\.png \(100000 characters\)'),
    # archives of arrays
    '300 MB of zeros in 300 kB': (_npz(train_images=(_head((3*10**5,10,100)), 3*10**8)), npz, r'x\.npz has .* bytes and would unpack to 300,.*268,435,456 is the limit'),
    'a directory that says 4 GB of a member of 300 bytes': (_npz(lie=_says_4_gb), npz, r'would unpack to 4,29|is not a whole'),
    'a shape that needs a terabyte': (_npz(train_images=_head((2**30,32,32))), npz, f'train_images.npy of x.npz is {whole}: uint8 of shape .* needs 1,099'),
    'an array header of 250 MB': (_npz(train_images=(b'\x93NUMPY\2\0'+struct.pack('<I', 2**28-100), 25*10**7)), npz, f'train_images.npy of x.npz is {whole}'),
    'images of floats, 240 MB of them': (_npz(train_images=(_head((3*10**6,2,5), '<f8'), 24*10**7)), npz, 'train_images of x.npz is float64'),
    'images without pixels': (_npz(train_images=_head((6,0,4))), npz, r'train_images of x.npz is uint8 of shape \(6, 0, 4\)'),
    'a negative shape': (_npz(train_images=_head((-6,4,-4))), npz, 'which is no array'),
    'the label 2^40': (_npz(train_labels=np.array([0,0,0,1,1,2**40])), npz, 'train_labels of x.npz holds the label 1099511627776'),
    'a label over 2^63': (_npz(train_labels=np.array([0,0,0,1,1,2**63+5], np.uint64)), npz, 'train_labels of x.npz holds the label 9223372036854775813'),
    'a label far above the number of images': (_npz(train_labels=np.array([0,0,0,1,1,60000])), npz, r'largest label of x.npz is 60000, and it has 6 images.*vocab='),
    'labels that are negative': (_npz(train_labels=labels-1), npz, 'holds the negative label -1'),
    'labels that are floats': (_npz(train_labels=labels/1), npz, 'train_labels of x.npz is float64'),
    'labels that are true and false': (_npz(train_labels=labels>0), npz, 'train_labels of x.npz is bool'),
    'arrays of Python objects': (_npz(train_labels=_head((6,), '|O')+pickle.dumps([_Call()]*6)), npz, 'train_labels of x.npz is object'),
    'Fortran order and another byte order': (_npz(train_images=np.asfortranarray(images), train_labels=labels.astype('>u2')), npz, 'OK 6 images'),
    # zips
    'a bzip2 member of 300 bytes that unpacks to 250 MB': (_bz2_bomb, 'cifar_lt(p)', r'packed otherwise than by deflate: train/cat/x\.png'),
    'an encrypted member': (_encrypted, 'cifar_lt(p)', r'x\.zip that are links, encrypted.*: train/cat/x\.png'),
    'a member that is a link': (_zip(('train/cat/x.png', b'/etc/passwd'), external_attr=0o120777<<16), 'cifar_lt(p)', r'x\.zip that are links.*: train/cat/x\.png'),
    'a member called ../x.png': (_zip(('train/cat/../x.png', b'')), 'cifar_lt(p)', r'point out of it: train/cat/\.\./x\.png'),
    '400,000 empty members': (_many_members, 'cifar_lt(p)', r'the directory of .*x\.zip has 21,600,000 bytes, and 16,777,216 is the limit'),
    '30,000 classes': (_many_classes, 'cifar_lt(p)', 'has 30000 classes; CIFAR has 10 or 100'),
    'a zip inside, called .png': (_zip(*((f'{s}/c{i}/x{i+j}.png', b'PK\3\4'+bytes(26)) for s in ('train', 'test') for i in range(10) for j in range(2))), "cifar_lt(p, ratio=None)", r'train/c0/x0\.png \(UnidentifiedImageError'),
    'pictures of 81 million pixels for 32 x 32': (_zip(*((f'{s}/c{i}/x.png', _png(9000, 9000, data=b'x')) for s in ('train', 'test') for i in range(10))), "cifar_lt(p, ratio=None)", r'train/c0/x\.png \(has 9000x9000 pixels\)'),
    # published lists
    'a pickle that runs a program': (_isic(pickle.dumps(_Call())), isic, 'dic.npy is none of the files that FlexSampling publishes'),
    'a pickle of a million nested lists': (_isic(b'\x80\2'+b']'*10**6+b'a'*(10**6-1)+b'.'), isic, 'dic.npy is none of the files'),
    'a pickle that holds itself': (_isic(b'\x80\2]q\0h\0a.'), isic, 'dic.npy is none of the files'),
    'a pickle of pairs that double sixty times': (_isic(_doubling), isic, 'dic.npy is none of the files'),
    'JSON of a million nested lists': (_isic(json_text=b'['*10**6), isic, 'dic.json is not a JSON object'),
    'a list of 2^40 names of no length': (_isic(json_text=b'{"a.jpg":0}', names=_head((2**40,), '<U0')), isic, r'train_100\.npy.*no array|train_100\.npy.*whole array'),
    'a batch of torchvision a terabyte long': (_torch, 'cifar_lt(p)', r'data_batch_1 has 1,000,000,000,000 bytes, and 268,435,456')}

_reader = '''
import json, os, resource, signal, sys, time, warnings
from pathlib import Path
import numpy as np
from balmix_fastai.datasets import from_csv, from_folder, from_npz, read_images
from balmix_fastai.layouts import cifar_lt, isic2019_lt
import torchvision.datasets

def fill(p):
    lines = p.read_text().splitlines()
    p.write_text('\\n'.join(l if l.count(',')==2 else l+',g' for l in lines))
    return p

def read(p, how):
    "What a reader says, within limits of memory and time"
    used = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used+200*2**20,)*2)
    signal.alarm(10)
    warnings.simplefilter('ignore')
    try:
        res = eval(how, globals(), dict(p=Path(p)))
        return f'OK {len(res)} images, {res!r}'
    except ValueError as e: return str(e)
    except BaseException as e: return f'not a ValueError but {type(e).__name__}: {e}'

for row,(p,how) in json.load(open(sys.argv[1])).items():
    start,(r,w) = time.time(),os.pipe()
    if not (child := os.fork()):
        with open(w, 'w') as f: f.write(read(p, how))
        os._exit(0)
    os.close(w)
    with open(r) as f: said = f.read()
    status = os.waitpid(child, 0)[1]
    print(json.dumps([row, said if not status else f'ended by {status}', time.time()-start]), flush=True)
'''

@pytest.fixture(scope='module')
def said(tmp_path_factory):
    "What is said of each row, and the seconds it took"
    root = tmp_path_factory.mktemp('traps')
    jobs = {row: (str(make(root/str(i))), how) for i,(row,(make,how,_)) in enumerate(rows.items())}
    (root/'jobs.json').write_text(json.dumps(jobs))
    (root/'bin').mkdir()
    gs = root/'bin/gs'
    gs.write_text(f'#!/bin/sh\ntouch {root}/ran\n')
    gs.chmod(0o755)
    env = dict(os.environ, PATH=f"{root/'bin'}:{os.environ['PATH']}", MALLOC_ARENA_MAX='1', OMP_NUM_THREADS='1')
    res = subprocess.run([sys.executable, '-c', _reader, root/'jobs.json'], env=env, cwd=root, capture_output=True, text=True, timeout=400)
    out = {k: (text, secs) for k,text,secs in map(json.loads, res.stdout.splitlines())}
    assert len(out)==len(rows), res.stderr[-2000:]
    assert not (root/'ran').exists() and not (root/'evil').exists()
    yield out
    subprocess.run(['rm', '-rf', root]) # pytest gives up on folders 1,500 deep

@pytest.mark.parametrize('row', rows)
def test_traps(said, row):
    text,secs = said[row]
    assert re.search(rows[row][2], text.replace('\n', ' ')), text[:600]
    assert text.startswith('OK') or '\n' not in text
    assert secs<5 and len(text)<3000

def test_the_table_has_these_rows():
    nb = json.loads((Path(__file__).parents[1]/'nbs/datasets.ipynb').read_text(encoding='utf-8'))
    text = next(t for c in nb['cells'] if '| file | damage or trap |' in (t := ''.join(c['source'])))
    assert [l.split('|')[2].strip() for l in text.splitlines() if l.startswith('|')][2:]==list(rows)

# Limits

@pytest.fixture
def few_pixels(monkeypatch):
    "At most 100 pixels by the environment; what is set on `limits` is forgotten afterwards"
    monkeypatch.setenv('BALMIX_PIXELS', '1e2')
    yield
    vars(limits).clear()

def test_limits_are_raised(tmp_path, few_pixels):
    _pic(tmp_path/'x.png', side=11)
    for read in (lambda **kw: open_image(tmp_path/'x.png', **kw), lambda **kw: open_image((tmp_path/'x.png').read_bytes(), **kw),
        lambda **kw: OpenImage()(tmp_path/'x.png')):
        with pytest.raises(OverLimit, match=r'11x11 pixels, and 100 is the limit.*limits.pixels.*BALMIX_PIXELS'): read()
    assert open_image(tmp_path/'x.png', max_pixels=121).size==(11,11)
    early = OpenImage()
    limits.pixels = 121
    assert early(tmp_path/'x.png').size==OpenImage()(tmp_path/'x.png').size==(11,11)
    late = pickle.loads(pickle.dumps(OpenImage())) # as in a process that is started afresh, where nothing was set
    limits.pixels = 5
    assert late(tmp_path/'x.png').size==(11,11)
    assert late.__dict__.pop('max_pixels')==121
    with pytest.raises(OverLimit, match='and 5 is the limit'): late(tmp_path/'x.png') # exported by 0.1.0

def test_pillow_s_own_limit_is_raised_along(tmp_path, few_pixels, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 50) # an error from 101 on
    _pic(tmp_path/'x.png', side=11)
    with pytest.raises(OverLimit, match='has 121 pixels, and 100 is'): open_image(tmp_path/'x.png')
    assert Image.MAX_IMAGE_PIXELS==50
    limits.pixels = 1e8
    assert open_image(tmp_path/'x.png').size==(11,11)

@pytest.mark.parametrize('value', ['many', 0, -1, float('nan'), float('inf'), None])
def test_limits_that_are_none(tmp_path, monkeypatch, value):
    with pytest.raises(ValueError, match='limits.columns=.* must be a number, 1 or more'): limits.columns = value
    monkeypatch.setenv('BALMIX_PIXELS', str(value))
    _pic(tmp_path/'x.png')
    with pytest.raises(ValueError, match='BALMIX_PIXELS=.* must be a number, 1 or more'): open_image(tmp_path/'x.png')
    with pytest.raises(AttributeError, match="no 'pixel'; it has pixels, "): limits.pixel = 9

def test_each_limit_is_the_one_that_counts(tmp_path, monkeypatch):
    "What is refused by a lower limit is read without it"
    lists,arrays = (_csv([]), from_csv),(_npz(), from_npz)
    cases = dict(image_bytes=(_folder, from_folder(_folder(tmp_path/'f')).check), list_bytes=lists, line_chars=lists, columns=lists,
        array_bytes=arrays, directory=arrays)
    for name,(make,read) in cases.items():
        p = make(tmp_path/name)
        args = {} if name=='image_bytes' else dict(path=p) if read is from_npz else dict(csv=p)
        read(**args)
        monkeypatch.setenv(f'BALMIX_{name.upper()}', '1')
        with pytest.raises(ValueError, match=f'and 1 is the limit.*BALMIX_{name.upper()}'): read(**args)
        monkeypatch.delenv(f'BALMIX_{name.upper()}')

def test_at_most_so_many_pixels_at_once(tmp_path, monkeypatch):
    "However many threads read: of images of 64 pixels, one fits into 100, three into 200, all into 10,000"
    for i in range(12): _pic(tmp_path/f'{"ab"[i%2]}/{i}.png', i)
    ims,now,most = from_folder(tmp_path),[],[]
    check = data._mode_error
    def slow(im, window):
        now.append(id(im))
        time.sleep(.02)
        most.append(len(now))
        now.remove(id(im))
        return check(im, window)
    monkeypatch.setattr(data, '_mode_error', slow)
    for pixels,n in ((100, 1), (200, 3), (10_000, 8)):
        monkeypatch.setenv('BALMIX_PIXELS', str(pixels))
        most.clear()
        ims.check(workers=8, progress=False)
        assert len(most)==12 and (max(most)==n if n<8 else max(most)>3)

@pytest.mark.parametrize('use', ['check', 'describe', 'dataloaders', 'open_image'])
@pytest.mark.parametrize('what', ['pipe', 'device', 'folder'])
def test_paths_that_are_no_files(tmp_path, use, what):
    ims = from_folder(_folder(tmp_path/'d')).with_parts(train=[0,2], valid=[1,3])
    ims.items[0].unlink()
    dict(pipe=os.mkfifo, device=lambda p: p.symlink_to('/dev/zero'), folder=os.mkdir)[what](ims.items[0])
    uses = dict(check=lambda: ims.check(progress=False), describe=ims.describe, dataloaders=lambda: ims.dataloaders(bs=2, device='cpu').one_batch(),
        open_image=lambda: open_image(str(ims.items[0])))
    with pytest.raises(ValueError, match=rf'a/0\.png is a {what}, not a file'): uses[use]()

@pytest.mark.parametrize('suffix', ['npz', 'zip'])
def test_archives_of_every_damage(tmp_path, suffix):
    "Flipped bytes and cuts anywhere: read, or a ValueError"
    rng = np.random.default_rng(0)
    files = [(f'{s}/c{i}/{j}.png', i) for s in ('train', 'test') for i in range(10) for j in range(1)]
    _pic(tmp_path/'i.png', side=32)
    whole = _npz()(tmp_path/'n') if suffix=='npz' else _zip(*((n, (tmp_path/'i.png').read_bytes()) for n,_ in files))(tmp_path/'z')
    read = from_npz if suffix=='npz' else lambda p: cifar_lt(p, ratio=None, differ='ignore')
    raw = whole.read_bytes()
    read(whole)
    for i in range(150):
        new = bytearray(raw)
        if i<20: del new[int(rng.integers(len(raw))):]
        else:
            for j in rng.integers(len(raw), size=3): new[j] = rng.integers(256)
        whole.write_bytes(new)
        try: read(whole)
        except ValueError: pass

# Growth

def _many(n, classes, groups, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.tile(np.arange(classes), 2), np.minimum(rng.geometric(.01, n-2*classes)-1, classes-1)])
    return ImageSet([np.zeros((1,1), np.uint8)]*n, labels, range(classes), groups=rng.integers(0, groups, n))

@pytest.mark.parametrize('n,classes,groups', [(20_000, 400, 10_000), (4000, 40, 3000), (4000, 30, 4000)])
def test_folds_of_many_groups_and_classes(n, classes, groups):
    ims = _many(n, classes, groups)
    start = time.time()
    folds = ims.folds(5, seed=1)
    assert time.time()-start<20 # scikit-learn takes minutes for the first
    assert sorted(i for f in folds for i in f.splits['valid'])==list(range(n))
    assert not any(f.shared_groups() for f in folds)
    sizes,counts = [len(f.splits['valid']) for f in folds],np.array([f.counts('valid') for f in folds])
    assert max(sizes)-min(sizes)<=.002*n and (abs(counts-ims.counts()/5)<=4+.05*ims.counts()).all()
    same,other = ims.folds(5, seed=1),ims.folds(5, seed=2)
    assert all((a.splits['valid']==b.splits['valid']).all() for a,b in zip(folds, same)) and (folds[0].splits['valid'].tolist()!=other[0].splits['valid'].tolist())

def test_folds_of_small_sets_are_those_of_scikit_learn():
    from sklearn.model_selection import StratifiedGroupKFold
    ims = _many(2000, 20, 900)
    cuts = StratifiedGroupKFold(5, shuffle=True, random_state=3).split(ims.labels, ims.labels, ims.groups)
    for f,(_,valid) in zip(ims.folds(5, seed=3), cuts): assert (f.splits['valid']==valid).all()

def test_large_folds_are_as_even_as_scikit_learn_s():
    from sklearn.model_selection import StratifiedGroupKFold
    off = dict(own=[], theirs=[])
    for seed in range(3):
        ims = _many(3000, 60, 2500, seed) # 2,500 x 60 is over the 100,000 of scikit-learn's way
        cuts = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(ims.labels, ims.labels, ims.groups)
        for k,parts in dict(own=[f.splits['valid'] for f in ims.folds(5, seed=seed)], theirs=[v for _,v in cuts]).items():
            counts = np.array([np.bincount(ims.labels[v], minlength=60) for v in parts])
            off[k].append((counts.std(0)/ims.counts()).mean())
    assert np.mean(off['own'])<=1.05*np.mean(off['theirs'])

def test_folders_of_many_classes(tmp_path):
    _pic(tmp_path/'x.png')
    for i in range(4000):
        (tmp_path/f'd/c{i}').mkdir(parents=True)
        os.link(tmp_path/'x.png', tmp_path/f'd/c{i}/x.png')
    start = time.time()
    ims = from_folder(tmp_path/'d')
    assert time.time()-start<5 and ims.vocab==[f'c{i}' for i in range(4000)] and (ims.labels==[ims.vocab.index(n.split('/')[0]) for n in ims.names]).all()
