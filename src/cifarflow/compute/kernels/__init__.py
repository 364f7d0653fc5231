"""Loops over the numbers of a step, compiled by numba for the processor at hand and run by torch's number of threads.

Each operation of a library reads and writes all its numbers, and the next one reads them again; here those that follow
upon each other are one, so the memory is passed half as often. Arithmetic is in float32, and what is summed over many
pictures in float64, in an order that does not depend on the number of threads.
"""
