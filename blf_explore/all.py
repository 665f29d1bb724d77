"Everything of the package that a user calls: `from blf_explore.all import *`. What only the engine calls is in `blf_explore.engine`."
from importlib import import_module as _import
from blf_explore.engine.knobs import When, check_share, check_whole, methods as _methods
from blf_explore.engine.record import *
from blf_explore.engine.rows import Selection, batch_size
from blf_explore.engine.losses import *
from blf_explore.engine.timing import *
from blf_explore.engine.small import repeat_shifted
from blf_explore.engine.data import *
from blf_explore.engine.traces import (buffers_untouched, eval_mode, grads_untouched, not_compiled, rng_state, rng_untouched, set_rng_state,
                                       single_values, state_untouched)
from blf_explore.engine.fitting import Last
from blf_explore.engine.epochs import *
from blf_explore.engine.filtering import *
from blf_explore.gradients import *
from blf_explore.whatif import *
from blf_explore.budget import *
from blf_explore.compare import *
from blf_explore.claims import Claim, claims, claims_table, load_claims, load_runs, run_claims
from blf_explore.page.plots import *
from blf_explore.page.frame import *
from blf_explore.page import figures # `figures.k_center` and `figures.weighted_draw` are figures; by these names alone stand the rules they show
from blf_explore.page.figures import (agreement_at_cut, beta_curve, break_even_line, cut_line, holdout_loss, queue_filling, samples_per_epoch,
                                      share_over_time, two_stops)
from blf_explore.page.whatif import *
from blf_explore.page.sessions import *
from blf_explore.page.widgets import *
from blf_explore.page.cli import *
from blf_explore.page.report import *
from blf_explore.page.commands import *
from blf_explore.page.evidence import claim_spec, claims_command, claims_page, readme_table
from blf_explore.claims import shipped # the records that come with the package; the sessions' `shipped` are names of data sets
from blf_explore.compare import verdict # of a comparison's seeds; `plots.verdict` is the dashboard's sentence

for _o in dict.fromkeys(m.module for m in _methods.values()): # a new method needs its row in the table, and no line here
    _m = _import(f'blf_explore.{_o}')
    globals().update({k: getattr(_m, k) for k in _m.__all__})
