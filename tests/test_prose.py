"Numbers and verdicts that pages name are those of the tables of the studies."
import functools, json, re
from pathlib import Path
import numpy as np, pytest
from balmix_fastai.tables import StudyResults

nbs = Path(__file__).resolve().parents[1]/'nbs'
GRADES,METHODS,FLEXIBLE,POOL = 'retinamnist','retinamnist_methods','retinamnist_flexible','retinamnist_pool'
DIGITS,CIFAR,CIFAR_METHODS,CIFAR_FLEXIBLE = 'digits_methods','cifar10_lt_short','cifar10_lt_methods_short','cifar10_lt_flexible_short'
KAPPA,MCC,TAU,BALANCED,AUC,NLL = 'quadratic_kappa','mcc','kendall_tau','balanced_accuracy','macro_auroc','nll'
ECE,CLASSWISE,ACCURACY,F1,FEW = 'ece','classwise_ece','accuracy','macro_f1','few'
mixed = [f'Balanced-MixUp .{i}' for i in (1,2,3)]
prior_out = ['balanced softmax','logit adjustment','cRT','MiSLAS','Balanced-MixUp .2 + logit adjustment']
finders = ['logit adjustment','cRT','MiSLAS']
mixers = ['MixUp','ReMix','MAMix','UniMix','CMO','on features']
samplers = ['class-balanced','power of counts','effective number','progressive','deferred','class-balanced loss','deferred weights']

class Facts:
    "What the tables of a study say, in points or, of nll and brier, raw"
    def __init__(self, name):
        self.s = StudyResults.load(nbs/'results'/name)
        self.ref,self.arms = self.s.meta['reference'],self.s.arms[1:]
        self.pairs = self.s.pairs.set_index(['metric','a','b']).sort_index()
        for k in ('low','high','smallest'): self.pairs[k] = self.pairs[k].astype(float)
    def scale(self, k): return 1 if k in ('nll','brier') else 100
    def of(self, a, k, b=None): return self.pairs.loc[(k, a, b or self.ref)]
    def versus(self, k): return self.pairs.xs((k, self.ref), level=('metric','b'))
    def d(self, a, k, b=None): return self.of(a, k, b)['diff']*self.scale(k)
    def low(self, a, k, b=None): return self.of(a, k, b).low*self.scale(k)
    def high(self, a, k, b=None): return self.of(a, k, b).high*self.scale(k)
    def ends(self, a, k, b=None): return [self.low(a, k, b), self.high(a, k, b)]
    def diff(self, a, k, b=None): return [self.d(a, k, b), *self.ends(a, k, b)]
    def loss(self, a, k): return [-self.d(a, k), *self.ends(a, k)]
    def half(self, a, k): return (self.high(a, k)-self.low(a, k))/2
    def p(self, a, k, b=None): return self.of(a, k, b).p
    def holm(self, a, k): return self.of(a, k).p_holm
    def least(self, a, k): return self.of(a, k).smallest*self.scale(k)
    def smallest(self, k): return self.versus(k).smallest.median()*self.scale(k)
    def mean(self, a, k): return self.s.summary.loc[a, (k,'mean')]*self.scale(k)
    def sd(self, a, k): return self.s.summary.loc[a, (k,'sd')]*self.scale(k)
    def below(self, a, k): return self.mean(a, k)-self.s.summary.loc[a, (k,'low')]*self.scale(k)
    def recall(self, a, c): return np.round(self.s.recalls.query('arm==@a')[c].mean(), 2)
    def gains(self, k, *arms): return [self.d(a, k) for a in arms]
    def losses(self, k, *arms): return [-self.d(a, k) for a in arms]
    def means(self, k, *arms): return [self.mean(a, k) for a in arms]
    def holms(self, k, *arms): return [self.holm(a, k) for a in arms]
    def recalls(self, c, *arms): return [self.recall(a, c) for a in arms]
    def span(self, what, arms, k, sign=1):
        v = [sign*getattr(self, what)(a, k) for a in arms]
        return [min(v), max(v)]
    def over(self, what, k): return self.span(dict(sds='sd').get(what, what), self.arms if what=='half' else self.s.arms, k)

@functools.lru_cache(None)
def facts(name): return Facts(name)

# For each page: phrases that stand on it once, and the numbers that follow each; `None` for one that is not of the tables

def of_grades():
    grades = facts(GRADES)
    yield 'differences are ', [*grades.gains(KAPPA, *mixed), None, None, grades.low('Balanced-MixUp .3', KAPPA),
        grades.high('Balanced-MixUp .1', KAPPA)]
    yield 'which is ', grades.diff('Balanced-MixUp .1', MCC)
    yield 'Macro AUC is ', [-grades.d('Balanced-MixUp .3', AUC), grades.p('Balanced-MixUp .3', AUC), grades.holm('Balanced-MixUp .3', AUC)]
    yield 'This study finds a difference of ', [grades.smallest(KAPPA), grades.smallest(MCC), grades.smallest(BALANCED),
        grades.smallest(AUC)]
    yield '$\\alpha=.3$ is ', [-grades.d('Balanced-MixUp .3', KAPPA, 'Balanced-MixUp .1'), None, *grades.ends('Balanced-MixUp .3', KAPPA,
        'Balanced-MixUp .1'), grades.p('Balanced-MixUp .3', KAPPA, 'Balanced-MixUp .1')]
    yield 'trade.** It has ', [*grades.loss('class-balanced', ACCURACY), grades.recall('class-balanced', '4')]
    yield 'Its MCC is ', [*grades.loss('class-balanced', MCC), *grades.diff('class-balanced', BALANCED), *grades.diff('class-balanced',
        TAU), *grades.diff('class-balanced', KAPPA)]
    yield 'loss has ', [-grades.d('class-balanced loss', ACCURACY), None, grades.recall('class-balanced loss', '4')]
    yield 'mean reaches ', grades.over('below', KAPPA)
    yield 'difference reaches ', [*grades.over('half', KAPPA), *grades.over('half', BALANCED)]
    yield 'deviation of ', grades.over('sds', KAPPA)
    yield 'class-balanced sampling (', grades.gains(NLL, 'class-balanced', 'class-balanced loss')
    yield 'square-root sampling (', grades.gains(NLL, 'sqrt', 'focal', 'Balanced-MixUp .3')
    yield '$\\alpha$ it is ', [*grades.gains(NLL, 'Balanced-MixUp .1', 'Balanced-MixUp .2'), grades.smallest(NLL)]
    yield 'training by ', [max(grades.d(a, ECE) for a in grades.arms if a!='focal'), grades.d('focal', ECE)]
    yield 'rises by ', grades.gains(CLASSWISE, 'class-balanced', 'class-balanced loss')

def of_methods():
    methods = facts(METHODS)
    yield 'MiSLAS lose ', methods.losses(KAPPA, 'balanced softmax', 'logit adjustment', 'MiSLAS', 'Balanced-MixUp .2 + logit adjustment')
    yield 're-training (', methods.diff('cRT', KAPPA)
    yield 'likelihood (by ', [*methods.span('d', prior_out, NLL), *methods.span('d', prior_out, ACCURACY, sign=-1)]
    yield 'of them (', [*methods.span('d', prior_out, BALANCED), methods.smallest(BALANCED)]
    yield 'for plain training, and ', methods.recalls('4', 'logit adjustment', 'cRT', 'MiSLAS')
    yield 'recalls of ', [methods.recall('instance', '2'), methods.recall('instance', '3'), *methods.span('recall', finders, '2'),
        *methods.span('recall', finders, '3')]
    yield 'validation (', [*methods.diff('cut points', KAPPA), *methods.diff('cost-sensitive', KAPPA), *methods.diff('SORD', KAPPA),
        *methods.diff('Balanced-MixUp .2 + SORD', KAPPA)]
    yield 'difference of ', [methods.smallest(KAPPA)]
    yield '$\\tau$ the cost-sensitive term (', methods.gains(TAU, 'cost-sensitive', 'calibrated', 'cut points')
    yield 'with SORD (', methods.gains(NLL, 'SORD', 'cost-sensitive')
    yield 'errors are ', methods.gains(ECE, 'SORD', 'cost-sensitive')
    yield 'log-likelihood is ', [methods.mean('kappa loss', NLL), -methods.d('kappa loss', AUC)]
    yield 'plain training (', methods.diff('kappa loss', KAPPA)
    yield 'log-likelihood by ', [*methods.diff('calibrated', NLL), methods.d('calibrated', KAPPA), methods.d('calibrated', TAU)]
    yield 'likelihood it is ', [*methods.diff('Balanced-MixUp .2', NLL), methods.d('Balanced-MixUp .2 + DRW', NLL)]
    yield 'reaches ', [*methods.over('below', KAPPA), *methods.over('half', KAPPA), *methods.over('sds', KAPPA)]

def of_digits():
    digits = facts(DIGITS)
    yield 'Balanced softmax (', digits.gains(BALANCED, 'balanced softmax', 'logit adjustment', 'bias-corrected temperature')
    yield 'a difference of ', [digits.smallest(BALANCED)]
    yield 'balanced softmax (', digits.gains(NLL, 'balanced softmax', 'logit adjustment', 'bias-corrected temperature')
    yield 'images is ', digits.gains(FEW, 'balanced softmax', 'logit adjustment', 'bias-corrected temperature')
    yield 'weights it has ', [*digits.diff('Balanced-MixUp + deferred weights', BALANCED), *digits.diff('on features', BALANCED)]
    yield 'softmax it has ', [*digits.diff('Balanced-MixUp + balanced softmax', BALANCED), *digits.diff('Balanced-MixUp', BALANCED),
        *digits.holms(BALANCED, 'Balanced-MixUp + balanced softmax', 'Balanced-MixUp')]
    yield 'of all (', digits.means(NLL, 'Balanced-MixUp + balanced softmax', 'Balanced-MixUp + deferred weights', 'instance')
    yield 'calibration error, ', digits.means(ECE, 'Balanced-MixUp', 'instance')
    yield 'mixer, by ', digits.span('d', mixers, ECE)
    yield 'smoothing,** ', digits.diff('label-aware smoothing', BALANCED)
    yield 'of all, ', [digits.mean('label-aware smoothing', ECE)]
    yield 'mean have ', digits.means(ECE, 'MiSLAS', 'nearest class mean')
    yield 'training by ', [*digits.span('d', samplers, BALANCED), min(digits.low(a, BALANCED) for a in samplers), max(digits.high(a,
        BALANCED) for a in samplers)]
    yield 'A difference of ', digits.span('least', samplers, BALANCED)
    yield 'scaling loss (', digits.gains(BALANCED, 'vector scaling', 'MixUp', 'focal')
    yield 'overconfidence (', digits.gains(NLL, 'LDAM', 'influence-balanced')
    yield 'log-likelihood is ', [digits.d('vector scaling afterwards', NLL), digits.sd('vector scaling afterwards', NLL)]
    yield 'reaches ', digits.over('below', BALANCED)

def of_flexible():
    flexible,cifar_flexible = facts(FLEXIBLE),facts(CIFAR_FLEXIBLE)
    yield 'difference of ', [flexible.smallest(KAPPA), flexible.smallest(BALANCED), flexible.smallest(MCC)]
    yield 'method has ', [*flexible.loss('Flexible Sampling', KAPPA), *flexible.loss('Flexible without pre-training', KAPPA),
        *flexible.loss('Flexible + Balanced-MixUp .2', KAPPA)]
    yield 'than that of plain training (', [flexible.d('Flexible Sampling', NLL), flexible.holm('Flexible Sampling', NLL),
        *flexible.gains(NLL, 'Flexible without pre-training', 'class-aware', 'difficulty', 'LDAM-DRW')]
    yield 'grade 4 is ', flexible.recalls('4', 'Flexible Sampling', 'Flexible + Balanced-MixUp .2')
    yield 'sampling has ', flexible.recalls('4', 'class-aware', 'difficulty')
    yield 'kappa is not told apart from that of plain training (', [*flexible.diff('class-aware', KAPPA), *flexible.diff('difficulty',
        KAPPA)]
    yield 'pays with ', [-flexible.d('class-aware', ACCURACY), flexible.holm('class-aware', ACCURACY)]
    yield 'training** (', flexible.diff('pre-training alone', KAPPA)
    yield 'sampling** (', flexible.diff('difficulty', KAPPA, 'class-aware')
    yield 'accuracy is not told apart from that of plain training (', [*cifar_flexible.diff('Flexible Sampling', ACCURACY),
        cifar_flexible.smallest(ACCURACY)]
    yield 'higher (', [*cifar_flexible.diff('Flexible Sampling', F1), *cifar_flexible.diff('Flexible Sampling', AUC)]
    yield 'is lower (', cifar_flexible.diff('Flexible Sampling', MCC)
    yield 'recalls of ', [cifar_flexible.recall('Flexible Sampling', 'ship'), cifar_flexible.recall('Flexible Sampling', 'truck')]
    yield 'accuracy:** class-aware sampling ', cifar_flexible.gains(ACCURACY, 'class-aware', 'LDAM-DRW', 'CB-focal')
    yield 'apart** (', [*cifar_flexible.diff('Balanced-MixUp .2', ACCURACY), *cifar_flexible.diff('Flexible + Balanced-MixUp .2', ACCURACY)]
    yield 'log-likelihood is ', cifar_flexible.means(NLL, 'Balanced-MixUp .2', 'instance')
    yield 'MixUp has ', [-cifar_flexible.d('MixUp .2', ACCURACY), cifar_flexible.holm('MixUp .2', ACCURACY)]

def of_cifar():
    cifar = facts(CIFAR)
    yield 'reaches ', [cifar.mean('instance', ACCURACY)]
    yield 'sampling has ', [*cifar.diff('class-balanced', ACCURACY), *cifar.diff('sqrt', ACCURACY), *cifar.diff('class-balanced loss',
        ACCURACY)]
    yield 'differences are ', [*cifar.gains(ACCURACY, *mixed), *(cifar.half(a, ACCURACY) for a in mixed)]
    yield 'has a recall of ', cifar.recalls('horse', 'instance', *mixed)
    yield 'falls by ', cifar.losses(NLL, *mixed)
    yield 'test, is ', cifar.losses(ECE, 'Balanced-MixUp .1', 'Balanced-MixUp .3')
    yield 'likelihood (', [-cifar.d('class-balanced', NLL)]
    yield 'training:** ', [*cifar.loss('MixUp 1', ACCURACY), cifar.holm('MixUp 1', ACCURACY)]
    yield 'is worse (', [cifar.d('MixUp 1', NLL)]
    yield 'difference of ', [cifar.smallest(ACCURACY), None, max(cifar.least(a, ACCURACY) for a in mixed), cifar.sd('Balanced-MixUp .3',
        ACCURACY), cifar.sd('class-balanced', ACCURACY)]
    yield 'class-balanced loss (', cifar.holms(ACCURACY, 'class-balanced loss', 'sqrt')

def of_pool():
    pool = facts(POOL)
    yield 'differs by ', [pool.d('pool of all', KAPPA), None, *pool.ends('pool of all', KAPPA), *pool.diff('pool of a tenth', KAPPA)]
    yield 'difference of ', [pool.smallest(KAPPA), None, -pool.low('pool of all', KAPPA)]
    yield 'errors, by ', pool.losses(ECE, 'pool of all', 'pool of a tenth')

def of_map():
    digits,methods = facts(DIGITS),facts(METHODS)
    yield 'digits](results.digits_methods.html), where plain training has ', [digits.mean('instance', BALANCED), digits.sd('instance',
        BALANCED)]
    yield '[RetinaMNIST](results.retinamnist_methods.html), where plain training has ', [methods.mean('instance', KAPPA),
        methods.sd('instance', KAPPA)]
    yield 'difference of ', [digits.smallest(BALANCED)]
    yield 'grades finds ', [methods.smallest(KAPPA)]

def of_howto():
    methods,cifar_methods,digits,cifar,grades,pool = map(facts, (METHODS, CIFAR_METHODS, DIGITS, CIFAR, GRADES, POOL))
    yield 'MiSLAS lose ', methods.losses(KAPPA, 'balanced softmax', 'logit adjustment', 'MiSLAS')
    yield 'they gain ', cifar_methods.gains(ACCURACY, 'balanced softmax', 'logit adjustment', 'MiSLAS')
    yield 'they are ', digits.gains(BALANCED, 'balanced softmax', 'logit adjustment', 'MiSLAS')
    yield 'correction up to ', [max(cifar_methods.holm(a,
        ACCURACY) for a in ('Balanced-MixUp .2 + DRW','Balanced-MixUp .2 + balanced softmax'))]
    yield 'accuracy on CIFAR-10-LT (', [cifar.d('class-balanced', ACCURACY)]
    yield 'RetinaMNIST it is not told apart (', grades.diff('class-balanced', BALANCED)
    yield 'it on digits (', digits.diff('class-balanced', BALANCED)
    yield 'they pay ', [-grades.d('class-balanced', ACCURACY), -methods.d('cRT', ACCURACY), -methods.d('logit adjustment', ACCURACY)]
    yield 'sampling is seen (', digits.diff('class-balanced', FEW)
    yield 'correction: ', digits.gains(FEW, 'balanced softmax', 'logit adjustment', 'Balanced-MixUp + deferred weights',
        'Balanced-MixUp + balanced softmax')
    yield 'sampling gain ', [*cifar.gains(ACCURACY, 'sqrt', 'class-balanced'), -cifar.d('MixUp 1', ACCURACY), cifar.holm('MixUp 1',
        ACCURACY)]
    yield 'the study finds a difference of ', [digits.smallest(BALANCED)]
    yield 'adjustment (', methods.gains(NLL, 'logit adjustment', 'balanced softmax', 'cRT', 'LDAM-DRW')
    yield 'sampling (', [grades.d('class-balanced', NLL)]
    yield 'likelihood on CIFAR-10-LT (', [cifar_methods.d('Balanced-MixUp .2', NLL)]
    yield 'digits it is not told apart (', [*digits.diff('Balanced-MixUp', NLL), digits.d('Balanced-MixUp', ECE)]
    yield 'likelihoods (', digits.diff('bias-corrected temperature', NLL)
    yield '(RetinaMNIST) it is ', methods.diff('calibrated', NLL)
    yield 'of plain training on digits (', [digits.d('LDAM', NLL)]
    yield 'RetinaMNIST (', [methods.d('LDAM-DRW', NLL)]
    yield 'points (', methods.gains(KAPPA, 'cut points', 'cost-sensitive')
    yield 'The study finds a difference of ', [methods.smallest(KAPPA)]
    yield 'in kappa (', methods.diff('kappa loss', KAPPA)
    yield 'in training: ', digits.gains(BALANCED, 'logit adjustment', 'balanced softmax')
    yield 'on digits, ', cifar_methods.gains(BALANCED, 'logit adjustment', 'balanced softmax')
    yield 'validation images: ', digits.gains(BALANCED, 'vector scaling afterwards', 'class offsets')
    yield 'scaling is ', digits.diff('vector scaling afterwards', NLL)
    yield 'accuracy (', [*methods.diff('logit adjustment', BALANCED), -methods.d('logit adjustment', KAPPA)]
    yield '341 digits it is ', digits.diff('Balanced-MixUp', BALANCED)
    yield 'gain is seen (', [*methods.diff('Balanced-MixUp .2', BALANCED), *cifar_methods.diff('Balanced-MixUp .2', BALANCED)]
    yield 'from plain training on digits (', digits.diff('Balanced-MixUp + deferred weights', BALANCED)
    yield 'leaves, it has ', [*digits.diff('Balanced-MixUp + balanced softmax', BALANCED, 'balanced softmax'),
        digits.p('Balanced-MixUp + balanced softmax', BALANCED, 'balanced softmax')]
    yield 'find a difference of ', [pool.smallest(KAPPA)]

claims = {'results.retinamnist': of_grades, 'results.retinamnist_methods': of_methods, 'results.digits_methods': of_digits, 'results.flexible': of_flexible,
    'results.cifar10_lt': of_cifar, 'results.bench': of_pool, 'map': of_map, 'howto.method': of_howto}

# Numbers with a decimal point that are not of these tables, beside those of claims: alphas, sizes, published numbers
others = {
    'results.retinamnist': '.1 .2 .3', 'results.retinamnist_methods': '-1.8 -2.8 -9.0 .0 .5', 'results.digits_methods': '.3', 'results.flexible': '.2 .01 .05',
    'results.cifar10_lt': '82.1 .1 .2 .3 .01 .05', 'results.cifar10_lt_methods': '77.5 78.2 79.8 81.8 82.1 82.3 82.5 3.7 .01 .05', 'map': '53.8 2.0', 'howto.method': '.2 .65 .25'}

number = re.compile(r'(?<![\w.-])[-+]?(?:\d+(?:,\d{3})+|\d*\.\d+|\d+)(?!\w|\.\d|-\w)')

def cells(page): return json.loads((nbs/f'{page}.ipynb').read_text(encoding='utf-8'))['cells']
def prose(page): return '\n\n'.join(''.join(o['source']) for o in cells(page) if o['cell_type']=='markdown')

def plain(text):
    "The text with blanks in place of code, formulas, links, rows of tables, and names of arms that hold a number"
    for p in (r'```.*?```', r'`[^`\n]*`', r'\$[^$\n]*\$', r'\]\([^)]*\)', r'^\|.*?$', r'MixUp \.\d'):
        text = re.sub(p, lambda m: ' '*len(m[0]), text, flags=re.S|re.M)
    return text

def shown(printed, value):
    "Is the number that is printed the value, rounded to as many digits?"
    return float(printed.replace(',', ''))==float(f"{value:.{len(printed.partition('.')[2])}f}") and (printed[0]!='+' or value>0)

@pytest.mark.parametrize('page', claims)
def test_numbers_are_those_of_the_tables(page):
    text = prose(page)
    nums = list(number.finditer(plain(text)))
    for phrase,values in claims[page]():
        assert text.count(phrase)==1, f"{page} has {phrase!r} {text.count(phrase)} times"
        begin = text.index(phrase)+len(phrase)
        after = [o[0] for o in nums if o.start()>=begin][:len(values)]
        wrong = [f'{n} is {v:.4f}' for n,v in zip(after, values) if v is not None and not shown(n, v)]
        assert len(after)==len(values) and not wrong, f"{page}, after {phrase!r}: {'; '.join(wrong)}"

@pytest.mark.parametrize('page', others)
def test_no_number_is_without_a_table(page):
    text = prose(page)
    nums,named = list(number.finditer(plain(text))),set()
    for phrase,values in claims.get(page, list)(): named |= set([o for o in nums if o.start()>=text.index(phrase)+len(phrase)][:len(values)])
    assert {o[0] for o in nums if o not in named and '.' in o[0]}<=set(others[page].split())

# What pages call told apart after correction: all arms for which it is so in a metric
apart = '''
retinamnist quadratic_kappa: none
retinamnist mcc: none
retinamnist kendall_tau: none
retinamnist balanced_accuracy: none
retinamnist macro_auroc: none
retinamnist accuracy: class-balanced, class-balanced loss
retinamnist nll: class-balanced, class-balanced loss
retinamnist medium: class-balanced
retinamnist_methods quadratic_kappa: balanced softmax, logit adjustment, MiSLAS, Balanced-MixUp .2 + logit adjustment
retinamnist_methods mcc: MiSLAS
retinamnist_methods kendall_tau: none
retinamnist_methods balanced_accuracy: none
retinamnist_methods macro_auroc: kappa loss
retinamnist_methods medium: logit adjustment, cRT, MiSLAS
retinamnist_methods accuracy: balanced softmax, logit adjustment, cRT, MiSLAS, Balanced-MixUp .2 + logit adjustment
retinamnist_methods nll: balanced softmax, logit adjustment, cRT, MiSLAS, Balanced-MixUp .2 + logit adjustment, LDAM-DRW
retinamnist_methods nll: cost-sensitive, SORD, kappa loss, Balanced-MixUp .2 + balanced softmax, Balanced-MixUp .2 + SORD
retinamnist_flexible quadratic_kappa: none
retinamnist_flexible balanced_accuracy: none
retinamnist_flexible mcc: none
retinamnist_flexible macro_auroc: none
retinamnist_flexible accuracy: class-aware
retinamnist_flexible medium: class-aware
retinamnist_flexible nll: class-aware, LDAM-DRW, Flexible without pre-training, Flexible Sampling, difficulty
digits_methods balanced_accuracy: label-aware smoothing, on features, Balanced-MixUp + deferred weights
digits_methods nll: balanced softmax, LDAM, influence-balanced, logit adjustment, tau of logit adjustment
cifar10_lt_short accuracy: class-balanced, sqrt, class-balanced loss
cifar10_lt_short nll: class-balanced, sqrt, focal, class-balanced loss, MixUp 1, Balanced-MixUp .1, Balanced-MixUp .2
cifar10_lt_short nll: Balanced-MixUp .3
cifar10_lt_flexible_short accuracy: class-aware, CB-focal, LDAM-DRW, MixUp .2
cifar10_lt_flexible_short macro_f1: class-aware, CB-focal, LDAM-DRW, Flexible Sampling
cifar10_lt_flexible_short mcc: class-aware, CB-focal, LDAM-DRW
cifar10_lt_flexible_short macro_auroc: class-aware, LDAM-DRW, Flexible Sampling, Flexible + Balanced-MixUp .2
cifar10_lt_flexible_short nll: class-aware, CB-focal, LDAM-DRW, Balanced-MixUp .2, Flexible + Balanced-MixUp .2
retinamnist_pool quadratic_kappa: none
retinamnist_pool mcc: none
retinamnist_pool kendall_tau: none
retinamnist_pool balanced_accuracy: none
retinamnist_pool macro_auroc: none
retinamnist_pool nll: none
'''
# What they call different only without the correction
alone = '''
retinamnist macro_auroc: Balanced-MixUp .3
retinamnist nll: sqrt, focal, Balanced-MixUp .3
retinamnist_methods kendall_tau: cost-sensitive, calibrated, cut points
retinamnist_methods nll: Balanced-MixUp .2 + DRW
retinamnist_flexible medium: difficulty
cifar10_lt_flexible_short mcc: Flexible Sampling
cifar10_lt_short accuracy: MixUp 1
digits_methods balanced_accuracy: balanced softmax, logit adjustment, bias-corrected temperature, MiSLAS, Balanced-MixUp
digits_methods balanced_accuracy: Balanced-MixUp + balanced softmax
digits_methods nll: bias-corrected temperature, Balanced-MixUp + balanced softmax, Balanced-MixUp + deferred weights
digits_methods nll: vector scaling afterwards
'''

def rows(text):
    "(study, metric, arms) of lines; those of one study and metric together"
    res = {}
    for l in text.strip().splitlines():
        key,arms = l.split(': ')
        res.setdefault(tuple(key.split()), set()).update(set(arms.split(', '))-{'none'})
    return [(*k, v) for k,v in res.items()]

@pytest.mark.parametrize('study,metric,arms', rows(apart))
def test_verdicts(study, metric, arms):
    t = facts(study).versus(metric)
    assert set(t.index[t.p_holm<.05])==arms

@pytest.mark.parametrize('study,metric,arms', rows(alone))
def test_differences_that_are_no_findings(study, metric, arms):
    t = facts(study).versus(metric).loc[list(arms)]
    assert ((t.p<.05) & (t.p_holm>=.05)).all()

def test_recalls_told_apart_on_digits():
    t = facts(DIGITS).versus(FEW)
    for a in ('balanced softmax','logit adjustment','bias-corrected temperature'): assert t.p_holm[a]<.05

def test_mixing_never_finds_grade_4_and_others_do():
    s = facts(GRADES)
    for a in ('instance','focal','MixUp .2',*mixed): assert not s.s.recalls.query('arm==@a')['4'].any()
    for a in ('instance','MixUp .2','Balanced-MixUp .2','LDAM-DRW','pre-training alone'): assert not facts(FLEXIBLE).s.recalls.query('arm==@a')['4'].any()
    for a in ('instance',*mixed): assert (facts(CIFAR).s.recalls.query('arm==@a')[['ship','truck']].mean()<=.01).all()

def test_bests_and_worsts():
    s,m = facts(DIGITS),facts(METHODS)
    assert max(s.arms, key=lambda a: s.d(a, BALANCED))==max(s.arms, key=lambda a: s.d(a, ECE))=='label-aware smoothing'
    assert sorted(s.arms, key=lambda a: s.d(a, NLL))[:2]==['Balanced-MixUp + balanced softmax','Balanced-MixUp + deferred weights']
    assert max(s.arms, key=lambda a: s.sd(a, BALANCED))=='vector scaling'
    assert sorted(m.arms, key=lambda a: -m.d(a, KAPPA))[:4]==['cut points','cost-sensitive','Balanced-MixUp .2 + SORD','SORD']
    assert max(facts(GRADES).arms, key=lambda a: facts(GRADES).d(a, MCC))=='Balanced-MixUp .1'
    assert max(facts(CIFAR).arms, key=lambda a: facts(CIFAR).d(a, ACCURACY))=='class-balanced'

def test_borderline_verdicts_of_few_runs_are_named():
    "With three runs a test after correction errs more often than its level: the page of CIFAR-10-LT names what has a p from .01 to .05"
    t = facts(CIFAR).versus(ACCURACY)
    assert set(t.index[t.p_holm.between(.01, .05, inclusive='left')])=={'class-balanced loss','sqrt'}

def test_text_of_a_cell_is_that_of_its_table():
    "The page of methods on CIFAR-10-LT writes its sentences itself; what it has saved is what it would write now"
    cell = next(o for o in cells('results.cifar10_lt_methods') if o['cell_type']=='code' and 'Markdown(f' in ''.join(o['source']))
    said = []
    exec(''.join(cell['source']), dict(study=facts(CIFAR_METHODS).s, other=facts(CIFAR).s.summary, Markdown=said.append))
    assert said==[''.join(cell['outputs'][0]['data']['text/markdown'])]

@pytest.mark.parametrize('study', [POOL, CIFAR, CIFAR_FLEXIBLE, 'digits'])
def test_converted_tables_say_nothing_of_calibration_errors(study):
    s = StudyResults.load(nbs/'results'/study)
    for k in (ECE, CLASSWISE):
        assert s.summary[k][['low','high']].isna().all(axis=None) and s.pairs.query('metric==@k')[['low','high','p','p_holm']].isna().all(axis=None)
        assert 'no interval and no test' in s.verdict(k)
    if study==POOL: assert s.verdict('medium').endswith('Not told apart are pool of all (0.0), pool of a tenth (0.0).') # no image differs
