"Everything of the package: `from blf_explore.all import *`"
from blf_explore.engine.record import *
from blf_explore.engine.losses import *
from blf_explore.engine.timing import *
from blf_explore.engine.folders import *
from blf_explore.engine.images import *
from blf_explore.engine.data import *
from blf_explore.engine.filtering import *
from blf_explore.blf import *
from blf_explore.hnm import *
from blf_explore.sb import *
from blf_explore.importance import *
from blf_explore.gradients import *
from blf_explore.beyond import *
from blf_explore.page.plots import *
from blf_explore.page.widgets import *
from blf_explore.page.cli import *
