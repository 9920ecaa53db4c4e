"""How good, how varied and how close to the real ones synthetic images are.

Extraction (`features`) turns images into arrays; one file per metric holds a pure function in float64 on such arrays;
`intervals` says how far a number would move with other images. `vaegan.evaluate` puts them together.
"""
