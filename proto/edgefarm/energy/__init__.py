"""Energy from the readings of a power meter. Pure, standard library only.

`signal`: what a rail's readings say of power over time · `estimate`: energy per inference of a load window between two idle windows ·
`align`: the offset between a meter's clock and ours.
"""
