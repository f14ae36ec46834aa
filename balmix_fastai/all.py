"Everything public: `from balmix_fastai.all import *`"
from .sampling import *
from .metrics import *
from .data import *
from .mixup import *
from .schedule import *
from .tta import *
from .report import *
from .datasets import *
from .layouts import *
from .protocol import *
from .run import *
from .tables import *
from .study import *
