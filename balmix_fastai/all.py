"Everything public: `from balmix_fastai.all import *`"
from .sampling import *
from .metrics import *
from .data import *
from .pool import *
from .losses import *
from .heads import *
from .mixup import *
from .mixers import *
from .prior import *
from .schedule import *
from .decouple import *
from .checkpoint import *
from .flexible import *
from .tta import *
from .posthoc import *
from .intervals import holm, mcnemar_exact, nadeau_bengio, sign_flip, study_power, wilson
from .report import *
from .compare import Comparison, compare
from .show import *
from .datasets import *
from .layouts import *
from .protocol import *
from .run import *
from .tables import *
from .study import *
from .bench import *
