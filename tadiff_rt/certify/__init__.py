"""Can a sampling plan be believed? Exact answers without a network, and a distance on it.

analytic   order, spread, bimodality and mask of a plan, without a network
network    distance of a plan from a dense run on a bundle's own network
path       levels for a short run, chosen among those of a recorded dense one
optimise   the levels of a short run that come nearest to the dense one
report     all of it as a table, with what passes and what does not
"""
