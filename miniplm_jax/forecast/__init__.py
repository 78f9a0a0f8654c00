"""Look plan: memory, time and cost on TPUs that are not here.

workload     the programs of a config, and how often each one runs
programs     such a program, lowered for a mesh
topology     TPU slices as devices to compile for
hlo          what a compiled program does: its operations and collectives
             (hlo_text parses; matmul, kernel count FLOPs)
estimate     operations and collectives → seconds
prediction   one run of a program on a slice: memory, FLOPs, seconds
outlook      all runs of it: hours, chip-hours; the slice's best settings
outlook_page an outlook as a table, in sentences and in the report
"""
