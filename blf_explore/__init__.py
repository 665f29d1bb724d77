"""Modules:

- `blf_explore.blf`: Keep the hardest samples until they make up `loss_perc` of the batch's loss
- `blf_explore.bls`: Batch Loss Score: a moving average of batch losses, in the place of a loss per sample
- `blf_explore.budget`: Train until so many seconds are spent, with a schedule that ends just then, on a clock that no neighbour disturbs
- `blf_explore.claims`: What was claimed of selective training, each claim measured at equal cost, with a verdict by a rule that stood before the result
- `blf_explore.compare`: Every method and plain training, within the same budget, each with its own schedule; and how much sooner one reaches what the other reaches
- `blf_explore.coreset`: Keep samples that are unlike each other, so that every sample of the batch is near a kept one
- `blf_explore.engine.data`: Small image sets as whole-batch tensors, larger ones through fastai, any of them with noisy labels and repeats on request
- `blf_explore.engine.epochs`: Methods that choose the samples of a whole epoch: what is left out is not even loaded
- `blf_explore.engine.filtering`: The callback that scores a batch, selects from it, lets fastai train on what was selected, and writes down what happened
- `blf_explore.engine.fitting`: What belongs to one fit, and to no other: how it begins, what may be asked of it, and how a later one goes on where it ended
- `blf_explore.engine.knobs`: Settings: numbers or schedules, their checks, when a method selects, and the table of methods
- `blf_explore.engine.loading`: Which samples of the data set a batch holds, told by the batch itself
- `blf_explore.engine.logbook`: The clock and the record of one fit: what each batch held, what was trained on, and what selecting cost
- `blf_explore.engine.looking`: `Look`: a learner's model, loss and callbacks, as a selection looks at them, without leaving a trace
- `blf_explore.engine.losses`: One loss per sample out of any loss function, and the trimmed loss that saves no time
- `blf_explore.engine.record`: What happened in a run: counts, times and losses, batch by batch and epoch by epoch
- `blf_explore.engine.rehearsal`: Try a learner on its first batch before anything is trained, and refuse in one sentence what a selection could not get right
- `blf_explore.engine.rows`: The samples of a step: taken from batches of any structure, joined again, weighted, and queued
- `blf_explore.engine.selecting`: What a method is: its score, its selector, its settings and memory, and how a batch becomes the rows that are trained on
- `blf_explore.engine.small`: Fashion-MNIST's first images in the wheel, and a training set as repetitive as you ask for
- `blf_explore.engine.timing`: What a training step costs on this machine, and how few samples must be kept before selecting pays
- `blf_explore.engine.traces`: A context for each thing that a forward could change: what was changed inside is put back
- `blf_explore.gradients`: How far the gradient of a few samples agrees with that of all of them
- `blf_explore.hnm`: Keep a fixed share of every batch: its hardest samples
- `blf_explore.importance`: Draw the samples that would move the network most, weight them so that the mean stays right, and begin only when that pays
- `blf_explore.infobatch`: Drop easy samples at random by the loss they last had, without a scoring forward, and let the others stand for them
- `blf_explore.page.cli`: `blf-dashboard` opens the live dashboard in a browser, from any folder, without a notebook server to set up
- `blf_explore.page.commands`: `blf-compare` trains every method and plain training within the same budgets, and writes a report for someone who doubts it
- `blf_explore.page.evidence`: `blf-claims` measures what was claimed, and writes it down: a page that stands alone, the package's record, the README's table
- `blf_explore.page.plots`: Figures of records: what was kept, what it cost, how far the gradient agrees, what came of it
- `blf_explore.page.report`: A comparison as figures, and as one HTML file that stands alone, for someone who doubts it
- `blf_explore.page.widgets`: A dashboard in which a network trains while a class drags the sliders
- `blf_explore.pfb`: Partial Forward Blocking: the shallow layers see every sample, the deep ones only the rare
- `blf_explore.rho`: Keep the samples with a high loss that a model of other data finds easy: leave out what cannot be learnt
- `blf_explore.sb`: Keep a sample with a probability that grows with its loss, and collect the kept ones until they fill a batch
- `blf_explore.seta`: SeTa: groups of neighbouring losses, and a window over them that moves by one group an epoch"""

__version__ = "0.1.0"
