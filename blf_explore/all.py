"Everything of the package: `from blf_explore.all import *`"
from blf_explore.data import *
from blf_explore.losses import *
from blf_explore.timing import *
from blf_explore.record import *
from blf_explore.filtering import *
from blf_explore.blf import *
from blf_explore.hnm import *
from blf_explore.sb import *
from blf_explore.importance import *
from blf_explore.gradients import *
from blf_explore.beyond import *
from blf_explore.plots import *
from blf_explore.widgets import *
from blf_explore.cli import *
