"""The one training loop; teacher, reference, proxy and students go through it.

train_step  one training as a step; spec, what it is; budget, what a student
may spend; warm_start, the weights that it begins with
loop        read from top to bottom; objective, optimizer, batches,
checkpoints (checksums)
telemetry   what a run says (metrics), its learning curve; watch, looking into
it; comparable, which losses compare
flops       in closed form; trained, what is left of a training
"""
